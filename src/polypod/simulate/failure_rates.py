"""How often each kind of thing breaks and how long it then takes to repair: the catalog's counts, or what a person says.

A rate is of one component: a card, a node, a rack, one card's link. Defaults are counts on record, divided here and nowhere else:

    mtbf_s = hours of all components watched * 3600 / failures counted

with the 95 % limits of the count as a Poisson one's, which say how few were seen and nothing of how another fleet differs. A mean repair is the
geometric middle of the least and the most on record. What each was counted on:

* cards, nodes, links, software: the 419 interruptions of Llama 3's 54 days, each once (`rel-llama3`);
* uplinks, power feeds: a cloud's 180,000 switches over three months (`rel-azure-switches`). Of those that were not interrupted a share S was left, so that
  failures = -ln S * switches; 28 % were losses of power where a switch stood, which is one feed as a rack sees it, the rest the switch's own. A little of it is
  counted twice: at that rate 9 of Llama 3's 35 failures of switches and cables are of a rack's switch, 3 of its nodes' of a feed.

Kinds that nobody counted have no default (whole islands, a node's way out, slow cards, slow and flapping links), nor have racks and cooling: the one list on record, of
2008 (`rel-google-2008`), has round figures, and for racks more than Llama 3's table has room for. They are drawn where a person gives their rate, and only then.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from polypod import units
from polypod.catalog.market_schema import Reliability, Repair
from polypod.catalog.site import find_site
from polypod.errors import InputError, QuantityError, nearest_names

What = Literal["crash", "hang", "slow", "slow-link", "flap"]
Of = Literal["card", "node", "rack", "island", "cooling", "power", "link card", "link node", "link rack"]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureKind:
    """What breaks and how. What only `restarts` needs no part, no crew and no spare."""

    name: str
    of: Of
    what: What
    restarts: bool = False


KINDS: Final = {
    kind.name: kind
    for kind in (
        FailureKind(name="card", of="card", what="crash"),
        FailureKind(name="node", of="node", what="crash"),
        FailureKind(name="rack", of="rack", what="crash"),
        FailureKind(name="island", of="island", what="crash"),
        FailureKind(name="cooling", of="cooling", what="crash"),
        FailureKind(name="power", of="power", what="crash"),
        FailureKind(name="link", of="link card", what="crash"),
        FailureKind(name="nic", of="link node", what="crash"),
        FailureKind(name="uplink", of="link rack", what="crash"),
        FailureKind(name="software", of="card", what="crash", restarts=True),
        FailureKind(name="hang", of="card", what="hang", restarts=True),
        FailureKind(name="slow-card", of="card", what="slow"),
        FailureKind(name="slow-link", of="link card", what="slow-link"),
        FailureKind(name="slow-nic", of="link node", what="slow-link"),
        FailureKind(name="slow-uplink", of="link rack", what="slow-link"),
        FailureKind(name="flap", of="link card", what="flap"),
    )
}
"""Every kind of failure that has a rate, by the name that flags give it. Whoever looks after a process restarts software."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """One kind of failure. `shape` is Weibull's: 1 never ages, below 1 fails early, above 1 wears out; the mean stays `mtbf_s`."""

    kind: FailureKind
    mtbf_s: float  # of one component
    repair_s: float  # the mean
    counted: str  # what the MTBF is from: a count, or the flag that says it
    repair: str  # and the mean repair
    records: tuple[str, ...] = ()  # of the catalog, that these are read in
    watched_s: float = 0.0  # of all components that the count is of; 0: it is from none
    shape: float = 1.0
    factor: float = 1.0  # of what is slow: times as long
    burst_s: float = 0.0  # of a flapping link: slow for so long,
    every_s: float = 0.0  # once in so long

    @property
    def per_year(self) -> float:
        """Failures of one component in a year of 365 days."""
        return YEAR_S / self.mtbf_s

    @property
    def failures(self) -> float:
        """That were counted."""
        return self.watched_s / self.mtbf_s

    @property
    def mtbf_limits_s(self) -> tuple[float, float] | None:
        """What the MTBF may be by the number of failures alone, 95 %; None where it is from no count."""
        if not self.watched_s:
            return None
        few, many = poisson_limits(self.failures)
        return self.watched_s / many, self.watched_s / few


