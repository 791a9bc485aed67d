"""Rows predicted twice: by the closed form, and by playing their benchmark; both scored over the same rows.

Of sweeps the closed form knows two constants that were set while looking at them, and the play none (`scheduling.sent`). So the closed form is
scored without them too.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from polypod.cost.bands import METRICS, Metric
from polypod.engine.settings import NOTHING, EngineArgs
from polypod.errors import PolypodError
from polypod.validate.played import Played
from polypod.validate.predict import as_sent, played, reason_of
from polypod.validate.scores import Score, Scored, score


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One row under both. `of_play` has the played means in the place of the predicted ones, `as_sent` those of the formula under the load that is played."""

    formula: Scored
    as_sent: Scored
    of_play: Scored
    play: Played


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """One metric of some rows: how far off the formula is, how far it is without what was set on sweeps, and how far the play."""

    name: str
    metric: Metric
    formula: Score
    as_sent: Score
    of_play: Score


def paired(
    found: Iterable[Scored],
    *,
    without: frozenset[str] = frozenset(),
    said: EngineArgs = NOTHING,
) -> tuple[list[Pair], Counter[str]]:
    """Play every row that has a prediction; those that cannot be played are counted by why."""
    pairs: list[Pair] = []
    reasons: Counter[str] = Counter()
    for one in found:
        if one.prediction is None:
            continue
        try:
            play = played(one.row, without=without, said=said)
            times = as_sent(one.row, without=without, said=said)
        except PolypodError as error:
            reasons[reason_of(error)] += 1
            continue
        means = replace(one.prediction, ttft_s=play.ttft_s, tpot_s=play.tpot_s)
        plain = replace(one.prediction, ttft_s=times.ttft_s, tpot_s=times.tpot_s)
        pairs.append(
            Pair(
                formula=one,
                as_sent=replace(one, prediction=plain),
                of_play=replace(one, prediction=means),
                play=play,
            )
        )
    return pairs, reasons


_MODES: Final = {"agg": "co-located", "disagg": "P/D"}


def kind_name(one: Scored) -> str:
    """How it was measured and served: a benchmark's dump or a sweep, in one place or apart, drafting or not, and the engine."""
    row = one.row
    drafts = " +drafts" if row.speculative else ""
    return f"{'sweep' if row.sweep else 'dump'} {_MODES[row.mode]}{drafts} {row.backend}"


def cell_name(one: Scored) -> str:
    """System, engine and model, as the scores by cell name them."""
    row = one.row
    model = f"{row.model.rpartition('/')[2][:20]}{' +drafts' if row.speculative else ''}"
    return f"{row.system} {row.backend}{' P/D' if row.mode == 'disagg' else ''} {model}"


def by_kind(pairs: Sequence[Pair]) -> list[Beside]:
    """All rows, then benchmark dumps and sweeps, then each kind of them."""
    named = {"all": list(pairs)}
    for name, is_sweep in (("dumps", False), ("sweeps", True)):
        named[name] = [one for one in pairs if one.formula.row.sweep is is_sweep]
    cells: dict[str, list[Pair]] = defaultdict(list)
    for one in pairs:
        cells[kind_name(one.formula)].append(one)
    return _scored(named | dict(sorted(cells.items())))


def by_cell(pairs: Sequence[Pair]) -> list[Beside]:
    cells: dict[str, list[Pair]] = defaultdict(list)
    for one in pairs:
        cells[cell_name(one.formula)].append(one)
    return _scored(dict(sorted(cells.items())))


def _scored(named: dict[str, list[Pair]]) -> list[Beside]:
    lines = []
    for name, pairs in named.items():
        for metric in METRICS:
            formula = score((one.formula for one in pairs), metric)
            plain = score((one.as_sent for one in pairs), metric)
            of_play = score((one.of_play for one in pairs), metric)
            if formula is not None and plain is not None and of_play is not None:
                lines.append(Beside(name=name, metric=metric, formula=formula, as_sent=plain, of_play=of_play))  # fmt: skip
    return lines
