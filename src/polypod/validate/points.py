"""Single published figures, one to a line, each with the conditions it was measured under.

A file of points is CSV with the columns of `COLUMNS`, and those of `OPTIONAL` it needs; what does not apply is left empty. `metric` says what
`value` is and which conditions it needs.

Of serving, on a model:

    decode_tokens_per_s    of one accelerator: sequences_per_rank at context_tokens each, tokens_per_step of which a step gives
    prefill_tokens_per_s   of one accelerator: a step of tokens_per_rank tokens of prompts context_tokens long
    tpot_ms, ttft_ms       means of `concurrency` clients of input_tokens and output_tokens, on one replica
    output_tokens_per_s    of one such replica, all clients together
    offline_output_tokens_per_s    the same with as many clients as its memory holds, or `concurrency` where that is less

Of kernels, on one rank (a die, where a package has several):

    gemm_flops_per_s       of `groups` (1) matrices of k x n, each under m rows, in the format of `weights`
    matmul_flops_per_s     the most that large matrices reach in the format of `weights`
    attention_flops_per_s, attention_bytes_per_s   decode attention of the model: sequences_per_rank at context_tokens each, tokens_per_step queries
    copy_bytes_per_s       read and written, of buffer_bytes each way

Of exchanges, among the ranks of the layout:

    all_reduce_s, all_gather_s, reduce_scatter_s, all_to_all_s     of buffer_bytes among tp ranks, as `cost.collective` counts them
    bus_bytes_per_s                    of an all-reduce, as nccl-tests counts it: 2 (n - 1) / n buffers over the time
    dispatch_s, combine_s              of the model's experts among ep ranks, tokens_per_rank each
    dispatch_bytes_per_s, combine_bytes_per_s      the same as bandwidth: every copy of every token counted once, over the time

`link_ranks` and `link_bytes_per_s` stand for a fabric that the catalog does not know the speed of, `network_bytes_per_s` for the network
between nodes, both as the point's conditions say; `eager` is 1 where kernels are launched one by one and no captured graph is replayed; `two_batches` is yes where the engine exchanges tokens of one half of a
batch while it computes the other.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from polypod.errors import FileError, InputError
from polypod.validate.rows import without_columns
from polypod.workload.layout import Layout

Serving = Literal["decode_tokens_per_s", "prefill_tokens_per_s", "tpot_ms", "ttft_ms", "output_tokens_per_s", "offline_output_tokens_per_s"]  # fmt: skip
Kernel = Literal["gemm_flops_per_s", "matmul_flops_per_s", "attention_flops_per_s", "attention_bytes_per_s", "copy_bytes_per_s"]  # fmt: skip
Exchange = Literal["all_reduce_s", "all_gather_s", "reduce_scatter_s", "all_to_all_s", "bus_bytes_per_s", "dispatch_s", "combine_s", "dispatch_bytes_per_s", "combine_bytes_per_s"]  # fmt: skip
Metric = Serving | Kernel | Exchange

SERVING: Final[tuple[Serving, ...]] = get_args(Serving)
METRICS: Final[tuple[Metric, ...]] = (*SERVING, *get_args(Kernel), *get_args(Exchange))
WITHOUT_MODEL: Final = ("gemm_flops_per_s", "matmul_flops_per_s", "copy_bytes_per_s", "all_reduce_s", "all_gather_s", "reduce_scatter_s", "all_to_all_s", "bus_bytes_per_s")  # fmt: skip
"""Metrics that no model has a part in."""

COLUMNS: Final = (
    "id", "chip", "model", "weights", "kv", "backend", "tp", "pp", "dp", "ep", "sequences_per_rank", "tokens_per_rank", "context_tokens",
    "input_tokens", "output_tokens", "concurrency", "tokens_per_step", "metric", "value", "source", "conditions",
)  # fmt: skip
OPTIONAL: Final = ("m", "n", "k", "groups", "buffer_bytes", "link_ranks", "link_bytes_per_s", "network_bytes_per_s", "eager", "two_batches", "explained")  # fmt: skip

_AXES: Final = ("tp", "pp", "dp", "ep")
_NUMBERS: Final = (
    "sequences_per_rank", "tokens_per_rank", "context_tokens", "input_tokens", "output_tokens", "concurrency", "tokens_per_step",
    "m", "n", "k", "groups", "buffer_bytes", "link_ranks", "link_bytes_per_s", "network_bytes_per_s", "eager",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One published figure; `value` is in the unit its metric names, `explained` why its prediction misses."""

    id: str
    line: int
    chip: str
    model: str
    weights: str
    kv: str
    backend: str
    layout: Layout
    metric: Metric
    value: float
    source: str
    conditions: str
    explained: str
    numbers: dict[str, float]
    two_batches: bool = False

    def number(self, name: str) -> float:
        """A condition. Raises `InputError` where the metric needs one that is not given."""
        if name not in self.numbers:
            msg = f"point {self.id}: {self.metric} needs {name}, which is empty"
            raise InputError(msg)
        return self.numbers[name]


def has_points(path: Path) -> bool:
    """Whether a file is one of points, by its header. Raises `FileError` where it cannot be read."""
    return "metric" in _lines(path)[0].split(",")


def read_points(path: Path) -> list[Point]:
    """Read a file of points. Raises `FileError` naming the line and the column that is missing, unknown or no number."""
    reader = csv.DictReader(_lines(path))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise FileError(path, without_columns(missing, COLUMNS))
    return [_point(path, line, raw) for line, raw in enumerate(reader, start=2)]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines() or [""]
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"cannot be read: {error}") from error


def _point(path: Path, line: int, raw: dict[str, str]) -> Point:
    texts = {name: (raw.get(name) or "").strip() for name in (*COLUMNS, *OPTIONAL)}
    metric = next((known for known in METRICS if known == texts["metric"]), None)
    if metric is None:
        raise FileError(path, f"line {line}: metric is {texts['metric']!r}; accepted: {', '.join(METRICS)}")  # fmt: skip
    for name in ("id", "chip", "value", "source", *(() if metric in WITHOUT_MODEL else ("model",))):
        if not texts[name]:
            raise FileError(path, f"line {line}: {name} is empty; every point of {metric} needs one")  # fmt: skip
    found = {
        name: _number(path, line, name, texts[name])
        for name in (*_NUMBERS, *_AXES, "value")
        if texts[name]
    }
    return Point(
        id=texts["id"], line=line, chip=texts["chip"], model=texts["model"], weights=texts["weights"], kv=texts["kv"] or "bf16",
        backend=texts["backend"], layout=Layout(**{axis: int(found.get(axis, 1)) for axis in _AXES}), metric=metric, value=found["value"],
        source=texts["source"], conditions=texts["conditions"], explained=texts["explained"],
        numbers={name: found[name] for name in _NUMBERS if name in found}, two_batches=_yes(path, line, texts["two_batches"]),
    )  # fmt: skip


def _yes(path: Path, line: int, text: str) -> bool:
    if text not in ("", "yes"):
        raise FileError(path, f"line {line}: two_batches is {text!r}; accepted: yes, or nothing")
    return text == "yes"


def _number(path: Path, line: int, name: str, text: str) -> float:
    try:
        found = float(text)
    except ValueError as error:
        raise FileError(path, f"line {line}: {name} is {text!r}; a number is needed") from error
    if found <= 0:
        raise FileError(path, f"line {line}: {name} is {found:g}; it has to be above 0")
    return found
