"""Two runs side by side: every metric, the difference with a 95 % interval, and whether they are told apart.

Intervals are those of `blocks.py`. Two runs are *paired* where they played the same trace (its hash in the header, and the same requests in the record).
Rates are per second in which requests arrived, so how long the last of them takes is not in them. A metric *differs* where its interval leaves out zero. With twenty metrics of two runs that are the same, one is expected to do so by chance.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
import numpy as np

from polypod import units
from polypod.plan.spec import Slo
from polypod.record import Header
from polypod.report.blocks import (
    FEWEST_BLOCKS,
    RESAMPLES,
    block_of,
    blocks_for,
    draw,
    interval,
    quantiles,
    ratios,
)
from polypod.report.outcomes import TRANSFER, Bools, Floats, Ints, Outcomes
from polypod.report.slos import inside, plan_slos
from polypod.report.tables import WIDTH, table

Verdict = Literal["differs", "not told apart", "not judged"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One metric of both runs; the name wears its unit. NaN where a run has nothing of it."""

    of: str  # `run`, `model NAME` or `pool NAME`
    name: str
    a: float
    b: float
    low: float | None  # of b - a; None: too few requests for an interval
    high: float | None

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def verdict(self) -> Verdict:
        if self.low is None or self.high is None:
            return "not judged"
        return "not told apart" if self.low <= 0 <= self.high else "differs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """Two runs compared."""

    is_paired: bool
    blocks: int
    apart: tuple[str, ...]  # how their headers differ
    notes: tuple[str, ...]
    rows: tuple[Compared, ...]


def diff(
    a: Outcomes,
    b: Outcomes,
    slos: Mapping[str, Slo] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Diff:
    """Compare two records. SLOs: those of each run's plan unless given."""
    is_paired = _is_paired(a, b)
    blocks = blocks_for(list(zip(_watched(a), _watched(b), strict=True)))
    weight = draw(max(blocks, 1), seed=seed, resamples=resamples)
    sides = (_side(a, slos, weight), _side(b, slos, weight))
    rows = tuple(row for of, one, other in _scopes(*sides) for row in _rows(of, one, other, blocks))
    return Diff(
        is_paired=is_paired,
        blocks=blocks,
        apart=tuple(_apart(a.header, b.header)),
        notes=tuple(_notes(a, b, slos, is_paired=is_paired, blocks=blocks)),
        rows=rows,
    )


def _is_paired(a: Outcomes, b: Outcomes) -> bool:
    """The same trace was played, and both records have its requests."""
    sha = a.header.trace_sha256 if a.header else None
    same = sha is not None and b.header is not None and b.header.trace_sha256 == sha
    return same and np.array_equal(a.requests.number, b.requests.number)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Side:
    """One run with what the metrics of a part of it are made from; `these` [N] are the requests of the part."""

    outcomes: Outcomes
    kept: Bools
    block: Ints
    span_s: Floats  # of each block [K]
    weight: Floats  # how often each block is drawn [R, K]
    these: Bools
    stayed_s: Floats  # of each request [N], at the replicas of the part
    slots: float  # there, mean over the run


def _watched(outcomes: Outcomes) -> tuple[Floats, ...]:
    """What blocks must be independent in: the whole time of a request, and the wait for its first token."""
    requests = outcomes.requests
    end_s = np.where(np.isfinite(requests.end_s), requests.end_s, outcomes.end_s)
    first_s = np.where(np.isfinite(requests.first_s), requests.first_s, end_s)
    return end_s - requests.arrival_s, first_s - requests.arrival_s


def _side(outcomes: Outcomes, slos: Mapping[str, Slo] | None, weight: Floats) -> _Side:
    n, blocks = len(outcomes), weight.shape[1]
    block = block_of(n, blocks)
    stays = outcomes.stays
    held = stays.role != TRANSFER
    return _Side(
        outcomes=outcomes,
        kept=inside(outcomes, plan_slos(outcomes.plans) if slos is None else slos),
        block=block,
        span_s=_spans_s(outcomes, block, blocks),
        weight=weight,
        these=np.ones(n, dtype=bool),
        stayed_s=_stayed_s(outcomes, held),
        slots=_slots(outcomes, range(len(outcomes.replicas))),
    )


def _stayed_s(outcomes: Outcomes, these: Bools) -> Floats:
    stays = outcomes.stays
    lengths_s = (stays.end_s - stays.begin_s)[these]
    return np.bincount(stays.row[these], weights=lengths_s, minlength=len(outcomes)).astype(np.float64)  # fmt: skip


def _slots(outcomes: Outcomes, replicas: Sequence[int]) -> float:
    """Slots that were up for as long as requests arrived, to give all the slot seconds there were."""
    slot_s = sum(outcomes.replicas[n].slots * outcomes.replicas[n].up_s for n in replicas)
    arrival_s = outcomes.requests.arrival_s
    length_s = float(arrival_s[-1] - arrival_s[0]) if len(arrival_s) else 0.0
    return slot_s / length_s if length_s else 0.0


