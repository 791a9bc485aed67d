"""Fit the kernel and collective curves that come with the package, from tables of measured kernels.

    python -m venv venv && venv/bin/pip install numpy scipy pyarrow pandas msgspec pyyaml
    PYTHONPATH=src venv/bin/python scripts/fit_kernels.py TABLES               prints how well the curves fit
    PYTHONPATH=src venv/bin/python scripts/fit_kernels.py TABLES --write       and rewrites src/polypod/cost/data/kernels-*.toml and tests/cost/data

TABLES holds `kernels/aiconfigurator` (the folder systems/data of aiconfigurator-core 0.12), `kernels/infersim/bench_data`
(alibaba/InferSim) and `collectives` (NCCL and DeepEP tables of aiconfigurator-core as CSV), all Apache-2.0.

Of each (chip, backend, family, type), five numbers by robust least squares (soft L1) on the logarithm of the error:

    kernel      t0 + [((weights + cache + c activations) / (BW eb)) ^ p + (flops (1 + r0 / rows) / (F ef)) ^ p] ^ (1/p)
    collective  a + [(B (n - 1) / n / (link w)) ^ p + (g sqrt(B / 64 KiB)) ^ p] ^ (1/p)

`rows` is what shares one matrix or one context: tokens of an expert, tokens of a prompt, queries of a key head. r0 and c are
fitted where they matter (attention and experts; experts alone), else 0 and 1. Experts: evenly loaded, gated, at most 8 ranks (past them the tables still hand every rank all tokens); `grouped-` types are
the kernels of experts over more ranks (`grouped`). FLOPs and bytes are counted as
`polypod.workload` counts them. Two thirds of the shapes are fitted; the errors printed, the spread shipped (10 % and 90 % of
measured over fitted) and the samples kept for the tests are those of the third held out. `default` pools the backends,
each with the same weight. Where a backend has several versions, the one with most rows is taken; of the kernels behind one
type of GEMM the most frequent, of experts the fastest for each shape.
"""

import argparse
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from polypod.catalog.load import load_accelerator
from polypod.catalog.topology import loose_tiers

ROOT = Path(__file__).parents[1]
DATA = ROOT / "src" / "polypod" / "cost" / "data"
SAMPLES = ROOT / "tests" / "cost" / "data"

CHIPS = {"a100_sxm": "nvidia-a100-80g-sxm", "h100_sxm": "nvidia-h100-sxm", "b200_sxm": "nvidia-b200-hgx", "l40s": "nvidia-l40s"}  # fmt: skip
BACKENDS = ("trtllm", "vllm", "sglang")
L40S = {"bf16": 362.05e12, "fp8": 733e12, "int8": 733e12, "hbm": 864e9}
"""Dense peaks and bandwidth, NVIDIA L40S datasheet, https://www.nvidia.com/en-us/data-center/l40s/ (the catalog has no L40S)."""

L2_BYTES = {"nvidia-a100-80g-sxm": 40e6, "nvidia-h100-sxm": 50e6, "nvidia-b200-hgx": 126e6, "nvidia-l40s": 96e6}  # fmt: skip
"""NVIDIA's architecture papers. A benchmark that repeats one layer finds a cache of this size still there; an engine, which
has read the other layers' caches meanwhile, does not. Decode attention is fitted to caches of a sixteenth of it, where the
fixed time decides, and to those half as large again."""

TYPES = {
    "bfloat16": ("bf16", "bf16", 2.0),
    "fp8": ("fp8", "fp8", 1.0),
    "fp8_block": ("fp8-block", "fp8", 1.0),
    "nvfp4": ("fp4", "fp4", 9 / 16),
    "sq": ("int8", "int8", 1.0),
    "int8_wo": ("int8-bf16", "bf16", 1.0),
    "int4_wo": ("int4-bf16", "bf16", 0.5),
    "w4a16_mxfp4": ("mxfp4-bf16", "bf16", 17 / 32),
    "w4a8_mxfp4_mxfp8": ("mxfp4-fp8", "fp8", 17 / 32),
}
"""Of the tables' types: ours, the peak they compute at, bytes of a weight."""

FUSED_S = 2e-6
"""Quantised GEMMs are timed with a quantising kernel of their own, which engines fuse: at most this above bf16's fixed time."""

UNFUSED = {("vllm", "fp4")}
"""Backend and type of GEMMs that keep it: vLLM fuses the quantising of fp8 into the norm before, and of fp4 does not
(https://docs.vllm.ai/en/latest/design/fusions/, RMSNorm + quant)."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One fit, and how well it does on what was held out."""

    chip: str
    backend: str
    family: str
    key: str
    values: dict[str, float]
    count: int
    median: float
    within: float
    spread: tuple[float, float]
    held: pd.DataFrame


