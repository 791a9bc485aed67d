"""Many questions to the planner from one file: their product, and the answer to one of them as a flat row.

Every key of the file is one value or a list of them, and the sweep is their product, the first key changing slowest. `also` adds single
points; `skip` leaves out what matches. Equal points stand once. `answer` is one call of `plan_model`, in words that any process can be sent.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec
from msgspec import UNSET, UnsetType

from polypod import units
from polypod.catalog.load import load_model
from polypod.catalog.schema import Strict
from polypod.cost.bands import METRICS, Metric
from polypod.cost.measured import BACKENDS
from polypod.engine.settings import read_plan_args
from polypod.errors import FileError, InfeasibleError, InputError, PolypodError
from polypod.plan.compose import Answer, Choice, plan_model
from polypod.plan.place import parse_fleet
from polypod.plan.search import Question
from polypod.plan.spec import read_yaml
from polypod.workload.config import read_model
from polypod.workload.layout import describe

MOST_POINTS: Final = 100_000
"""A product above this is more likely a slip than a wish: at half a second a point it keeps one core busy for 14 hours."""

Value = str | int | float | None
Row = dict[str, Value]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One question, with every quantity in SI. A limit or rate that is None was not asked for."""

    model: str
    on: str
    input_tokens: int = 1024
    output_tokens: int = 256
    ttft_limit_s: float | None = None
    tpot_limit_s: float | None = None
    rate_per_s: float | None = None
    backend: str | None = None
    engine_args: str = ""


class Lists(Strict, frozen=True, kw_only=True):
    """The keys of a sweep: one value each, or several."""

    model: str | tuple[str, ...] | UnsetType = UNSET
    on: str | tuple[str, ...] | UnsetType = UNSET
    input: int | str | tuple[int | str, ...] | UnsetType = UNSET
    output: int | str | tuple[int | str, ...] | UnsetType = UNSET
    ttft: str | tuple[str | None, ...] | UnsetType | None = UNSET
    tpot: str | tuple[str | None, ...] | UnsetType | None = UNSET
    rate: float | str | tuple[float | str | None, ...] | UnsetType | None = UNSET
    backend: str | tuple[str | None, ...] | UnsetType | None = UNSET
    engine_args: str | tuple[str | None, ...] | UnsetType | None = UNSET


class Sweep(Lists, frozen=True, kw_only=True):
    """A sweep file."""

    kind: Literal["plan"] = "plan"
    also: tuple[Lists, ...] = ()
    skip: tuple[Lists, ...] = ()


FIELDS: Final = {
    "model": "model", "on": "on", "input": "input_tokens", "output": "output_tokens", "ttft": "ttft_limit_s", "tpot": "tpot_limit_s",
    "rate": "rate_per_s", "backend": "backend", "engine_args": "engine_args",
}  # fmt: skip
"""The file's keys, and what a point calls them."""

COLUMNS: Final[dict[str, type]] = {
    "model": str, "on": str, "input_tokens": int, "output_tokens": int, "ttft_limit_s": float, "tpot_limit_s": float,
    "rate_per_s": float, "backend": str, "engine_args": str,
    "status": str, "reason": str,
    "goodput_per_s": float, "output_tokens_per_s": float, "output_tokens_per_s_per_accelerator": float,
    "ttft_p50_s": float, "ttft_p99_s": float, "ttft_low_s": float, "ttft_high_s": float,
    "tpot_p50_s": float, "tpot_p99_s": float, "tpot_low_s": float, "tpot_high_s": float,
    "layout": str, "replicas": int, "accelerators": float, "sequences_per_replica": int, "max_step_tokens": int,
    "evidence": str, "power_w": float, "spent_s": float,
}  # fmt: skip
"""Every row has these, in this order; what is not known is None. `spent_s` is the driver's to fill in: nothing here reads a clock."""


def read_sweep(path: Path, most: int | None = MOST_POINTS) -> list[Point]:
    """The points of a sweep file, in its order. Raises `FileError` with the path to the key; `most` None lifts the limit."""
    raw = read_yaml(path)
    try:
        return points(msgspec.convert(raw, Sweep), most)
    except (msgspec.ValidationError, InputError) as error:
        raise FileError(path, str(error)) from error


