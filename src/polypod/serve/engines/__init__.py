"""Inference engines: one small adapter file each, and the server modules that run as their processes."""

from typing import Final

from polypod.serve.engines.llama_cpp import LLAMA_CPP
from polypod.serve.engines.openvino import OPENVINO
from polypod.serve.engines.spec import DEFAULT_SAMPLING, Endpoint, Engine, EngineSpec

ENGINES: Final[dict[str, Engine]] = {LLAMA_CPP.name: LLAMA_CPP, OPENVINO.name: OPENVINO}

__all__ = ["DEFAULT_SAMPLING", "ENGINES", "Endpoint", "Engine", "EngineSpec"]