# --- tables -------------------------------------------------------------------------------------------------------------


def peaks(chip: str) -> dict[str, float]:
    """FLOP/s by type, and `hbm` bytes/s, of one package."""
    if chip == "nvidia-l40s":
        return L40S
    accelerator = load_accelerator(chip)
    assert accelerator.memory_bytes_per_s is not None
    found = {str(key): fact.value for key, fact in accelerator.peak_flops_per_s.items()}
    return found | {"hbm": accelerator.memory_bytes_per_s.value}


def table(folder: Path, backend: str, name: str) -> pd.DataFrame | None:
    """The version with most rows."""
    files = [pd.read_parquet(path) for path in sorted((folder).glob(f"*/{backend}/*/{name}.parquet"))]  # fmt: skip
    return max(files, key=len) if files else None


def kernels(tables: Path) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """(chip, backend, family, rows) with columns key, peak, flops, hbm_bytes, rows, measured_s, shape."""
    for folder, chip in CHIPS.items():
        for backend in BACKENDS:
            for family, (name, work) in FAMILIES.items():
                frame = table(tables / "kernels" / "aiconfigurator" / folder, backend, name)
                if (
                    (backend, name) not in NOT_RUN
                    and frame is not None
                    and len(made := work(frame))
                ):
                    yield chip, backend, family, made
        yield from grouped(tables / "kernels" / "aiconfigurator" / folder, chip)
    yield from infersim(tables / "kernels" / "infersim" / "bench_data")


NOT_RUN = {("sglang", "context_mla_perf")}
"""Tables of kernels that the engine does not run: SGLang's attend over latents and take longer than its own whole module of attention does
(wideep_context_mla_perf), because prompts are computed with keys and values made of the latents."""


def gemm(frame: pd.DataFrame) -> pd.DataFrame:
    kept = frame[(frame.n >= 128) & (frame.k >= 128) & frame.gemm_dtype.isin(TYPES)]
    kept = most_frequent(kept, "gemm_dtype")
    return work_of_gemm(kept, kept.gemm_dtype, kept.latency / 1e3)


