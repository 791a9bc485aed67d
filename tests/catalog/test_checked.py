"""Figures read by hand on the pages they came from, 2026-11-25, and held against the catalog: `docs/checked-facts.md` is this table."""

from pathlib import Path

import pytest

from polypod.catalog.load import load_accelerator
from polypod.catalog.schema import Accelerator, Fact

TRN2 = "https://awsdocs-neuron.readthedocs-hosted.com/en/v2.29.0/_sources/about-neuron/arch/neuron-hardware/trainium2.rst"
TRN3 = "https://awsdocs-neuron.readthedocs-hosted.com/en/v2.29.1/_sources/about-neuron/arch/neuron-hardware/trainium3.rst"
V6E = "https://docs.cloud.google.com/tpu/docs/v6e.md.txt"
V5E = "https://docs.cloud.google.com/tpu/docs/v5e"
V5P = "https://docs.cloud.google.com/tpu/docs/v5p-training?hl=es"
A100 = "https://glennklockwood.com/garden/processors/A100"
B200 = "https://glennklockwood.com/garden/processors/B200"
VULTR = "https://docs.vultr.com/inference-cookbook/cuda/getting-started/hardware-overview"
BIREN = "https://www.tomshardware.com/news/chinese-biren-rolls-out-new-gpus-with-77-billion-transistors-2-pflops-of-ai-performance"
H20 = "https://zangshuxian.com/new/674733024499207168"
H20_WILLIT = "https://willitrunai.com/es/gpus/h20-96gb"
ASCEND = "https://pc.schihei.de/new-paradigms-for-ai-infrastructure"
MTIA = "https://techpowerup.com/news-tags/Triton"

# Accelerator, figure, what the page prints, its value in SI, the page, and what differs where something does.
CHECKED: list[tuple[str, str, str, float, str, str]] = [
    ("aws-trainium2", "peak_flops_per_s.fp8", "1,299 FP8 TFLOPS", 1299e12, TRN2, ""),
    ("aws-trainium2", "peak_flops_per_s.bf16", "667 BF16/FP16/TF32 TFLOPS", 667e12, TRN2, "its 2,563 sparse TFLOPS are not used"),
    ("aws-trainium3", "peak_flops_per_s.fp8", "2,517 MXFP8/MXFP4 TFLOPS", 2517e12, TRN3, ""),
    ("aws-trainium3", "memory_bytes_per_s", "4.9 TB/sec", 4.9e12, TRN3, ""),
    ("google-tpu-v6e", "peak_flops_per_s.bf16", "918 TFLOPs", 918e12, V6E, ""),
    ("google-tpu-v6e", "memory_bytes_per_s", "1638 GBps", 1640e9, V6E, "another table of the maker has 1,640: used, with the conflict"),
    ("google-tpu-v6e", "scale_up.bytes_per_s", "bidirectional, 800 GBps", 400e9, V6E, "half of it is one way"),
    ("google-tpu-v5e", "peak_flops_per_s.int8", "393 TOPs", 393e12, V5E, ""),
    ("google-tpu-v5e", "memory_bytes_per_s", "819 GBps", 819e9, V5E, ""),
    ("google-tpu-v5p", "memory_bytes_per_s", "2765 GB/s", 2765e9, V5P, ""),
    ("nvidia-a100-80g-sxm", "peak_flops_per_s.bf16", "312, sparse 624", 312e12, A100, "the dense one"),
    ("nvidia-a100-80g-sxm", "scale_up.bytes_per_s", "300+300 GB/s NVLink", 300e9, A100, ""),
    ("nvidia-b200-hgx", "peak_flops_per_s.fp8", "4500, sparse 9000, at 1,000 W", 4500e12, B200, "the dense one"),
    ("nvidia-b200-hgx", "memory_bytes", "179 GB HBM3e on a live server", 180e9, VULTR, "sold as 180; as built 192, with the conflict"),
    ("nvidia-h20", "peak_flops_per_s.fp16", "FP16 148 TFLOPS dense", 148e12, H20, ""),
    ("nvidia-h20", "power_w", "400 W", 400.0, H20_WILLIT, ""),
    ("biren-br100", "peak_flops_per_s.bf16", "1024 TFLOPS", 1024e12, BIREN, ""),
    ("biren-br100", "memory_bytes_per_s", "1.64 TB/s", 1.64e12, BIREN, ""),
    ("huawei-ascend-950dt", "memory_bytes_per_s", "144 GB and 4 TB/s", 4e12, ASCEND, ""),
    ("huawei-ascend-950dt", "scale_up.bytes_per_s", "2 TB/s interconnect", 1008e9, ASCEND, "both ways; 18 ports of 4 x 112 Gb/s are 1,008 GB/s one way"),
    ("meta-mtia-v2", "peak_flops_per_s.int8", "708 with sparsity, 354 without", 354e12, MTIA, "the dense one"),
    ("meta-mtia-v2", "memory_bytes", "two chips on a board, 128 GB", 128e9, MTIA, "read as shared by two chips there: the conflict is on record"),
]  # fmt: skip


def figure(chip: Accelerator, place: str) -> Fact:
    found: object = chip
    for key in place.split("."):
        found = found.get(key) if isinstance(found, dict) else getattr(found, key)
    assert isinstance(found, Fact)
    return found


@pytest.mark.parametrize(("chip", "place", "printed", "value", "page", "differs"), CHECKED)
def test_the_catalog_says_what_the_page_prints(
    chip: str, place: str, printed: str, value: float, page: str, differs: str
) -> None:
    assert figure(load_accelerator(chip), place).value == value


def test_the_document_is_this_table() -> None:
    rows = [
        f"| {chip} | `{place}` | {printed} | {value:g} | {differs} | <{page}> |"
        for chip, place, printed, value, page, differs in CHECKED
    ]
    text = (Path(__file__).parents[2] / "docs" / "checked-facts.md").read_text(encoding="utf-8")
    assert "\n".join(rows) in text