def _spans_s(outcomes: Outcomes, block: Ints, blocks: int) -> Floats:
    """How long each block's requests arrived."""
    arrival_s = outcomes.requests.arrival_s
    if not len(arrival_s):
        return np.zeros(blocks)
    firsts = np.searchsorted(block, np.arange(blocks))
    return np.asarray(np.diff(np.append(arrival_s[firsts], arrival_s[-1])))


def _scopes(a: _Side, b: _Side) -> Iterator[tuple[str, _Side, _Side]]:
    """The whole run; each model and each pool that both have, where there are several."""
    yield "run", a, b
    models = [name for name in a.outcomes.models if name in b.outcomes.models]
    if len({*a.outcomes.models, *b.outcomes.models}) > 1:
        for model in models:
            yield f"model {model}", _of_model(a, model), _of_model(b, model)
    for pool in a.outcomes.pools:
        if pool in b.outcomes.pools and len({*a.outcomes.pools, *b.outcomes.pools}) > 1:
            yield f"pool {pool}", _of_pool(a, pool), _of_pool(b, pool)


def _of_model(side: _Side, model: str) -> _Side:
    outcomes = side.outcomes
    these = outcomes.requests.model == outcomes.models.index(model)
    replicas = [n for n, one in enumerate(outcomes.replicas) if one.model == model]
    return _part(side, np.asarray(these), replicas)


def _of_pool(side: _Side, pool: str) -> _Side:
    """The requests that were answered by the pool, or whose prompts it computed where it does nothing else."""
    outcomes = side.outcomes
    replicas = outcomes.of_pool(pool)
    these = np.isin(outcomes.requests.decode_replica, replicas)
    these |= np.isin(outcomes.served_at, replicas)
    return _part(side, these, replicas.tolist())


def _part(side: _Side, these: Bools, replicas: Sequence[int]) -> _Side:
    outcomes = side.outcomes
    held = np.isin(outcomes.stays.replica, replicas) & (outcomes.stays.role != TRANSFER)
    return _Side(
        outcomes=outcomes,
        kept=side.kept,
        block=side.block,
        span_s=side.span_s,
        weight=side.weight,
        these=these,
        stayed_s=_stayed_s(outcomes, held),
        slots=_slots(outcomes, replicas),
    )


# ---- metrics

_QUANTILES: Final = (0.5, 0.99)


def _rows(of: str, a: _Side, b: _Side, blocks: int) -> Iterator[Compared]:
    first, second = _metrics(of, a), _metrics(of, b)
    for name, (value, redrawn) in first.items():
        other, others = second[name]
        if math.isnan(value) and math.isnan(other):
            continue
        ends = interval(other - value, others - redrawn, blocks)
        low, high = ends or (None, None)
        yield Compared(of=of, name=name, a=value, b=other, low=low, high=high)


def _metrics(of: str, side: _Side) -> dict[str, tuple[float, Floats]]:
    """By name: the value, and that of every draw [R]."""
    found = _ratios(of, side)
    outcomes = side.outcomes
    for name, values in (("ttft", outcomes.ttft_s), ("tpot", outcomes.tpot_s), ("e2e", outcomes.e2e_s)):  # fmt: skip
        known = side.these & np.isfinite(values)
        its = values[known]
        redrawn = quantiles(side.weight, its, side.block[known], _QUANTILES)
        for n, at in enumerate(_QUANTILES):
            seen = float(np.quantile(its, at)) if len(its) else math.nan
            found[f"{name}_p{100 * at:g}_s"] = (seen, redrawn[:, n])
    return found


def _ratios(of: str, side: _Side) -> dict[str, tuple[float, Floats]]:
    outcomes, blocks = side.outcomes, side.weight.shape[1]
    requests, these = outcomes.requests, side.these
    refused = these & np.isfinite(requests.end_s) & ~outcomes.finished
    tokens = np.where(these, requests.output_tokens, 0)

    def by_block(values: Any) -> Floats:  # noqa: ANN401 (numbers or truths [N])
        return np.bincount(side.block, weights=values, minlength=blocks).astype(np.float64)

    among = by_block(these)
    everyone = by_block(np.ones(len(outcomes)))
    made = {
        "goodput_fraction": (by_block(these & side.kept), among),
        "unserved_fraction": (by_block(refused), among),
        "goodput_per_s": (by_block(these & side.kept), side.span_s),
        "output_tokens_per_s": (by_block(tokens), side.span_s),
        "slots_fraction": (by_block(side.stayed_s), side.span_s * side.slots),
    }
    if of.startswith("pool "):
        made = {"request_share": (among, everyone), **made}
    return {
        name: (_over(float(above.sum()), float(below.sum())), ratios(side.weight, above, below))
        for name, (above, below) in made.items()
    }


