"""Measured serving rows: one benchmark run each, in the columns that the public dumps of serving benchmarks have.

A row says what was run and what came out (`COLUMNS`). What the dumps mangle is repaired by rules that look at a row's conditions and never at its
answer; each repair is kept in words:

* A tensor-parallel size that was multiplied by an equal expert-parallel one, on the same accelerators (16 = 4 x 4), is divided again. So is
  a data-parallel size. Only rows of benchmark dumps are mangled so; rows of sweeps that name their file are taken as they stand.
* Where the data-parallel size is left out and the concurrency is a multiple of the batch by the accelerators, attention was data-parallel.
* Speculative decoding has no column: `SPECULATIVE` lists the images whose runs drafted tokens.
* Lengths of benchmark dumps are drawn from 0.8 to 1.0 of the nominal one, so their mean is 0.9 of it.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from polypod.errors import FileError, LayoutError
from polypod.workload.layout import Layout

Mode = Literal["agg", "disagg"]

COLUMNS: Final = (
    "id", "silicon_data_source", "backend", "backend_version", "model_path", "system", "precision", "mode", "isl", "osl",
    "gemm_quant_mode", "moe_quant_mode", "batch_size", "tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size",
    "prefill_batch_size", "prefill_num_workers", "prefill_tp_size", "prefill_pp_size", "prefill_attention_dp_size",
    "prefill_moe_tp_size", "prefill_moe_ep_size", "decode_batch_size", "decode_num_workers", "decode_tp_size", "decode_pp_size",
    "decode_attention_dp_size", "decode_moe_tp_size", "decode_moe_ep_size", "silicon_ttft_ms", "silicon_tpot_ms",
)  # fmt: skip

DRAWN_LENGTHS: Final = 0.9
"""Mean of lengths drawn uniformly from 0.8 to 1.0 of the nominal one, as the InferenceX benchmarks draw them."""

SPECULATIVE: Final = (
    ("trtllm", re.compile(r"tensorrt-llm/release:1\.2\.0rc6\.post3"), "2026-01"),
    ("trtllm", re.compile(r"tensorrt-llm/release:1\.1\.0rc2\.post2"), "2026-01"),
    ("sglang", re.compile(r"lmsysorg/sglang:v0\.5\.9-cu130"), "2026-03"),
)
"""Backend, image and the month from which DeepSeek runs of it drafted tokens: read off InferenceX's public benchmark scripts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Replicas of one role."""

    layout: Layout
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured run, its conditions recovered. Times are means over the run's requests."""

    id: str
    line: int
    system: str
    model: str
    backend: str
    version: str
    precision: str
    mode: Mode
    input_tokens: float
    output_tokens: float
    concurrency: float
    workers: Workers  # of an agg run
    prefill: Workers | None = None
    decode: Workers | None = None
    speculative: bool = False
    sweep: bool = False  # of a sweep with constant lengths, not of a benchmark dump
    measured: str = ""  # the month, as 2025-11
    repaired: tuple[str, ...] = ()
    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A row that lacks what a prediction needs, or says what cannot be: which line, and what is wrong with it."""

    id: str
    line: int
    reason: str


def without_columns(missing: list[str], expected: tuple[str, ...]) -> str:
    """What is said of a file that lacks columns: the first of them, and what a header looks like."""
    more = f" and {len(missing) - 6} more" if len(missing) > 6 else ""
    return (
        f"has no column {', '.join(missing[:6])}{more}; a header begins {','.join(expected[:5])},... "
        f"and has {len(expected)} columns (docs/how-to/validate.md lists those of both kinds of file)"
    )


def read_rows(path: Path | str) -> tuple[list[Row], list[Refused]]:
    """Read a CSV of serving rows; those that are no complete measurement come apart, each with its line and reason.

    Raises `FileError` for a file that cannot be read or lacks a column.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"cannot be read: {error}") from error
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise FileError(path, without_columns(missing, COLUMNS))
    rows: list[Row] = []
    refused: list[Refused] = []
    for line, raw in enumerate(reader, start=2):
        fields = _Fields(path, line, raw)
        try:
            rows.append(_row(fields))
        except FileError as error:
            reason = str(error).removeprefix(f"{path}: ")
            refused.append(Refused(id=fields.text("id"), line=line, reason=reason))
    return rows, refused


