"""What `polypod availability` prints, for people and for programs."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from polypod import units
from polypod.catalog.market_schema import Reliability, Repair
from polypod.catalog.site import find_site, site_title
from polypod.cli.cited import Sources
from polypod.report.tables import entry, table
from polypod.simulate.availability import MINUTES, Availability, Runs, SparesFor
from polypod.simulate.closed_form import ClosedForm, hits_R
from polypod.simulate.demand import Demand, needed_alone
from polypod.simulate.failure_rates import ONLY_CLAIMED, Rate
from polypod.simulate.seats import Recovery, Seated, sources


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Everything that was asked, service by service; `bare` is without spares."""

    runs: Runs
    rates: dict[str, Rate]
    unrated: tuple[str, ...]
    found: tuple[Availability, ...]
    closed: tuple[ClosedForm, ...]
    spares: tuple[tuple[SparesFor, ...], ...]
    bare: tuple[Availability, ...]
    bare_closed: tuple[ClosedForm, ...]


def answer_json(answer: Answer) -> dict[str, Any]:
    """Shares of 1, minutes of a year, seconds."""
    runs = answer.runs
    return {
        "years": runs.years,
        "runs": len(runs.timelines),
        "failures": runs.failures,
        "services": [_service_json(answer, number) for number in range(len(answer.found))],
        "rates": {name: _rate_json(rate) for name, rate in answer.rates.items()},
        "not_drawn": list(answer.unrated),
        "recovery": asdict(runs.seated.recovery) | {"sources": sources()},
        "idle_cards": idle_cards(runs.seated),
        "assumed": _assumed(runs),
    }


def _service_json(answer: Answer, number: int) -> dict[str, Any]:
    demand = answer.runs.demands[number]
    return asdict(answer.found[number]) | {
        "pools": _pools(answer.runs, demand),
        "markov": asdict(answer.closed[number]),
        "without_spares": {"up_fraction": asdict(answer.bare[number].up_fraction), "markov": asdict(answer.bare_closed[number])},
        "spares_for": [asdict(one) for one in answer.spares[number]],
    }  # fmt: skip


def _rate_json(rate: Rate) -> dict[str, Any]:
    return {
        "mtbf_s": rate.mtbf_s,
        "mtbf_limits_s": rate.mtbf_limits_s,
        "mttr_s": rate.repair_s,
        "shape": rate.shape,
        "counted": rate.counted,
        "mttr_from": rate.repair,
        "records": list(rate.records),
    }


def _pools(runs: Runs, demand: Demand) -> dict[str, dict[str, Any]]:
    """Replicas, what the traffic needs of them, and the failures a year that stop one."""
    return {
        name: {"replicas": demand.replicas[p], "needed": needed_alone(demand, p)}
        for p, name in enumerate(demand.pools)
    }


def answer_text(answer: Answer) -> str:
    """Tables and paragraphs of at most 80 columns."""
    lines = [_head(answer), ""]
    for number in range(len(answer.found)):
        lines += [*_service(answer, number), ""]
    marks = Sources()
    lines += [*_rates(answer, marks), ""]
    lines += [*_told(answer)]
    return "\n".join([*lines, *marks.lines()])


def _head(answer: Answer) -> str:
    runs = answer.runs
    years = len(runs.timelines) * runs.years
    cards = sum(part.cards for part in runs.seated.placed.parts)
    return f"{len(runs.timelines)} runs of {runs.years:g} years of {cards:,} cards: {runs.failures:,} failures in {years:,.6g} years"


def _service(answer: Answer, number: int) -> Iterator[str]:
    demand, found = answer.runs.demands[number], answer.found[number]
    yield f"{found.model}, {demand.says}"
    for p, name in enumerate(demand.pools):
        needed = needed_alone(demand, p)
        replicas = demand.replicas[p]
        text = f"{replicas} replica{'s' * (replicas > 1)}" + (
            f", {needed} needed" if needed else ", with others"
        )
        yield entry(name, text)
    yield entry("up", f"{_percent(found.up_fraction.mean)} of the time [{_percent(found.up_fraction.low)}, {_percent(found.up_fraction.high)}]")  # fmt: skip
    yield entry("Markov", _markov(answer.closed[number]))
    yield entry("down", _down(answer.runs, found))
    if found.minutes_by_cause:
        causes = ", ".join(f"{name} {_minutes(value)}" for name, value in found.minutes_by_cause.items())  # fmt: skip
        yield entry("of that", causes)
    yield entry("capacity", _capacity(found.capacity))
    if _spares(answer):
        yield entry("no spares", f"{_percent(answer.bare[number].up_fraction.mean)}, Markov {_markov(answer.bare_closed[number])}")  # fmt: skip
    for one in answer.spares[number]:
        yield entry(f"{100 * one.target_fraction:g} %", _target(one))


def _capacity(capacity: Mapping[str, float]) -> str:
    """Shares of the time with the same capacity together.

    >>> _capacity({"50": 1.25, "90": 1.25, "99": 0.8})
    'at least 125 % of the traffic in 50 to 90 % of the time, 80 % in 99 %'
    """
    parts: list[str] = []
    for least, group in groupby(capacity.items(), key=lambda item: item[1]):
        shares = [share for share, _ in group]
        span = shares[0] if len(shares) == 1 else f"{shares[0]} to {shares[-1]}"
        words = ("of the traffic ", " of the time") if not parts else ("", "")
        parts.append(f"{100 * least:.4g} % {words[0]}in {span} %{words[1]}")
    return f"at least {', '.join(parts)}"


def _spares(answer: Answer) -> bool:
    recovery = answer.runs.seated.recovery
    return bool(recovery.spares or recovery.spare_fraction)