def poisson_limits(count: float) -> tuple[float, float]:
    """The 95 % limits of what a Poisson count may be the mean of (Byar's approximation).

    >>> [round(limit, 1) for limit in poisson_limits(35)]  # exactly 24.4 and 48.7
    [24.4, 48.7]
    >>> [round(limit, 1) for limit in poisson_limits(0)]  # exactly 0 and 3.7
    [0.0, 3.7]
    """
    more = count + 1
    high = more * (1 - 1 / (9 * more) + 1.96 / (3 * math.sqrt(more))) ** 3
    if not count:
        return 0.0, high
    return count * max(0.0, 1 - 1 / (9 * count) - 1.96 / (3 * math.sqrt(count))) ** 3, high


YEAR_S: Final = 365 * 86400.0
_MONTH_H: Final = 365 * 24 / 12

_CARD: Final = ("faulty_gpu_incl_nvlink", "gpu_hbm3", "gpu_sram", "gpu_system_processor", "silent_data_corruption", "gpu_thermal")  # fmt: skip
_NODE: Final = ("unplanned_host_maintenance", "ssd", "power_supply", "chassis", "io_board", "cpu", "memory")  # fmt: skip
_LINK: Final = ("network_switch_cable", "nic")
_SOFTWARE: Final = ("software_bug", "dependency")
_HANG: Final = ("nccl_watchdog",)
_COUNTED: Final = {"card": _CARD, "node": _NODE, "link": _LINK, "software": _SOFTWARE, "hang": _HANG}  # fmt: skip
"""Which rows of the Llama 3 table each kind is the sum of: all of them, each once."""

_NODE_CARDS: Final = 8
"""GPUs of a server of that fleet, one network card each, https://engineering.fb.com/2024/03/12/data-center-engineering/building-metas-genai-infrastructure/"""

_REPAIRS: Final = {
    "card": "rep-swap", "node": "rep-drain", "link": "rep-drain", "nic": "rep-drain", "uplink": "rep-drain",
    "software": "rep-soft", "hang": "rep-soft", "power": "rep-power", "rack": "rep-rack", "cooling": "rep-overheated",
}  # fmt: skip
ONLY_CLAIMED: Final = {"rack": "rel-google-2008", "cooling": "rel-google-2008"}
"""Kinds of which the catalog has a figure that is no count, and where."""

_OTHER_REPAIR: Final = "rep-drain"


def default_rates() -> dict[str, Rate]:
    """The kinds that somebody counted, by name.

    >>> {name: round(rate.mtbf_s / 3600) for name, rate in default_rates().items()}
    {'card': 79230, 'node': 57700, 'link': 505563, 'software': 379173, 'hang': 3033381, 'uplink': 150557, 'power': 387148}
    """
    llama = _record("rel-llama3")
    watched_h = float(llama.derived["gpu_hours"])
    found = {}
    for name, rows in _COUNTED.items():
        counted = sum(float(llama.breakdown[row]) for row in rows)
        hours = watched_h / _NODE_CARDS if name == "node" else watched_h
        what = "server" if name == "node" else "GPU"
        found[name] = _counted(name, counted, hours, what, llama.id)
    return found | _of_switches()


def _of_switches() -> dict[str, Rate]:
    """A rack's way out, and the power it stands on."""
    azure = _record("rel-azure-switches")
    switches, months, uninterrupted, power = (float(azure.figures[name]) for name in ("switches", "months", "uninterrupted", "share_power"))  # fmt: skip
    failures = -math.log(uninterrupted) * switches
    shares = {"uplink": 1 - power, "power": power}
    return {
        name: _counted(name, share * failures, switches * months * _MONTH_H, "switch", azure.id)
        for name, share in shares.items()
    }


def _counted(name: str, failures: float, watched_h: float, what: str, record: str) -> Rate:
    told = f"{failures:,.0f} in {watched_h:,.0f} {what} h"
    rate = _rate(name, watched_h / failures * 3600.0, told, record)
    return replace(rate, watched_s=watched_h * 3600.0)


