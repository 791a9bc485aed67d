"""The formula and the play with like freedom: what each has set on rows is set again on those that are not judged.

The formula has two constants of sweeps, prompts that one waits for and requests a client, set here to the least median error of TTFT over the sweeps
of all other models (layouts, engines, systems). The play has what hosts take (`host.GRIDS`), set to the least median error of TPOT over the other rows of the same engine and
version; its TTFT has no part in it. Where no row is left that tells, the formula takes the constants of dumps and the play none.

Other constants stay as they are: 20 ms of every TTFT and the launching of kernels, which both have, and the 1.2 prompts of dumps, which the formula alone has. Both
read the cache of sweeps as it lay in memory.
`and tokenising` is the formula with `host.TOKENISING_S` added, which the play has, and its two constants set with that.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

import numpy as np
from numpy.typing import NDArray

from polypod.cost.bands import Metric
from polypod.engine.closed_loop import Times
from polypod.errors import PolypodError
from polypod.validate.host import GRIDS, TOKENISING_S, UNKNOWN, Host, host_of
from polypod.validate.predict import played, with_load
from polypod.validate.rows import Row

Floats = NDArray[np.float64]

STARTS: Final = (1.2, 1.6, 2.0, 2.4, 2.7, 3.0, 3.4, 3.8, 4.4)
"""Prompts that one waits for."""

WAVES: Final = (3.0, 4.0, 5.0, 6.0, 7.0, 8.5, 10.0, 12.0, 15.0, 20.0)
"""Requests a client."""

_OF_DUMPS: Final = (1.2, 10.0)

_METRICS: Final[tuple[Metric, ...]] = ("ttft", "tpot")

_ADDED_S: Final = (0.0, TOKENISING_S)
"""For a token of a prompt: what the two columns of the formula add."""

FOLDS: Final[dict[str, Callable[[Row], object]]] = {
    "a model": lambda row: row.model.rpartition("/")[2],
    "a layout": lambda row: row.workers.layout,
    "an engine": lambda row: row.backend,
    "a system": lambda row: row.system,
}

FILE: Final = "played_held_out.csv"
HEADER: Final = ("left out", "rows", "metric", "n", "formula", "and tokenising", "played")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Rows N under every choice of constants C, in seconds; metrics M are TTFT and TPOT. `formula` is of sweeps, and the same for all choices of a dump."""

    rows: tuple[Row, ...]
    measured_s_NM: Floats  # NaN: not measured
    formula_s_NCM: Floats
    played: tuple[dict[Host, tuple[float, float]], ...]  # by what is tried of its host

    @property
    def input_tokens_N(self) -> Floats:
        return np.array([row.input_tokens for row in self.rows])


def try_all(rows: Sequence[Row]) -> Tried:
    """Predict and play each row under all choices; rows that cannot be are left out. A minute for those that ship."""
    kept, formula, plays = [], [], []
    for row in rows:
        try:
            by_host = {host: played(row, host=host) for host in _hosts(row)}
            formula.append(_formulas(row))
        except PolypodError:
            continue
        kept.append(row)
        plays.append({host: (play.ttft_s, play.tpot_s) for host, play in by_host.items()})
    measured = [[np.nan if value is None else value for value in (row.ttft_s, row.tpot_s)] for row in kept]  # fmt: skip
    return Tried(
        rows=tuple(kept),
        measured_s_NM=np.array(measured, dtype=float),
        formula_s_NCM=np.array(formula),
        played=tuple(plays),
    )


def _hosts(row: Row) -> tuple[Host, ...]:
    return GRIDS.get((row.backend, row.version), (UNKNOWN,)) if row.sweep else (UNKNOWN,)


def _formulas(row: Row) -> list[list[float]]:
    """Seconds by choice and metric."""
    choices = [(start, waves) for start in STARTS for waves in WAVES]
    if not row.sweep:
        return [_seconds(with_load(row, *_OF_DUMPS))] * len(choices)
    return [_seconds(with_load(row, *choice)) for choice in choices]


def _seconds(times: Times) -> list[float]:
    return [times.ttft_s, times.tpot_s]


def chosen_hosts(tried: Tried, is_judged: NDArray[np.bool_]) -> dict[tuple[str, str], Host]:
    """By engine and version, what has the least median error of TPOT over the rows that are not judged; `UNKNOWN` where none tells."""
    found = {}
    for engine, grid in GRIDS.items():
        told = [
            n
            for n, row in enumerate(tried.rows)
            if not is_judged[n] and len(tried.played[n]) > 1 and (row.backend, row.version) == engine
        ]  # fmt: skip
        if not told:
            found[engine] = UNKNOWN
            continue
        errors = [
            _median([tried.played[n][host][1] for n in told], tried.measured_s_NM[told, 1])
            for host in grid
        ]
        found[engine] = grid[int(np.argmin(errors))]
    return found