def _percent(share: float) -> str:
    """As many digits as tell it from 100 %, and two more.

    >>> _percent(0.9), _percent(0.99987), _percent(0.999999987), _percent(1.0)
    ('90 %', '99.987 %', '99.9999987 %', '100 %')
    """
    down = 1 - share
    places = 1
    while places < 9 and down * 10**places < 1:
        places += 1
    return f"{round(100 * share, places):.{places}f}".rstrip("0").rstrip(".") + " %"


def _minutes(value: float) -> str:
    return units.show(60 * value, "s")


def _down(runs: Runs, found: Availability) -> str:
    years = len(runs.timelines) * runs.years
    low, high = _minutes(found.down_minutes.low), _minutes(found.down_minutes.high)
    if not found.seen_outages:
        return f"no outage in {years:g} years: fewer than {3.69 / years:.2g} a year, {high} a year (95 %)"
    return f"{_minutes(found.down_minutes.mean)} a year [{low}, {high}], {found.outages_per_year:.3g} outages a year ({found.seen_outages} seen)"


def _markov(closed: ClosedForm) -> str:
    if closed.up_fraction is None:
        return f"no answer: {closed.why_not}"
    down = _minutes(MINUTES * (1 - closed.up_fraction))
    return f"{_percent(closed.up_fraction)}, {down} a year, if replicas failed independently"


def _target(one: SparesFor) -> str:
    allowed = _minutes(MINUTES * (1 - one.target_fraction))
    if one.spares is None:
        return f"({allowed} a year) no number of spares: {_percent(one.up_fraction)} with more than can be used"
    spares = "no spares needed" if one.spares == 0 else f"{one.spares} spare card{'s' * (one.spares > 1)} for each part of the fleet"  # fmt: skip
    return f"({allowed} a year) {spares}: {_percent(one.up_fraction)}"


def _rates(answer: Answer, marks: Sources) -> Iterator[str]:
    seated = answer.runs.seated
    rows = []
    for name, rate in answer.rates.items():
        each = float(hits_R(seated, rate).mean()) * rate.per_year
        cited = "".join(marks.mark(_source(record)) for record in rate.records)
        a_year = f"{each:.3g}" if rate.kind.what in ("crash", "hang") else "is up"
        rows.append([name, f"{rate.mtbf_s / 3600:,.0f} h", units.show(rate.repair_s, "s"), a_year, f"{rate.counted} {cited}"])  # fmt: skip
    yield table(["fails", "MTBF", "MTTR", "a year", "counted"], rows, right=(1, 2, 3))
    yield "a year: failures that stop a replica, of each replica on average"
    told = [f"{name} {low / 3600:,.0f} to {high / 3600:,.0f} h" for name, (low, high) in _limits(answer)]  # fmt: skip
    if told:
        yield entry("counts say", f"{', '.join(told)}: 95 % by how few were seen, were those fleets like yours")  # fmt: skip


def _limits(answer: Answer) -> Iterator[tuple[str, tuple[float, float]]]:
    for name, rate in answer.rates.items():
        if rate.mtbf_limits_s is not None:
            yield name, rate.mtbf_limits_s


def _source(record: str) -> str:
    """What a record is, how far to trust it, and where it was read."""
    found = find_site(record)
    assert isinstance(found, Reliability | Repair), "only these are read"
    return f"{record}: {site_title(found)}; {found.basis}, confidence {found.confidence}: {found.sources[0].text}"


def _told(answer: Answer) -> Iterator[str]:
    runs = answer.runs
    recovery = runs.seated.recovery
    yield entry("not drawn", f"{', '.join(answer.unrated)}: no count on record; say --mtbf KIND=TIME")  # fmt: skip
    claimed = {name: ONLY_CLAIMED[name] for name in answer.unrated if name in ONLY_CLAIMED}
    if claimed:
        yield entry("", f"of {' and '.join(claimed)} see `polypod catalog show {next(iter(claimed.values()))}`")  # fmt: skip
    yield entry("recovery", _recovery_text(recovery, max(runs.seated.seats.load_s_R.tolist())))
    for name, cards in idle_cards(runs.seated).items():
        yield entry("idle", f"{cards:,} cards of {name!r} hold no replica: as many spares are there already")  # fmt: skip
    for note in _assumed(runs):
        yield entry("assumed", note)


def idle_cards(seated: Seated) -> dict[str, int]:
    """Cards of each part that no replica is on, where there are any."""
    used = np.zeros(seated.placed.cards, dtype=np.bool_)
    for first, end in zip(seated.seats.first_card_R, seated.seats.end_card_R, strict=True):
        used[first:end] = True
    counts = {
        part.name: int(np.count_nonzero(~used[part.first_card : part.first_card + part.cards]))
        for part in seated.placed.parts
    }
    return {name: count for name, count in counts.items() if count}


def _recovery_text(recovery: Recovery, load_s: float) -> str:
    crews = f"{recovery.crews} crew{'s' * (recovery.crews > 1)}" if recovery.crews else "crews enough"  # fmt: skip
    spares = f"{recovery.spares} spare card{'s' * (recovery.spares > 1)} for each part" if recovery.spares else f"{100 * recovery.spare_fraction:g} % of each part as spare cards" if recovery.spare_fraction else "no spares"  # fmt: skip
    return (
        f"{spares}, {crews}; a spare stands in after {units.show(recovery.failover_s, 's')}, a hang is noticed after {units.show(recovery.detect_s, 's')}; "
        f"a replica then restarts and loads in {units.show(load_s, 's')} at {units.show(recovery.storage_bytes_per_s, 'bytes_per_s')} a card"
    )


def _assumed(runs: Runs) -> list[str]:
    return [note for part in runs.seated.placed.parts for note in part.assumed]