@dataclass(frozen=True, slots=True)
class _Fields:
    """One line, read field by field with errors that name it."""

    path: Path
    line: int
    raw: dict[str, str | None]

    def text(self, name: str) -> str:
        return (self.raw.get(name) or "").strip()

    def number(self, name: str) -> float:
        found = self.optional(name)
        if found is None:
            raise FileError(self.path, f"line {self.line}: {name} is empty; a number is needed")
        return found

    def optional(self, name: str) -> float | None:
        text = self.text(name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError as error:
            raise FileError(
                self.path, f"line {self.line}: {name} is {text!r}; a number is needed"
            ) from error
        if value < 0:
            raise FileError(
                self.path, f"line {self.line}: {name} is {value:g}; it cannot be negative"
            )
        return value

    def size(self, name: str) -> int:
        """A parallel size: what is empty or 0 is 1."""
        return int(self.optional(name) or 1)


def _row(fields: _Fields) -> Row:
    mode = fields.text("mode")
    if mode not in {"agg", "disagg"}:
        raise FileError(fields.path, f"line {fields.line}: mode is {mode!r}; accepted: agg, disagg")
    origin = fields.text("silicon_data_source")
    sweep = "aic-auto-gap-analysis" in origin
    stated = re.search(r"silicon_concurrency=(\d+)", origin)
    batch = fields.optional("batch_size")
    concurrency = float(stated[1]) if stated else batch
    if concurrency is None:
        raise FileError(
            fields.path,
            f"line {fields.line}: batch_size is empty and silicon_data_source has no silicon_concurrency; one is needed",
        )
    mean = 1.0 if sweep else DRAWN_LENGTHS
    workers, repaired = _workers(fields, "", mangled=not sweep, concurrency=concurrency)
    prefill = decode = None
    if mode == "disagg":
        prefill, _ = _workers(fields, "prefill_", mangled=False, concurrency=None)
        decode, _ = _workers(fields, "decode_", mangled=False, concurrency=None)
    return Row(
        id=fields.text("id"),
        line=fields.line,
        system=fields.text("system"),
        model=fields.text("model_path"),
        backend=fields.text("backend"),
        version=fields.text("backend_version"),
        precision=fields.text("gemm_quant_mode") or fields.text("precision") or "bf16",
        mode="agg" if mode == "agg" else "disagg",
        input_tokens=fields.number("isl") * mean,
        output_tokens=fields.number("osl") * mean,
        concurrency=concurrency,
        workers=workers,
        prefill=prefill,
        decode=decode,
        speculative=_speculative(fields, origin),
        sweep=sweep,
        measured=_month(origin),
        repaired=tuple(repaired),
        ttft_s=_seconds(fields, "silicon_ttft_ms"),
        tpot_s=_seconds(fields, "silicon_tpot_ms"),
    )


def _seconds(fields: _Fields, name: str) -> float | None:
    found = fields.optional(name)
    return None if found is None else found / 1e3


def _month(origin: str) -> str:
    found = re.search(r"measured=(\d{4}-\d{2})", origin)
    return found[1] if found else ""


def conditions_of(row: Row) -> tuple[object, ...]:
    """All that was the same of two runs that repeat each other."""
    return (
        row.system, row.model, row.backend, row.version, row.precision, row.mode, row.input_tokens, row.output_tokens, row.concurrency,
        row.workers, row.prefill, row.decode, row.speculative, row.sweep,
    )  # fmt: skip


def _speculative(fields: _Fields, origin: str) -> bool:
    if "DeepSeek-R1" not in fields.text("model_path") or origin.startswith("db-dump"):
        return False
    month = _month(origin)
    image = origin.replace("#", "/")
    return any(
        fields.text("backend") == backend and pattern.search(image) and month >= since
        for backend, pattern, since in SPECULATIVE
    )


def _workers(
    fields: _Fields, prefix: str, *, mangled: bool, concurrency: float | None
) -> tuple[Workers, list[str]]:
    """The layout of one role, and what was repaired in it."""
    tp, pp = fields.size(f"{prefix}tp_size"), fields.size(f"{prefix}pp_size")
    dp = fields.size(f"{prefix}attention_dp_size")
    moe_tp, ep = fields.size(f"{prefix}moe_tp_size"), fields.size(f"{prefix}moe_ep_size")
    repaired = []
    if mangled and moe_tp > 1 and moe_tp == ep and tp * dp == moe_tp * ep:
        repaired.append(
            f"{tp * dp} accelerators are {moe_tp}: tensor and expert parallelism share them"
        )
        tp, dp = (moe_tp, 1) if dp == 1 else (1, moe_tp)
    batch = fields.optional(f"{prefix}batch_size")
    if (
        not fields.text(f"{prefix}attention_dp_size")
        and concurrency
        and batch
        and ep == tp > 1
        and concurrency == tp * batch
    ):
        repaired.append(
            f"a batch of {batch:g} at concurrency {concurrency:g}: attention is data-parallel over {tp}"
        )
        tp, dp = 1, tp
    count = fields.size(f"{prefix}num_workers") if prefix else 1
    try:
        layout = Layout(tp=tp, pp=pp, dp=dp, ep=min(ep, tp * dp))
    except LayoutError as error:
        raise FileError(fields.path, f"line {fields.line}: {error}") from error
    return Workers(layout=layout, count=count), repaired


def unique(rows: list[Row]) -> Iterator[Row]:
    """Each measurement once: dumps repeat one another, and the same times to the microsecond are the same run."""
    seen = set()
    for row in rows:
        key = (
            row.system,
            None if row.ttft_s is None else round(row.ttft_s, 6),
            None if row.tpot_s is None else round(row.tpot_s, 6),
        )
        if key not in seen or row.ttft_s is None:
            seen.add(key)
            yield row