def rates_of(
    mtbf: Iterable[str] = (),
    mttr: Iterable[str] = (),
    shapes: Iterable[str] = (),
    factors: Iterable[str] = (),
    bursts: Iterable[str] = (),
) -> dict[str, Rate]:
    """The defaults with a person's own in their place, each as `card=50000h`; `uplink=never` leaves a kind out. Bursts are as `flap=2s/30s`.

    Raises `InputError` for a kind or a quantity that cannot be, and for the repair, shape or factor of a kind that has no rate.
    """
    rates = default_rates()
    for name, text in _pairs("--mtbf", mtbf).items():
        if text == "never":
            rates.pop(name, None)
            continue
        rates[name] = _rate(name, _above_zero("--mtbf", name, _seconds("--mtbf", name, text)), f"--mtbf {name}={text}")  # fmt: skip
    for name, text in _pairs("--mttr", mttr).items():
        repair_s = _seconds("--mttr", name, text)
        known = _known("--mttr", name, rates)
        records = tuple(record for record in known.records if not record.startswith("rep-"))
        rates[name] = replace(known, repair_s=repair_s, repair=f"--mttr {name}={text}", records=records)  # fmt: skip
    for name, text in _pairs("--shape", shapes).items():
        shape = _above_zero("--shape", name, _number("--shape", name, text))
        rates[name] = replace(_known("--shape", name, rates), shape=shape)
    for name, text in _pairs("--factor", factors).items():
        factor = _number("--factor", name, text)
        rates[name] = replace(_known("--factor", name, rates), factor=factor)
    for name, text in _pairs("--burst", bursts).items():
        burst, _, every = text.partition("/")
        burst_s, every_s = (_seconds("--burst", name, one) for one in (burst, every))
        rates[name] = replace(_known("--burst", name, rates), burst_s=burst_s, every_s=every_s)
    _check_factors(rates)
    return rates


def unrated(rates: Mapping[str, Rate]) -> list[str]:
    """Kinds that are not drawn, because no count on record and nobody says how often they fail."""
    return [name for name in KINDS if name not in rates]


def _rate(name: str, mtbf_s: float, counted: str, *records: str) -> Rate:
    entry = find_site(_REPAIRS.get(name, _OTHER_REPAIR))
    assert isinstance(entry, Repair), "repairs are listed as such"
    ends = (units.show(end_s, "s") for end_s in (entry.least_s, entry.most_s))
    return Rate(
        kind=KINDS[name],
        mtbf_s=mtbf_s,
        repair_s=math.sqrt(entry.least_s * entry.most_s),
        counted=counted,
        repair=" to ".join(dict.fromkeys(ends)),
        records=(*records, entry.id),
    )


def _record(name: str) -> Reliability:
    entry = find_site(name)
    assert isinstance(entry, Reliability), "counts are listed as such"
    return entry


def _pairs(flag: str, texts: Iterable[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        for one in text.split(","):
            name, sign, value = one.strip().partition("=")
            if not sign or not value:
                msg = f"{flag} {one!r} is no kind and value; write {flag} card=50000h"
                raise InputError(msg)
            if name not in KINDS:
                near = ", ".join(nearest_names(name, KINDS) or KINDS)
                msg = f"{flag} {one!r}: nothing that fails is called {name!r}; nearest: {near}"
                raise InputError(msg)
            found[name] = value
    return found


def _seconds(flag: str, name: str, text: str) -> float:
    try:
        return units.parse(text, "s")
    except QuantityError as error:
        msg = f"{flag} {name}={text}: {error}"
        raise QuantityError(msg) from error


def _number(flag: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        msg = f"{flag} {name}={text}: {text!r} is no number; write one as 1.5"
        raise InputError(msg)
    return value


def _above_zero(flag: str, name: str, value: float) -> float:
    if value <= 0:
        msg = f"{flag} {name}={value:g} has to be above 0; --mtbf {name}=never leaves the kind out"
        raise InputError(msg)
    return value


def _known(flag: str, name: str, rates: Mapping[str, Rate]) -> Rate:
    if name not in rates:
        msg = f"{flag} {name}: no count of it is on record, so it never fails; give one with --mtbf {name}=TIME"  # fmt: skip
        raise InputError(msg)
    return rates[name]


def check_bursts(name: str, burst_s: float, every_s: float) -> None:
    """A link that flaps is slow for a while, again and again."""
    if not 0 < burst_s < every_s:
        msg = f"{name} flaps, so it needs bursts shorter than the time from one to the next, as 2s every 30s; got {burst_s:g} s every {every_s:g} s"
        raise InputError(msg)


def _check_factors(rates: Mapping[str, Rate]) -> None:
    for name, rate in rates.items():
        if rate.kind.what == "flap":
            check_bursts(name, rate.burst_s, rate.every_s)
        slows = rate.kind.what not in ("crash", "hang")
        if slows and not rate.factor > 1:
            msg = f"{name} fails slowly, and nothing says how much: give --factor {name}=F, 2 for twice as long (it is {rate.factor:g})"  # fmt: skip
            raise InputError(msg)
        if not slows and rate.factor != 1:
            msg = f"--factor {name}={rate.factor:g}: {name} stops what runs there; a factor is of {', '.join(kind.name for kind in KINDS.values() if kind.what not in ('crash', 'hang'))}"  # fmt: skip
            raise InputError(msg)
