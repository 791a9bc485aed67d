"""What the last lines of an engine mean, in a sentence that says what to do."""

import pytest

from polypod.serve.engines import ENGINES
from polypod.serve.engines.facts import facts_of
from polypod.serve.engines.failures import explained


@pytest.mark.parametrize(
    ("engine", "line", "says"),
    [
        ("vllm", "ValueError: Model architectures ['Odd'] are not supported for now. Supported: ...", "does not know the model's architecture"),
        ("vllm", "ValueError: To serve at least one request with the models's max seq len (8192), (3.00 GiB KV cache is needed, which is larger than the available KV cache memory (1.0 GiB).", "lower --context"),
        ("vllm", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "stop what else uses it"),
        ("vllm", "Please pass the argument `trust_remote_code=True` to allow custom code to be run.", "which Polypod never runs"),
        ("vllm", "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer", "damaged or cut short"),
        ("sglang", "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.", "use more devices"),
        ("llama.cpp", "llama_model_load: error loading model: unknown model architecture: 'odd'", "--engine transformers"),
        ("transformers", "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", "take a smaller model"),
        ("nobody", "OSError: [Errno 28] No space left on device", "the disk is full"),
    ],
)  # fmt: skip
def test_a_known_failure_is_explained(engine: str, line: str, says: str) -> None:
    assert says in str(explained(engine, ["Traceback (most recent call last):", line, "[rank0] exit"]))  # fmt: skip


def test_the_last_line_that_says_something_counts() -> None:
    tail = ["torch.OutOfMemoryError: CUDA out of memory.", "OSError: [Errno 28] No space left on device"]  # fmt: skip
    assert "disk" in str(explained("vllm", tail))


def test_what_nobody_knows_is_left_to_the_lines_themselves() -> None:
    assert explained("vllm", ["Segmentation fault"]) is None
    assert explained("vllm", []) is None


def test_every_explanation_says_what_to_do() -> None:
    for engine in ENGINES:
        for failure in facts_of(engine).failures:
            assert ";" in failure.says, failure