def chosen_load(tried: Tried, is_judged: NDArray[np.bool_], token_s: float = 0.0) -> int:
    """Which of the formula's choices has the least median error of TTFT over the sweeps that are not judged, `token_s` added for each token of a prompt."""
    told = np.array([row.sweep for row in tried.rows]) & ~is_judged
    if not told.any():
        return STARTS.index(_OF_DUMPS[0]) * len(WAVES) + WAVES.index(_OF_DUMPS[1])
    added_s_N = token_s * tried.input_tokens_N[told]
    errors = [
        _median(formula_s_N + added_s_N, tried.measured_s_NM[told, 0])
        for formula_s_N in tried.formula_s_NCM[told, :, 0].T
    ]
    return int(np.argmin(errors))


def _median(predicted_s_N: Sequence[float] | Floats, measured_s_N: Floats) -> float:
    return float(np.nanmedian(np.abs(np.asarray(predicted_s_N) / measured_s_N - 1)))


def lines(tried: Tried) -> Iterator[tuple[str, ...]]:
    """`HEADER`'s columns: with nothing left out, then with one part at a time of each of `FOLDS` left out. The play of nothing left out is as it ships."""
    nothing = np.zeros(len(tried.rows), dtype=bool)
    shipped = np.array([tried.played[n][host_of(row)] for n, row in enumerate(tried.rows)])
    formulas = [tried.formula_s_NCM[:, chosen_load(tried, nothing, token_s)] for token_s in _ADDED_S]  # fmt: skip
    yield from _scored("nothing", tried, formulas, shipped)
    for name, fold in FOLDS.items():
        yield from _scored(name, tried, *held_out(tried, fold))


def choices(tried: Tried) -> Iterator[tuple[str, str, str]]:
    """What was left out, and what was set without it."""
    for name, fold in FOLDS.items():
        parts = [fold(row) for row in tried.rows]
        for part in sorted(set(parts), key=str):
            is_judged = np.array([one == part for one in parts])
            load = chosen_load(tried, is_judged)
            start, waves = STARTS[load // len(WAVES)], WAVES[load % len(WAVES)]
            hosts = ", ".join(_words(engine, host) for engine, host in chosen_hosts(tried, is_judged).items())  # fmt: skip
            yield name, str(part), f"{start:g} prompts, {waves:g} requests; {hosts}"


def _words(engine: tuple[str, str], host: Host) -> str:
    return f"{' '.join(engine)} {host.prompt_layer_s * 1e3:g} ms a layer, {host.spare_tokens} tokens, {host.gap_s * 1e3:g} ms and {host.gap_sequence_s * 1e6:g} us a sequence"


def held_out(tried: Tried, fold: Callable[[Row], object]) -> tuple[list[Floats], Floats]:
    """Seconds [N, M] of the formula, without and with tokenising, and of the play: each row by what the rows of other parts tell."""
    parts = [fold(row) for row in tried.rows]
    plain, tokenising, play = (np.empty((len(parts), len(_METRICS))) for _ in range(3))
    for part in set(parts):
        is_judged = np.array([one == part for one in parts])
        hosts = chosen_hosts(tried, is_judged)
        for found, token_s in zip((plain, tokenising), _ADDED_S, strict=True):
            found[is_judged] = tried.formula_s_NCM[is_judged, chosen_load(tried, is_judged, token_s)]  # fmt: skip
        for n in np.flatnonzero(is_judged):
            row, tries = tried.rows[n], tried.played[n]
            play[n] = tries[hosts[row.backend, row.version] if len(tries) > 1 else UNKNOWN]
    return [plain, tokenising], play


def _scored(
    name: str, tried: Tried, formulas: Sequence[Floats], played_s_NM: Floats
) -> Iterator[tuple[str, ...]]:
    is_sweep = np.array([row.sweep for row in tried.rows])
    plain, tokenising = formulas[0], formulas[1].copy()
    tokenising[:, 0] += TOKENISING_S * tried.input_tokens_N
    for rows, these in (("all", np.ones(len(is_sweep), dtype=bool)), ("sweeps", is_sweep)):
        for m, metric in enumerate(_METRICS):
            measured = tried.measured_s_NM[these, m]
            errors = [
                f"{_median(found[these, m], measured):.1%}"
                for found in (plain, tokenising, played_s_NM)
            ]
            yield (name, rows, metric.upper(), f"{np.isfinite(measured).sum()}", *errors)


def kept_lines() -> list[list[str]]:
    """What `python scripts/accuracy.py --held-out` found last."""
    text = resources.files("polypod.validate").joinpath("data", FILE).read_text(encoding="utf-8")
    return list(csv.reader(text.splitlines()))[1:]
