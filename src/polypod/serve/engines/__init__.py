"""Inference engines: one small adapter file each, and the server modules that run as their processes."""

from typing import Final

from polypod.serve.engines.llama_cpp import LLAMA_CPP
from polypod.serve.engines.lmdeploy import LMDEPLOY
from polypod.serve.engines.mindie import MINDIE
from polypod.serve.engines.openvino import OPENVINO
from polypod.serve.engines.sglang import SGLANG
from polypod.serve.engines.spec import DEFAULT_SAMPLING, Endpoint, Engine, EngineSpec
from polypod.serve.engines.transformers import TRANSFORMERS
from polypod.serve.engines.vllm import VLLM

ENGINES: Final[dict[str, Engine]] = {
    engine.name: engine
    for engine in (LLAMA_CPP, OPENVINO, VLLM, TRANSFORMERS, SGLANG, LMDEPLOY, MINDIE)
}

USUAL: Final = {"gguf": ("llama.cpp", "openvino"), "safetensors": ("vllm", "transformers")}
"""What is started on a host's cores where nobody names an engine, by the format of the weights."""

__all__ = ["DEFAULT_SAMPLING", "ENGINES", "USUAL", "Endpoint", "Engine", "EngineSpec"]
