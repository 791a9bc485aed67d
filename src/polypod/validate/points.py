"""Single published figures, one to a line, each predicted under its own conditions.

A file of points is CSV with the columns of `COLUMNS`; what does not apply is left empty. A column `two_batches` may say `yes` where the engine
exchanges tokens of one half of a batch while it computes the other. `metric` says what `value` is and which conditions it needs:

    decode_tokens_per_s    of one accelerator: sequences_per_rank at context_tokens each, tokens_per_step of which a step gives
    prefill_tokens_per_s   of one accelerator: a step of tokens_per_rank tokens of prompts context_tokens long
    tpot_ms, ttft_ms       means of `concurrency` clients of input_tokens and output_tokens, on one replica
    output_tokens_per_s    of one such replica, all clients together
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from polypod.catalog.load import load_accelerator
from polypod.cost.calibration import CASES, Case, Evidence
from polypod.cost.deployment import Deployment, native_precision
from polypod.engine.closed_loop import Behaviour, Load, closed_loop
from polypod.errors import FileError, InputError, PolypodError
from polypod.plan.search import mean_pairs
from polypod.validate.predict import model_name, model_of, rank_for, reason_of
from polypod.validate.rows import without_columns
from polypod.workload.layout import Layout, check_layout
from polypod.workload.precision import Precision

Metric = Literal["decode_tokens_per_s", "prefill_tokens_per_s", "tpot_ms", "ttft_ms", "output_tokens_per_s"]  # fmt: skip

COLUMNS: Final = (
    "id", "chip", "model", "weights", "kv", "backend", "tp", "pp", "dp", "ep", "sequences_per_rank", "tokens_per_rank", "context_tokens",
    "input_tokens", "output_tokens", "concurrency", "tokens_per_step", "metric", "value", "source", "conditions",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One published figure; `value` is in the unit its metric names."""

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
    numbers: dict[str, float]
    two_batches: bool = False

    def number(self, name: str) -> float:
        """A condition. Raises `InputError` where the metric needs one that is not given."""
        if name not in self.numbers:
            msg = f"point {self.id}: {self.metric} needs {name}, which is empty"
            raise InputError(msg)
        return self.numbers[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedPoint:
    """A point beside its prediction, `low` and `high` those of the slow and fast calibration; or why there is none."""

    point: Point
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    evidence: Evidence | None = None
    reason: str = ""

    @property
    def error(self) -> float | None:
        """Predicted over measured, less one."""
        return None if self.predicted is None else self.predicted / self.point.value - 1

    @property
    def is_inside(self) -> bool:
        """Whether the band holds the measurement."""
        return self.low is not None and self.high is not None and self.low <= self.point.value <= self.high  # fmt: skip


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


_METRICS: Final[tuple[Metric, ...]] = get_args(Metric)
_AXES: Final = ("tp", "pp", "dp", "ep")
_NUMBERS: Final = ("sequences_per_rank", "tokens_per_rank", "context_tokens", "input_tokens", "output_tokens", "concurrency", "tokens_per_step")  # fmt: skip


def _point(path: Path, line: int, raw: dict[str, str]) -> Point:
    texts = {name: (raw[name] or "").strip() for name in COLUMNS}
    for name in ("id", "chip", "model", "value", "source"):
        if not texts[name]:
            raise FileError(path, f"line {line}: {name} is empty; every point needs one")
    metric = next((known for known in _METRICS if known == texts["metric"]), None)
    if metric is None:
        raise FileError(path, f"line {line}: metric is {texts['metric']!r}; accepted: {', '.join(_METRICS)}")  # fmt: skip
    found = {
        name: _number(path, line, name, texts[name])
        for name in (*_NUMBERS, *_AXES, "value")
        if texts[name]
    }
    return Point(
        id=texts["id"], line=line, chip=texts["chip"], model=texts["model"], weights=texts["weights"], kv=texts["kv"] or "bf16",
        backend=texts["backend"], layout=Layout(**{axis: int(found.get(axis, 1)) for axis in _AXES}), metric=metric, value=found["value"],
        source=texts["source"], conditions=texts["conditions"], numbers={name: found[name] for name in _NUMBERS if name in found},
        two_batches=_yes(path, line, raw),
    )  # fmt: skip


def _yes(path: Path, line: int, raw: dict[str, str]) -> bool:
    text = (raw.get("two_batches") or "").strip()
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


def predict_point(point: Point, *, without: frozenset[str] = frozenset()) -> PredictedPoint:
    """Predict one point; where the catalog, the layout or the conditions do not allow it, the reason is kept."""
    try:
        deployment = _deployment(point, without)
        ways = {case: _value(point, deployment, case) for case in CASES}
    except PolypodError as error:
        return PredictedPoint(point=point, reason=reason_of(error))
    return PredictedPoint(
        point=point,
        predicted=ways["likely"],
        low=min(ways.values()),
        high=max(ways.values()),
        evidence=deployment.rank.calibration.evidence,
    )


def _deployment(point: Point, without: frozenset[str]) -> Deployment:
    chip = load_accelerator(point.chip)
    model = model_of(model_name(point.model))
    check_layout(model, point.layout)
    rank = rank_for(chip.id, point.backend, without)
    native = native_precision(model, rank)
    weights = point.weights or native.weights
    compute = native.compute if weights == native.weights else None
    precision = Precision(weights=weights, kv=point.kv, compute=compute)
    return Deployment(
        model=model,
        layout=point.layout,
        precision=precision,
        rank=rank,
        two_batches=point.two_batches,
    )


def _value(point: Point, deployment: Deployment, case: Case) -> float:
    if point.metric == "decode_tokens_per_s":
        batch = point.number("sequences_per_rank")
        given = point.numbers.get("tokens_per_step", 1.0)
        step_s = deployment.step_s(
            sequences=batch,
            kv_tokens=batch * point.number("context_tokens"),
            drafts=1.0 if given > 1 else 0.0,
            case=case,
        )
        return float(batch * given / step_s) * _ranks(deployment)
    if point.metric == "prefill_tokens_per_s":
        tokens, context = point.number("tokens_per_rank"), point.number("context_tokens")
        step_s = deployment.step_s(
            prompt_tokens=tokens, pairs=mean_pairs(tokens, context), case=case
        )
        return float(tokens / step_s) * _ranks(deployment)
    return _served(point, deployment, case)


def _ranks(deployment: Deployment) -> float:
    """Data-parallel ranks' worth of tokens that one accelerator gives: a fraction where several hold one."""
    return deployment.layout.dp * deployment.rank.ranks_per_accelerator / deployment.layout.world


def _served(point: Point, deployment: Deployment, case: Case) -> float:
    load = Load(
        input_tokens=point.number("input_tokens"),
        output_tokens=point.number("output_tokens"),
        concurrency=point.number("concurrency"),
    )
    behaviour = Behaviour(
        exclusive_prefill=point.backend == "sglang",
        tokens_per_step=point.numbers.get("tokens_per_step", 1.0),
    )
    times = closed_loop(deployment.step_time(case), load, behaviour)
    if point.metric == "output_tokens_per_s":
        answer_s = times.ttft_s + load.output_tokens * times.tpot_s
        return load.concurrency * load.output_tokens / answer_s
    return 1e3 * (times.tpot_s if point.metric == "tpot_ms" else times.ttft_s)
