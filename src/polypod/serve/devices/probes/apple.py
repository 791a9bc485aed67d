"""Apple: the GPU of the chip, from `system_profiler`. It computes in the host's memory; what of it is in use the tool does not tell."""

from typing import Any, Final

from polypod.serve.devices.asking import Ask, OddLineError, UnansweredError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.printed import json_of, size_bytes, told
from polypod.serve.devices.probe import Asked

QUESTION: Final = ("-json", "SPHardwareDataType", "SPDisplaysDataType")


def read(ask: Ask) -> Reading:
    """Its only form."""
    return ask.first((QUESTION, parse))


def parse(text: str) -> Reading:
    """GPUs of Apple's own; cards of other vendors in older machines are left out."""
    found = json_of(text)
    if not isinstance(found, dict) or "SPDisplaysDataType" not in found:
        raise OddLineError(text.strip().splitlines()[0])
    hardware = (found.get("SPHardwareDataType") or [{}])[0]
    gpus = [gpu for gpu in found["SPDisplaysDataType"] if "Apple" in str(gpu.get("spdisplays_vendor"))]  # fmt: skip
    if not gpus:
        msg = "system_profiler lists no GPU of Apple's own"
        raise UnansweredError(msg, "no_devices")
    return Reading(cards=tuple(_card(index, gpu, hardware) for index, gpu in enumerate(gpus)))


def _card(index: int, gpu: dict[str, Any], hardware: dict[str, Any]) -> Card:
    return Card(
        index=index,
        name=told(gpu.get("sppci_model")),
        memory_total_bytes=size_bytes(told(hardware.get("physical_memory"))),
        is_memory_shared=True,
        health="ok",
    )


PROBE: Final = Asked(cli=read)