def points(sweep: Sweep, most: int | None = MOST_POINTS) -> list[Point]:
    """The product without what is skipped, then the single points; equal ones once. Raises `InputError`."""
    for name in ("model", "on"):
        if getattr(sweep, name) is UNSET:
            msg = f"has no `{name}`: a sweep asks for at least one model on at least one fleet - at `$`"
            raise InputError(msg)
    axes = {name: _values(sweep, name, "$") or (_default(name),) for name in FIELDS}
    _check_size(axes, most)
    asked = [_point(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]  # fmt: skip
    kept = _without(asked, sweep.skip)
    singles = [_single(one, axes, f"$.also[{at}]") for at, one in enumerate(sweep.also)]
    found = list(dict.fromkeys((*kept, *singles)))
    if not found:
        msg = "`skip` leaves no point of the product; take an entry out - at `$.skip`"
        raise InputError(msg)
    return found


def answer(point: Point) -> Row:
    """Ask the planner; a row of `COLUMNS` whatever comes of it, with the reason where that is no plan."""
    asked: Row = dict.fromkeys(COLUMNS) | msgspec.structs.asdict(point)
    try:
        found = plan_model(_question(point), parse_fleet(point.on))
    except InfeasibleError as error:
        return asked | {"status": "infeasible", "reason": str(error)}
    except PolypodError as error:
        return failed(point, str(error))
    return asked | {"status": "ok"} | _figures(found)


def failed(point: Point, reason: str) -> Row:
    """The row of a point that could not be asked or answered."""
    asked: Row = dict.fromkeys(COLUMNS) | msgspec.structs.asdict(point)
    return asked | {"status": "error", "reason": reason}


def _question(point: Point) -> Question:
    entry = load_model(point.model)
    return Question(
        model=read_model(entry.config, name=entry.name, path=entry.path),
        input_tokens=point.input_tokens,
        output_tokens=point.output_tokens,
        ttft_s=point.ttft_limit_s,
        tpot_s=point.tpot_limit_s,
        rate_per_s=point.rate_per_s,
        backend=point.backend,
        engine_args=read_plan_args(point.engine_args),
    )


def _figures(found: Answer) -> Row:
    """Over all pools: sums, the slowest pool's times, and texts joined; a batch only where all pools have the same."""
    output = found.question.output_tokens
    goodput_per_s = sum(one.replicas * one.confirmed.outcome.rate_per_s for one in found.choices)
    accelerators = sum(one.replicas * one.confirmed.candidate.deployment.accelerators for one in found.choices)  # fmt: skip
    candidates = [one.confirmed.candidate for one in found.choices]
    watts = found.plan.predicted.watts if found.plan.predicted else None
    row: Row = {
        "goodput_per_s": goodput_per_s,
        "output_tokens_per_s": goodput_per_s * output,
        "output_tokens_per_s_per_accelerator": goodput_per_s * output / accelerators,
        "layout": " + ".join(describe(one.deployment.layout) for one in candidates),
        "replicas": sum(one.replicas for one in found.choices),
        "accelerators": float(accelerators),
        "sequences_per_replica": _common({one.sequences for one in candidates}),
        "max_step_tokens": _common({one.max_step_tokens for one in candidates}),
        "evidence": " + ".join(dict.fromkeys(one.island.rank.calibration.evidence for one in found.choices)),
        "power_w": None if watts is None else float(watts),
    }  # fmt: skip
    for what in METRICS:
        row |= _times(found.choices, what)
    return row


def _times(choices: tuple[Choice, ...], what: Metric) -> Row:
    """Of the pool that is slowest for one request in a hundred."""
    pools = [(one.confirmed.outcome.percentiles_s(what, (50, 99)), one) for one in choices]
    (p50_s, p99_s), slowest = max(pools, key=lambda pool: pool[0][1])
    band = slowest.band(what)
    return {
        f"{what}_p50_s": p50_s,
        f"{what}_p99_s": p99_s,
        f"{what}_low_s": p50_s * band.low,
        f"{what}_high_s": p50_s * band.high,
    }


def _common(values: set[int]) -> int | None:
    return values.pop() if len(values) == 1 else None


def _check_size(axes: Mapping[str, tuple[Value, ...]], most: int | None) -> None:
    size = math.prod(len(values) for values in axes.values())
    if most is not None and size > most:
        sizes = " x ".join(f"{len(values)} {name}" for name, values in axes.items() if len(values) > 1)  # fmt: skip
        msg = f"asks for {sizes} = {size:,} points, over the limit of {most:,}; shorten a list, or say --yes - at `$`"
        raise InputError(msg)


def _without(asked: list[Point], skip: tuple[Lists, ...]) -> list[Point]:
    """The points that no entry of `skip` matches: one matches where every key it says does."""
    kept = asked
    for at, entry in enumerate(skip):
        path = f"$.skip[{at}]"
        said = {FIELDS[name]: found for name in FIELDS if (found := _values(entry, name, path))}
        if not said:
            msg = f"says nothing, and would leave every point out; say what to skip - at `{path}`"
            raise InputError(msg)
        matched = {point for point in asked if all(getattr(point, name) in v for name, v in said.items())}  # fmt: skip
        if not matched:
            msg = f"matches no point of the product; correct it or take it out - at `{path}`"
            raise InputError(msg)
        kept = [point for point in kept if point not in matched]
    return kept


def _single(entry: Lists, axes: Mapping[str, tuple[Value, ...]], path: str) -> Point:
    """A point of its own; what it does not say is the file's value, where that is one."""
    values: dict[str, Value] = {}
    for name, axis in axes.items():
        said = _values(entry, name, path)
        one = said or axis
        if len(one) > 1:
            why = f"lists {len(said)} of" if said else f"does not say, and the file lists {len(axis)} of,"  # fmt: skip
            msg = f"is a single point and {why} `{name}`; give one - at `{path}`"
            raise InputError(msg)
        values[name] = one[0]
    return _point(values)


def _point(values: Mapping[str, Value]) -> Point:
    return Point(**cast("dict[str, Any]", {FIELDS[name]: value for name, value in values.items()}))


def _default(name: str) -> Value:
    default: Value = msgspec.structs.fields(Point)[list(FIELDS).index(name)].default
    return default


def _values(lists: Lists, name: str, path: str) -> tuple[Value, ...]:
    """What a key says, read and each value once; nothing where it is not there."""
    given = getattr(lists, name)
    if given is UNSET:
        return ()
    if given == ():
        msg = f"is an empty list, which makes a sweep of no points; give a value, or leave the key out - at `{path}.{name}`"
        raise InputError(msg)
    return tuple(dict.fromkeys(_read_all(name, given, f"{path}.{name}")))


def _read_all(name: str, given: Value | tuple[Value, ...], path: str) -> Iterator[Value]:
    items = given if isinstance(given, tuple) else (given,)
    for at, item in enumerate(items):
        try:
            yield _READERS[name](item)
        except InputError as error:
            where = f"{path}[{at}]" if isinstance(given, tuple) else path
            msg = f"{error} - at `{where}`"
            raise InputError(msg) from error


def _text(value: Value) -> Value:
    if not str(value).strip():
        msg = "is empty; give a name"
        raise InputError(msg)
    return str(value).strip()


def _tokens(value: Value) -> Value:
    count = units.parse(str(value), "tokens")
    if count < 1 or count != int(count):
        msg = f"{value!r} is no count of tokens; give a whole number from 1 on, as 4096 or 4k"
        raise InputError(msg)
    return int(count)


def _seconds(value: Value) -> Value:
    return None if value is None else units.parse(str(value), "s")


def _rate(value: Value) -> Value:
    if value is None:
        return None
    rate_per_s = units.parse(str(value), "per_s")
    if rate_per_s == 0:
        msg = f"{value!r} asks for nothing; give a rate above 0, or null for as many as the fleet can"  # fmt: skip
        raise InputError(msg)
    return rate_per_s


def _backend(value: Value) -> Value:
    if value is not None and value not in BACKENDS:
        msg = f"no engine is called {value!r}; there are {', '.join(BACKENDS)}, and null for a blend of them"
        raise InputError(msg)
    return value


def _engine_args(value: Value) -> Value:
    text = str(value or "").strip()
    read_plan_args(text)
    return text


_READERS: Final[dict[str, Callable[[Value], Value]]] = {
    "model": _text, "on": _text, "input": _tokens, "output": _tokens, "ttft": _seconds, "tpot": _seconds, "rate": _rate,
    "backend": _backend, "engine_args": _engine_args,
}  # fmt: skip
"""How the values of a key are read."""