def most_frequent(frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """The rows of the kernel that most of a type's rows ran on."""
    often = frame.groupby(key).kernel_source.agg(lambda names: names.value_counts().index[0])
    return frame[frame.kernel_source == frame[key].map(often)]


def fastest(frame: pd.DataFrame, shape: str) -> pd.DataFrame:
    """Of each shape the kernel that is fastest: engines choose between theirs by the size of the batch."""
    return frame.loc[frame.groupby(shape.split()).latency.idxmin()]


def work_of_gemm(frame: pd.DataFrame, dtype: pd.Series, seconds: pd.Series) -> pd.DataFrame:
    m, n, k = (frame[one].astype(float) for one in "mnk")
    wide = dtype.map(lambda one: TYPES[one][2])
    return made(
        frame, dtype, "m n k",
        flops=2 * m * n * k, hbm_bytes=wide * n * k + 2.0 * m * (n + k), rows=m, measured_s=seconds,
    )  # fmt: skip


def made(frame: pd.DataFrame, dtype: pd.Series, shape: str, **columns: pd.Series) -> pd.DataFrame:
    named = [frame[name].astype(str) for name in shape.split()]
    text = named[0].str.cat(named[1:], sep="x")
    return pd.DataFrame(
        {"key": dtype.map(lambda one: TYPES[one][0]), "peak": dtype.map(lambda one: TYPES[one][1])}
        | columns
        | {"shape": text}
    )


def moe(frame: pd.DataFrame) -> pd.DataFrame:
    """Two GEMMs of each expert touched, with the router's permutation and the sum."""
    even = "balanced" if (frame.distribution == "balanced").any() else "power_law_1.01"
    kept = frame[
        (frame.distribution == even)
        & ~frame.kernel_source.str.contains("nongated")
        & (frame.topk < 22)  # that model's experts are not gated
        & frame.moe_dtype.isin(TYPES)
        & (frame.moe_ep_size <= 8)
        & (frame.inter_size / frame.moe_tp_size >= 128)
    ]
    kept = fastest(kept, "moe_dtype num_tokens hidden_size inter_size topk num_experts moe_tp_size moe_ep_size")  # fmt: skip
    tokens, hidden, inner = (kept[one].astype(float) for one in ("num_tokens", "hidden_size", "inter_size"))  # fmt: skip
    ep, tp, experts = kept.moe_ep_size, kept.moe_tp_size, kept.num_experts
    rows = tokens * kept.topk / ep
    touched = (
        np.minimum(experts, tokens * kept.topk) / ep
    )  # evenly loaded: no expert twice before all once
    parameters = 3 * hidden * inner / tp
    wide = kept.moe_dtype.map(lambda one: TYPES[one][2])
    activation_bytes = 2 * rows * (2 * hidden + 3 * inner / tp)
    return made(
        kept, kept.moe_dtype, "num_tokens hidden_size inter_size topk num_experts moe_tp_size moe_ep_size",
        flops=2 * rows * parameters,
        hbm_bytes=touched * parameters * wide + activation_bytes,
        activation_bytes=activation_bytes,
        rows=rows / touched,
        measured_s=kept.latency / 1e3,
    )  # fmt: skip


GROUPED = "grouped-"
LAUNCHED_S = 1e-3
"""Prefill kernels of the grouped tables were launched one by one, which takes 0.4 ms: what is not well above it says nothing of the kernels."""


def grouped(folder: Path, chip: str) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Experts over many ranks: SGLang's DeepGEMM behind DeepEP, TensorRT-LLM's own; of the newest version.

    Prefill tables hand a rank all tokens of all ranks, not only those sent to it, so only few ranks are taken: at most 8, where
    it costs a few percent. Decode tables hand it what was sent. TensorRT-LLM's are those of its balancer, nearly even.
    """
    parts = []
    for phase, most_ranks in (("context", 8), ("generation", 256)):
        frame = newest(folder, "sglang", f"wideep_{phase}_moe_perf")
        if frame is not None:
            even = frame[(frame.distribution == "uniform") & (frame.moe_ep_size <= most_ranks)]
            least_ms = 1e3 * LAUNCHED_S if phase == "context" else 0.0
            parts.append(even[even.latency > least_ms].assign(num_slots=even.num_experts))
    if parts:
        yield chip, "sglang", "moe", spread_moe(pd.concat(parts, ignore_index=True))
    frame = newest(folder, "trtllm", "wideep_moe_perf")
    if frame is not None:
        even = frame[(frame.distribution == "power_law_1.01_eplb") & (frame.moe_ep_size > 1)]
        yield chip, "trtllm", "moe", spread_moe(even)


def newest(folder: Path, backend: str, name: str) -> pd.DataFrame | None:
    paths = sorted(folder.glob(f"*/{backend}/*/{name}.parquet"), key=lambda path: version_of(path.parent.name))  # fmt: skip
    return pd.read_parquet(paths[-1]) if paths else None


def version_of(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def spread_moe(frame: pd.DataFrame) -> pd.DataFrame:
    """Whole experts; `num_slots` are those on all ranks, copies included."""
    tokens, hidden, inner = (frame[one].astype(float) for one in ("num_tokens", "hidden_size", "inter_size"))  # fmt: skip
    rows = tokens * frame.topk / frame.moe_ep_size
    held = frame.num_slots / frame.moe_ep_size
    found = grouped_work(frame, frame.moe_dtype, rows, held * (1 - np.exp(-rows / held)), hidden, inner, frame.latency / 1e3)  # fmt: skip
    shape = frame.num_tokens.astype(str) + "x" + frame.hidden_size.astype(str) + "x" + frame.num_slots.astype(str) + "x" + frame.moe_ep_size.astype(str)  # fmt: skip
    return found.assign(shape=shape)


def grouped_work(frame: pd.DataFrame, dtype: pd.Series, rows: pd.Series, touched: pd.Series, hidden: pd.Series, inner: pd.Series, seconds: pd.Series) -> pd.DataFrame:  # noqa: PLR0913  # fmt: skip
    parameters = 3 * hidden * inner
    activation_bytes = 2 * rows * (2 * hidden + 3 * inner)
    found = made(
        frame, dtype, "hidden_size",
        flops=2 * rows * parameters,
        hbm_bytes=touched * parameters * dtype.map(lambda one: TYPES[one][2]) + activation_bytes,
        activation_bytes=activation_bytes,
        rows=rows / touched,
        measured_s=seconds,
    )  # fmt: skip
    return found.assign(key=GROUPED + found.key)


def head_key(width: int) -> str:
    """Kernels are built for heads of 64, 128 and 256."""
    return f"gqa-{64 if width <= 64 else 128 if width <= 128 else 256}"


def attention_frame(frame: pd.DataFrame, key: pd.Series, **columns: pd.Series) -> pd.DataFrame:
    key = key + np.where(frame.kv_cache_dtype == "fp8", "-fp8", "")
    names = [one for one in ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim") if one in frame]  # fmt: skip
    named = [frame[name].astype(str) for name in names]
    shape = named[0].str.cat(named[1:], sep="x")
    return pd.DataFrame({"key": key, "peak": "bf16"} | columns | {"shape": shape})


def full(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame.window_size == 0)] if "window_size" in frame else frame


def decode_gqa(frame: pd.DataFrame) -> pd.DataFrame:
    """Groups as models have them, at most 16 query heads to a key head, and contexts of 32 tokens or more."""
    kept = full(frame)
    kept = kept[
        (kept.head_dim <= 256)
        & (kept.num_heads <= 16 * kept.num_key_value_heads)
        & (kept.step >= 31)
    ]
    batch, heads, width = (kept[one].astype(float) for one in ("batch_size", "num_heads", "head_dim"))  # fmt: skip
    cached = batch * (kept.step + 1)
    wide = np.where(kept.kv_cache_dtype == "fp8", 1.0, 2.0)
    return attention_frame(
        kept, kept.head_dim.map(head_key),
        flops=2 * heads * 2 * width * cached,
        hbm_bytes=2 * batch * heads * 2 * width + 2 * kept.num_key_value_heads * width * wide * (cached + batch),
        rows=heads / kept.num_key_value_heads,
        measured_s=kept.latency / 1e3,
    )  # fmt: skip


def decode_mla(frame: pd.DataFrame) -> pd.DataFrame:
    batch, heads = frame.batch_size.astype(float), frame.num_heads.astype(float)
    cached = batch * (frame.step + 1)
    wide = np.where(frame.kv_cache_dtype == "fp8", 1.0, 2.0)
    return attention_frame(
        frame, pd.Series("mla", index=frame.index),
        flops=2 * heads * 1088 * cached,
        hbm_bytes=2 * batch * heads * 1088 + 576 * wide * (cached + batch),
        rows=heads,
        measured_s=frame.latency / 1e3,
    )  # fmt: skip


def prefill_gqa(frame: pd.DataFrame) -> pd.DataFrame:
    kept = full(frame)
    kept = kept[(kept.head_dim <= 256) & (kept.isl >= 16) & (kept.step == 0)]
    batch, tokens, heads, width = (kept[one].astype(float) for one in ("batch_size", "isl", "num_heads", "head_dim"))  # fmt: skip
    wide = np.where(kept.kv_cache_dtype == "fp8", 1.0, 2.0)
    return attention_frame(
        kept, kept.head_dim.map(head_key),
        flops=2 * heads * 2 * width * batch * tokens**2 / 2,
        hbm_bytes=batch * tokens * (2 * heads * 2 * width + 2 * kept.num_key_value_heads * width * wide),
        rows=tokens,
        measured_s=kept.latency / 1e3,
    )  # fmt: skip


def prefill_mla(frame: pd.DataFrame) -> pd.DataFrame:
    kept = frame[(frame.isl >= 16) & (frame.step == 0)]
    batch, tokens, heads = (kept[one].astype(float) for one in ("batch_size", "isl", "num_heads"))
    wide = np.where(kept.kv_cache_dtype == "fp8", 1.0, 2.0)
    return attention_frame(
        kept, pd.Series("mla", index=kept.index),
        flops=2 * heads * 320 * batch * tokens**2 / 2,
        hbm_bytes=batch * tokens * (4 * heads * 320 + 576 * wide),
        rows=tokens,
        measured_s=kept.latency / 1e3,
    )  # fmt: skip


FAMILIES = {
    "gemm": ("gemm_perf", gemm),
    "moe": ("moe_perf", moe),
    "attention_decode": ("generation_attention_perf", decode_gqa),
    "attention_decode ": ("generation_mla_perf", decode_mla),
    "attention_prefill": ("context_attention_perf", prefill_gqa),
    "attention_prefill ": ("context_mla_perf", prefill_mla),
}
"""Table and work of each family; a second table of one is told by a blank."""


def infersim(folder: Path) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """H20 and H800 on SGLang's kernels: fp8 block GEMMs, and attention in bf16."""
    for short, chip in (("h20", "nvidia-h20"), ("h800", "nvidia-h800-sxm")):
        frame = pd.read_csv(folder / "gemm" / short / "data.csv")
        frame.columns = [name.strip() for name in frame.columns]
        dtype = pd.Series("fp8_block", index=frame.index)
        yield chip, "sglang", "gemm", work_of_gemm(frame, dtype, frame.latency_us / 1e6)
        yield from _infersim_attention(folder, short, chip)
        yield chip, "sglang", "moe", _infersim_moe(folder / "grouped_gemm", short)


STREAMED = 0.7
"""Of the memory's bandwidth, reached by kernels that only copy (chip-nvidia-hopper.toml, elementwise)."""


def _infersim_moe(folder: Path, short: str) -> pd.DataFrame:
    """DeepGEMM's two GEMMs, evenly loaded: of two rows an expert or more, so that all are touched.

    The tables time the GEMMs alone. Around them an engine activates and quantises (5 bytes for each inner element of a row) and in
    prefill sorts rows and sums them (6 for each hidden one); both are added at the bandwidth that copies reach. SGLang's whole
    module on an H100, with the same GEMMs, is within 5 % of that sum.
    """
    frames = [pd.read_csv(folder / phase / short / "data.csv") for phase in ("prefill", "decode")]
    both = [frame.rename(columns={"seq_len_per_gpu": "tokens", "batch_size_per_gpu": "tokens"}).assign(copied=copied) for frame, copied in zip(frames, (6, 0), strict=True)]  # fmt: skip
    frame = pd.concat(both, ignore_index=True)
    rows = (frame.tokens * frame.topk).astype(float)
    frame, rows = frame[rows >= 2 * frame.num_local_experts], rows[rows >= 2 * frame.num_local_experts]  # fmt: skip
    hidden, inner = frame.hidden_size.astype(float), frame.intermediate_size.astype(float)
    dtype = pd.Series("fp8_block", index=frame.index)
    hbm = peaks({"h20": "nvidia-h20", "h800": "nvidia-h800-sxm"}[short])["hbm"]
    around_s = rows * (5 * inner + frame.copied * hidden) / (STREAMED * hbm)
    seconds = (frame.up_proj_us + frame.down_proj_us) / 1e6 + around_s
    found = grouped_work(frame, dtype, rows, frame.num_local_experts.astype(float), hidden, inner, seconds)  # fmt: skip
    shape = frame.tokens.astype(str) + "x" + frame.hidden_size.astype(str) + "x" + frame.intermediate_size.astype(str) + "x" + frame.num_local_experts.astype(str)  # fmt: skip
    return found.assign(shape=shape)


def _infersim_attention(
    folder: Path, short: str, chip: str
) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    plain = {"dtype": "attn", "kv_dtype": "kv_cache_dtype", "kv_len": "step", "seq_len": "isl"}
    for mode, works in (("decode", (decode_gqa, decode_mla)), ("prefill", (prefill_gqa, prefill_mla))):  # fmt: skip
        for kind, work in zip(("mha", "mla"), works, strict=True):
            frames = []
            for path in sorted((folder / kind / mode / short).glob("*.csv")):
                names = ["dtype", "kv_dtype", "batch_size", "kv_len", "latency_us", "mfu"] if mode == "decode" else ["dtype", "seq_len", "latency_us", "mfu"]  # fmt: skip
                frame = pd.read_csv(path, names=names, skiprows=int("dtype" in path.open().readline()))  # fmt: skip
                heads, kv_heads, width = (int(one) for one in path.stem.split("-"))
                given = {"num_heads": heads, "num_key_value_heads": kv_heads, "head_dim": width}
                frames.append(frame.rename(columns=plain).assign(**given))
            if not frames:
                continue
            rows = pd.concat(frames, ignore_index=True)
            rows["latency"] = rows.latency_us / 1e3
            for name, value in (("batch_size", 1), ("isl", 1), ("step", 0), ("kv_cache_dtype", "bf16")):  # fmt: skip
                if name not in rows:
                    rows[name] = value
            yield chip, "sglang", f"attention_{mode}", work(rows[rows.kv_cache_dtype != "fp8"])


LINKS = {"a100": "nvidia-a100-80g-sxm", "h100": "nvidia-h100-sxm", "b200": "nvidia-b200-hgx"}
"""Left out: l40s, whose NCCL table moves about 1 GB/s among eight GPUs where PCIe 4 has 32: not a node to plan on."""
ELEMENT_BYTES = 2


def collectives(tables: Path) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """(chip, library, kind, rows) with columns key (ranks), buffer_bytes, link_bytes (what must cross a rank's port), measured_s."""
    for short, chip in LINKS.items():
        frame = pd.read_csv(tables / "collectives" / f"{short}_sxm_nccl.csv")
        frame = frame[frame.nccl_dtype == "half"]
        for kind, rows in frame.groupby("op_name"):
            yield chip, "nccl", str(kind).replace("alltoall", "all_to_all"), exchanges(rows)
        for backend in BACKENDS:
            own = table(
                tables / "kernels" / "aiconfigurator" / f"{short}_sxm",
                backend,
                "custom_allreduce_perf",
            )
            if own is not None:
                yield chip, backend, "custom_all_reduce", exchanges(captured(own))
        yield from deep_ep(tables / "collectives", short, chip)


def captured(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows timed in a captured graph, as engines decode, of 1 MB at most."""
    small = frame[frame.message_size * ELEMENT_BYTES <= 2**20]
    return small[small.backend.str.contains("graph")] if "backend" in small else small


def exchanges(frame: pd.DataFrame) -> pd.DataFrame:
    buffer_bytes = frame.message_size.astype(float) * ELEMENT_BYTES
    return exchange_frame(frame.num_gpus, buffer_bytes, frame.latency / 1e3, frame.message_size)


def exchange_frame(
    ranks: pd.Series, buffer_bytes: pd.Series, seconds: pd.Series, shape: pd.Series
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "key": ranks.astype(str),
            "buffer_bytes": buffer_bytes,
            "link_bytes": buffer_bytes * (ranks - 1) / ranks,
            "measured_s": seconds,
            "shape": shape.astype(str),
        }
    )


def deep_ep(folder: Path, short: str, chip: str) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Dispatch in one byte an element and combine in two, to at most one copy a rank; 8 ranks of one node."""
    for mode, mid in (("ll", "avg_t_us"), ("normal", "transmit_us")):
        path = folder / f"{short}_sxm_wideep_deepep_{mode}_perf.csv"
        if not path.exists():
            continue
        frame = pd.read_csv(path)
        frame = frame[frame.num_topk.between(2, 10)]
        if mode == "normal":
            frame = frame[frame.dispatch_sms >= 20]  # engines give it 20 of them
        copies = np.minimum(frame.num_topk, 8) * frame.num_token * frame.hidden_size
        shape = frame.num_token.astype(str) + "x" + frame.hidden_size.astype(str) + "x" + frame.num_topk.astype(str)  # fmt: skip
        for kind, width in (("dispatch", 1), ("combine", 2)):
            yield chip, f"deepep_{mode}", kind, exchange_frame(
                pd.Series(8, index=frame.index), copies.astype(float) * width, frame[f"{kind}_{mid}"] / 1e6, shape
            )  # fmt: skip


# --- fits ---------------------------------------------------------------------------------------------------------------

PARAMETERS = {"gemm": 4, "attention_decode": 5, "attention_prefill": 5, "moe": 6}
LEAST, MOST = 40, 4000
MOST_FIXED_S = 40e-6
"""A GEMM that takes more with nothing to do was timed on large shapes alone (vLLM's fp8 blocks): not kept."""
NAMES = ("fixed_s", "bytes_fraction", "flops_fraction", "overlap", "half_rows", "activation_factor")
LOW = np.log([2e-7, 0.01, 0.005, 1.0, 1e-2, 1.0])
HIGH = np.log([4e-4, 1.0, 1.0, 12.0, 2e4, 20.0])
START = np.log([8e-6, 0.7, 0.6, 2.0, 4.0, 2.0])


def seconds_of(values: dict[str, float], frame: pd.DataFrame, peak: dict[str, float]) -> np.ndarray:
    """The curve, in numpy."""
    moved = frame.hbm_bytes.to_numpy()
    if "activation_factor" in values:
        moved = moved + (values["activation_factor"] - 1) * frame.activation_bytes.to_numpy()
    memory = moved / (peak["hbm"] * values["bytes_fraction"])
    flops = frame.flops.to_numpy() * (1 + values.get("half_rows", 0.0) / frame.rows.to_numpy())
    compute = flops / (frame.peak.map(peak).to_numpy() * values["flops_fraction"])
    return values["fixed_s"] + power_sum(memory, compute, values["overlap"])


def power_sum(first: np.ndarray, second: np.ndarray, exponent: float) -> np.ndarray:
    larger = np.maximum(first, second)
    return larger * (1 + (np.minimum(first, second) / larger) ** exponent) ** (1 / exponent)


def held_out(shapes: pd.Series) -> np.ndarray:
    """A third, by the shape's text, so that no shape is in both."""
    return np.array([zlib.crc32(text.encode()) % 3 == 0 for text in shapes])


def thin(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    return frame.sample(most, random_state=1) if len(frame) > most else frame


def fit_kernel(
    chip: str, backend: str, family: str, frame: pd.DataFrame, peak: dict[str, float]
) -> Curve:
    held = held_out(frame["shape"])
    rows = thin(frame[~held], MOST)
    measured = np.log(rows.measured_s.to_numpy())
    num = PARAMETERS[family]

    def values_of(x: np.ndarray) -> dict[str, float]:
        return dict(zip(NAMES, (float(one) for one in np.exp(x)), strict=False))

    def errors(x: np.ndarray) -> np.ndarray:
        return np.log(seconds_of(values_of(x), rows, peak)) - measured

    found = least_squares(errors, START[:num], bounds=(LOW[:num], HIGH[:num]), loss="soft_l1", f_scale=0.1)  # fmt: skip
    values = values_of(found.x)
    rest = thin(frame[held], MOST) if held.sum() >= LEAST // 3 else frame
    return scored(
        (chip, backend, family, str(frame.key.iloc[0])),
        values,
        rest,
        seconds_of(values, rest, peak),
    )


def scored(
    names: tuple[str, str, str, str],
    values: dict[str, float],
    held: pd.DataFrame,
    fitted: np.ndarray,
) -> Curve:
    ratio = held.measured_s.to_numpy() / fitted
    error = np.abs(1 / ratio - 1)
    low, high = np.quantile(ratio, [0.1, 0.9])
    chip, backend, family, key = names
    return Curve(
        chip=chip, backend=backend, family=family, key=key, values=values, count=len(held),
        median=float(np.median(error)), within=float((error <= 0.2).mean()),
        spread=(min(float(low), 1.0), max(float(high), 1.0)), held=held,
    )  # fmt: skip


def fit_all(tables: Path) -> list[Curve]:
    """Every family of every backend and their blend."""
    pools: dict[tuple[str, str, str], list[pd.DataFrame]] = {}
    curves = []
    for chip, backend, family, frame in kernels(tables):
        peak, name = peaks(chip), family.strip()
        usable = frame[frame.peak.isin(peak) & (frame.measured_s > 0)]
        if name == "attention_decode" and chip in L2_BYTES:
            share = usable.hbm_bytes / L2_BYTES[chip]
            usable = usable[(share < 1 / 16) | (share > 1.5)]
        for key, rows in usable.groupby("key"):
            if len(rows) < LEAST:
                continue
            curve = fit_kernel(chip, backend, name, rows, peak)
            if name == "gemm" and curve.values["fixed_s"] > MOST_FIXED_S:
                continue
            curves.append(curve)
            if (backend, str(key).startswith(GROUPED)) == ("trtllm", True):
                continue  # all other engines run DeepGEMM there
            pools.setdefault((chip, name, str(key)), []).append(thin(rows, MOST))
    for (chip, name, _), frames in pools.items():
        least = min(len(frame) for frame in frames)
        pooled = pd.concat([thin(frame, max(least, 500)) for frame in frames], ignore_index=True)
        curves.append(fit_kernel(chip, "default", name, pooled, peaks(chip)))
    return curves


LINK_NAMES = ("launch_s", "bytes_fraction", "ramp_s", "overlap")
LINK_LOW = np.log([5e-7, 0.01, 1e-9, 1.0])
LINK_HIGH = np.log([2e-4, 1.0, 1e-3, 12.0])
LINK_START = np.log([8e-6, 0.6, 1e-6, 1.5])
RAMP_BYTES = 65536


def exchange_s(values: dict[str, float], frame: pd.DataFrame, port: float) -> np.ndarray:
    transfer = frame.link_bytes.to_numpy() / (port * values["bytes_fraction"])
    ramp = values["ramp_s"] * np.sqrt(frame.buffer_bytes.to_numpy() / RAMP_BYTES)
    return values["launch_s"] + power_sum(transfer, ramp, values["overlap"])


def fit_links(tables: Path) -> list[Curve]:
    """One curve for each kind, library and number of ranks."""
    curves = []
    for chip, library, kind, frame in collectives(tables):
        tier = loose_tiers(chip)[0]
        assert tier.bytes_per_s is not None
        port = tier.bytes_per_s.value
        for ranks, rows in frame.groupby("key"):
            curves.append(fit_link((chip, library, kind, str(ranks)), rows, port))
    return curves


def fit_link(names: tuple[str, str, str, str], frame: pd.DataFrame, port: float) -> Curve:
    held = held_out(frame["shape"])
    rows = frame[~held]
    measured = np.log(rows.measured_s.to_numpy())

    def values_of(x: np.ndarray) -> dict[str, float]:
        return dict(zip(LINK_NAMES, (float(one) for one in np.exp(x)), strict=True))

    def errors(x: np.ndarray) -> np.ndarray:
        return np.log(exchange_s(values_of(x), rows, port)) - measured

    found = least_squares(errors, LINK_START, bounds=(LINK_LOW, LINK_HIGH), loss="soft_l1", f_scale=0.1)  # fmt: skip
    values = values_of(found.x)
    return scored(names, values, frame[held], exchange_s(values, frame[held], port))


def report(curves: list[Curve]) -> None:
    print(f"{'chip':20} {'backend':8} {'family':18} {'type':12} {'n':>5} {'median':>7} {'in 20 %':>7}  t0 us    eb    ef    p   r0")  # fmt: skip
    for one in curves:
        v = one.values
        print(
            f"{one.chip:20} {one.backend:8} {one.family:18} {one.key:12} {one.count:5d} {100 * one.median:6.1f}% {100 * one.within:6.0f}%"
            f"  {1e6 * v.get('fixed_s', v.get('launch_s', 0)):5.1f} {v.get('bytes_fraction', 0):5.2f} {v.get('flops_fraction', 0):5.2f} {v['overlap']:4.1f} {v.get('half_rows', 0):6.1f} {v.get('activation_factor', 1):4.1f}"
        )


# --- what is shipped ----------------------------------------------------------------------------------------------------

SOURCES = {
    "nvidia-h20": "alibaba/InferSim bench_data, H20, https://github.com/alibaba/InferSim, Apache-2.0",
    "nvidia-h800-sxm": "alibaba/InferSim bench_data, H800, https://github.com/alibaba/InferSim, Apache-2.0",
}
TABLES = "aiconfigurator-core 0.12.0 systems/data/{}, https://github.com/ai-dynamo/aiconfigurator, Apache-2.0"
FEW = 190
"""Samples kept of a family."""


def write(curves: list[Curve], links: list[Curve]) -> None:
    folders = {chip: folder for folder, chip in CHIPS.items()}
    for chip in dict.fromkeys(one.chip for one in curves):
        source = SOURCES.get(chip) or TABLES.format(folders[chip])
        own = [one for one in curves if one.chip == chip]
        lines = [
            "# Written by scripts/fit_kernels.py; each triple is [fast, likely, slow].",
            f'id = "{chip}"',
            f'source = "{source}"',
            *kernel_lines(own),
            *link_lines([one for one in links if one.chip == chip]),
        ]
        (DATA / f"kernels-{chip}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    SAMPLES.mkdir(parents=True, exist_ok=True)
    keep(curves, "kernels.csv", ["flops", "hbm_bytes", "activation_bytes", "rows"])
    keep(links, "exchanges.csv", ["buffer_bytes"])


def kernel_lines(curves: list[Curve]) -> Iterator[str]:
    bf16_s = {one.backend: one.values["fixed_s"] for one in curves if (one.family, one.key) == ("gemm", "bf16")}  # fmt: skip
    section = ""
    for one in sorted(curves, key=lambda one: (one.backend != "default", one.backend, one.family, one.key)):  # fmt: skip
        if (title := f"\n[backends.{one.backend}.{one.family}]") != section:
            section = title
            yield section
        fused_s = 0.0
        fuses = (one.backend, one.key) not in UNFUSED
        if one.family == "gemm" and one.backend in bf16_s and fuses:
            fused_s = max(one.values["fixed_s"] - bf16_s[one.backend] - FUSED_S, 0.0)
        yield f"{one.key} = {{{kernel_text(one, fused_s)}}}"


def kernel_text(one: Curve, fused_s: float) -> str:
    values = one.values
    text = (
        f"fixed_s = {times(values['fixed_s'] - fused_s, one)}, bytes_fraction = {fractions(values['bytes_fraction'], one)}, "
        f"flops_fraction = {fractions(values['flops_fraction'], one)}, overlap = {values['overlap']:.3g}"
    )
    if values.get("half_rows", 0.0) > 0.1:
        text += f", half_rows = {values['half_rows']:.3g}"
    if values.get("activation_factor", 1.0) > 1.01:
        text += f", activation_factor = {values['activation_factor']:.3g}"
    return text + (f", fused_s = {fused_s:.3g}" if fused_s else "")


def link_lines(links: list[Curve]) -> Iterator[str]:
    section = ""
    for one in links:
        if (title := f"\n[exchanges.{one.backend}.{one.family}]") != section:
            section = title
            yield section
        values = one.values
        yield (
            f"{one.key} = {{launch_s = {times(values['launch_s'], one)}, bytes_fraction = {fractions(values['bytes_fraction'], one)}, "
            f"ramp_s = {times(values['ramp_s'], one)}, overlap = {values['overlap']:.3g}}}"
        )


def times(value: float, one: Curve) -> str:
    return listed([value * one.spread[0], value, value * one.spread[1]])


def fractions(value: float, one: Curve) -> str:
    return listed([min(value / one.spread[0], 1.0), value, value / one.spread[1]])


def listed(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.3g}" for value in values) + "]"


def keep(curves: list[Curve], name: str, columns: list[str]) -> None:
    """A few held-out rows of every curve, so that the tests can hold the shipped figures to measurements."""
    parts = []
    for family in dict.fromkeys(one.family for one in curves):
        own = [one for one in curves if one.family == family and one.backend != "default"]
        each = max(FEW // len(own), 1)
        for one in own:
            rows = thin(one.held, each)
            names = {"chip": one.chip, "backend": one.backend, "family": family}
            rows = rows.reindex(columns=["key", "shape", *columns, "measured_s"]).assign(**names)
            parts.append(rows[["chip", "backend", "family", "key", "shape", *columns, "measured_s"]])  # fmt: skip
    kept = pd.concat(parts).fillna(0.0)
    kept.to_csv(SAMPLES / name, index=False, float_format="%.5g")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("tables", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    curves, links = fit_all(arguments.tables), fit_links(arguments.tables)
    report([*curves, *links])
    if arguments.write:
        write(curves, links)


if __name__ == "__main__":
    main()
