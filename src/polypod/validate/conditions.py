"""What is known of a row's settings that its columns do not tell, as the closed form takes it."""

from typing import Final

from polypod.engine.settings import EngineArgs
from polypod.validate.rows import DRAWN_LENGTHS, Row

QUANTISED: Final = {
    "fp8": "fp8", "fp8_block": "fp8", "fp8_static": "fp8", "fp8_ootb": "fp8", "nvfp4": "nvfp4", "fp4": "nvfp4",
    "int8": "int8", "int8_wo": "int8", "int4": "int4", "int4_wo": "int4", "mxfp4": "mxfp4", "w4a16_mxfp4": "mxfp4", "w4a8_mxfp4_mxfp8": "mxfp4",
    "bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16",
}  # fmt: skip
"""How rows name the width of weights."""


def conditions(row: Row, name: str) -> EngineArgs:
    """What is known of a row's settings: its drafts, its sweep's load, or what its benchmark's script set.

    For sweeps the formula takes 8.5 requests a client, all of one length, as was set while looking at them (`scheduling` has what they send). The rest is InferenceX's
    public launch scripts (github.com/SemiAnalysisAI/InferenceX, benchmarks/).
    """
    drafts = EngineArgs(num_speculative_tokens=1 if row.speculative else None)
    if row.sweep:
        return EngineArgs(requests_per_client=8.5, length_spread=0).over(drafts)
    return _script(row, name.casefold()).over(
        EngineArgs(requests_per_client=10, length_spread=1 / 9).over(drafts)
    )


def _script(row: Row, name: str) -> EngineArgs:
    if row.backend == "sglang":
        fp4 = QUANTISED.get(row.precision) == "nvfp4"
        return EngineArgs(
            stream_interval=10 if fp4 else 30,
            scheduler_recv_interval=30 if row.concurrency >= 16 else 10,
            max_num_batched_tokens=16384 if fp4 else 32768,
        )
    if row.backend == "trtllm":
        nominal = (
            round(row.input_tokens / DRAWN_LENGTHS),
            round(row.output_tokens / DRAWN_LENGTHS),
        )
        waits = "llama" in name and row.workers.layout.tp < 8 and nominal == (1024, 1024)
        return EngineArgs(
            stream_interval=20 if "gpt-oss" in name else 10,
            batch_wait_timeout_iters=20 if waits else None,
        )
    return EngineArgs()