def _over(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan


# ---- how the runs themselves differ


def _apart(a: Header | None, b: Header | None) -> Iterator[str]:
    if a is None or b is None:
        return
    for name in ("kind", "polypod", "seed"):
        if getattr(a, name) != getattr(b, name):
            yield f"{name}: {getattr(a, name)} and {getattr(b, name)}"
    if a.trace_sha256 != b.trace_sha256:
        yield f"traffic: {_sha(a.trace_sha256)} and {_sha(b.trace_sha256)}"
    for what in ("plan", "policy"):
        one, other = (_plain(getattr(header, what)) for header in (a, b))
        found = list(_unlike(what, one, other))
        yield from found[:_MOST_APART]
        if len(found) > _MOST_APART:
            yield f"{what}: {len(found) - _MOST_APART} more"


_MOST_APART: Final = 6


def _plain(value: object) -> Any:  # noqa: ANN401 (a JSON value)
    """As a record's file holds it: lists, where a header in memory has tuples."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _sha(sha: str | None) -> str:
    return "unknown" if sha is None else sha[:8]


def _unlike(path: str, a: object, b: object) -> Iterator[str]:
    """Leaves of two JSON values that are not the same."""
    if a == b:
        return
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            yield from _unlike(f"{path}.{key}", a.get(key), b.get(key))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for n, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _unlike(f"{path}[{n}]", one, other)
    else:
        yield f"{path}: {_leaf(a)} and {_leaf(b)}"


def _leaf(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 24 else f"{text[:21]}..."


def _notes(
    a: Outcomes, b: Outcomes, slos: Mapping[str, Slo] | None, *, is_paired: bool, blocks: int
) -> Iterator[str]:
    for name, one in (("A", a), ("B", b)):
        if one.note:
            yield f"{name}: {one.note}"
    if slos is None and plan_slos(a.plans) != plan_slos(b.plans):
        yield "the plans promise different SLOs; each run's goodput is by its own"
    same_trace = a.header and b.header and a.header.trace_sha256 == b.header.trace_sha256
    if same_trace and not is_paired and a.header and a.header.trace_sha256:
        yield "both played the same trace, but the records do not hold the same requests: not paired"
    for kind, ours, theirs in (("model", a.models, b.models), ("pool", a.pools, b.pools)):
        only = sorted(set(ours) ^ set(theirs))
        if only:
            yield f"in one run only, and not compared: {kind} {', '.join(only)}"
    if blocks < FEWEST_BLOCKS:
        yield "too few requests for intervals: 40 or more are needed"


# ---- shown


def diff_text(found: Diff, *, everything: bool = False) -> str:
    """What differs, or every metric; at most 80 columns."""
    how = "paired by request" if found.is_paired else "not paired"
    told = [row for row in found.rows if row.verdict == "differs"]
    judged = sum(row.verdict != "not judged" for row in found.rows)
    head = f"{len(told)} of {judged} metrics differ, by chance {0.05 * judged:.0f} would; {how}, {found.blocks} blocks"  # fmt: skip
    lines = [_clip(head)]
    lines += [_clip(f"apart: {text}") for text in found.apart]
    lines += [_clip(f"note: {text}") for text in found.notes]
    shown = found.rows if everything else [row for row in found.rows if row.of == "run" or row in told]  # fmt: skip
    for of in dict.fromkeys(row.of for row in shown):
        rows = [_cells(row) for row in shown if row.of == of]
        header = [of[:22], "A", "B", "B - A", "from", "to", ""]
        lines += ["", table(header, rows, right=(1, 2, 3, 4, 5))]
    if len(shown) < len(found.rows):
        lines += ["", f"... and {len(found.rows) - len(shown)} more that are not told apart: --all"]
    return "\n".join(lines)


def _clip(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


def _cells(row: Compared) -> list[str]:
    least = 1e-9 * max(abs(row.a), abs(row.b))  # of what sums leave behind
    values = [
        0.0 if value is not None and abs(value) < least else value
        for value in (row.a, row.b, row.difference, row.low, row.high)
    ]
    shown = row.name.replace("_per_s", "/s").removesuffix("_s").removesuffix("_fraction")
    return [shown, *(_shown(row.name, value) for value in values), row.verdict]


def _shown(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "?"
    if name.endswith(("_fraction", "_share")):
        return f"{100 * value:.2f} %"
    return units.significant(value) if name.endswith("_per_s") else units.show(value, "s")


def diff_json(found: Diff) -> dict[str, Any]:
    """The whole comparison as one object."""
    raw: dict[str, Any] = msgspec.to_builtins(found)
    for row, entry in zip(found.rows, raw["rows"], strict=True):
        entry |= {"difference": row.difference, "verdict": row.verdict}
        for name in ("a", "b", "difference"):
            entry[name] = None if math.isnan(entry[name]) else entry[name]
    return raw
