"""What an accelerator's hour and a million tokens cost, and the CO2 behind them.

    owned:  usd_per_h = price * (1 / life + upkeep) + hosting * most_w + usd_per_kwh * site_w
    rented: usd_per_h = rent, the provider's power in it

    per million tokens = 1e6 / 3600 * usd_per_h / (tokens/s per accelerator)

Prices, tariffs, cooling and grids are the catalog's, dated and sourced there; `data/money.toml` says which of them, and a file given with --prices
says otherwise. A chip without a price on record has none: nothing is guessed, and `unknown` says what is missing. Interest, land and staff are left out.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from importlib import resources
from pathlib import Path
from typing import Any, Final

from polypod.catalog.interop import looked_for_price, prices_of
from polypod.catalog.market import price_kind, prices
from polypod.catalog.market_schema import GridCo2, Price, Pue
from polypod.catalog.site import find_site
from polypod.cost.bands import Band
from polypod.errors import FileError, InputError
from polypod.plan.energy import Estimate, Serving, Watts, drawn_fraction, nameplate, watts_at
from polypod.plan.place import Island

HOURS_A_YEAR: Final = 8766.0
HOURS_A_MONTH: Final = HOURS_A_YEAR / 12
_J_PER_KWH: Final = 3.6e6

FIGURES: Final = (
    "life_years", "upkeep_fraction_per_year", "server_ratio", "usd_per_kwh", "usd_per_kw_month",
    "kg_co2_per_kwh", "pue", "cny_per_usd", "usd_per_eur",
)  # fmt: skip
TABLES: Final = ("accelerator_usd", "rent_usd_per_h")
"""What a person may say of each accelerator, by its id."""

_WHOLE: Final = {"rack": None, "16 racks": None, "server": 8, "8 cards": 8, "each": 1}
"""Accelerators in what a price is of; None: all of the pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the hours of a site cost. `said_pue`: by the person, so that it stands above a pod's own."""

    life_years: Estimate
    upkeep_fraction_per_year: Estimate
    server_ratio: Estimate
    usd_per_kwh: Estimate
    usd_per_kw_month: Estimate
    kg_co2_per_kwh: Estimate
    pue: Estimate
    cny_per_usd: Estimate
    usd_per_eur: Estimate
    said_pue: bool = False
    accelerator_usd: Mapping[str, Estimate]
    rent_usd_per_h: Mapping[str, Estimate]
    set_aside: tuple[str, ...]


def site(file: Path | None = None) -> Site:
    """The defaults, with what a person's file says in their place.

    Raises `FileError` for a file that cannot be read, an unknown key and a figure that is none.
    """
    return _standing() if file is None else _site(file)


@cache
def _standing() -> Site:
    return _site(None)


def _site(file: Path | None) -> Site:
    text = resources.files("polypod.plan").joinpath("data", "money.toml").read_text("utf-8")
    raw = tomllib.loads(text)
    own = {} if file is None else _own(file)
    where = str(file or "money.toml")
    rates: dict[str, Any] = {
        key: _figure(raw | own, key, None, where) for key in ("cny_per_usd", "usd_per_eur")
    }
    found: dict[str, Any] = {
        key: _figure(raw | own, key, rates, where) for key in FIGURES if key not in rates
    }
    tables: dict[str, Any] = {
        key: {chip: _estimate(value, f"{key}.{chip}", where) for chip, value in own.get(key, {}).items()}
        for key in TABLES
    }  # fmt: skip
    return Site(
        **rates, **found, **tables, said_pue="pue" in own, set_aside=tuple(raw["set_aside"]["ids"])
    )


def _own(file: Path) -> dict[str, Any]:
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileError(str(file), f"cannot be read: {error}") from error
    for key in raw:
        if key not in (*FIGURES, *TABLES):
            msg = f"{key!r} is no figure of a site; there are {', '.join((*FIGURES, *TABLES))}"
            raise FileError(str(file), msg)
    return raw


def _figure(
    raw: dict[str, Any], key: str, rates: Mapping[str, Estimate] | None, where: str
) -> Estimate:
    value = raw[key]
    if isinstance(value, dict) and "catalog" in value:
        names = value["catalog"] if isinstance(value["catalog"], list) else [value["catalog"]]
        return _spanned([_on_record(name, rates) for name in names])
    return _estimate(value["value"] if isinstance(value, dict) and "value" in value else value, key, where)  # fmt: skip


def _estimate(value: object, key: str, where: str) -> Estimate:
    """A number, or its low, likely and high ends."""
    ends: list[Any] = value if isinstance(value, list) else [value] * 3
    if len(ends) == 3 and all(isinstance(one, int | float) and one > 0 for one in ends):
        found = Estimate(*(float(one) for one in ends))
        if found.low <= found.likely <= found.high:
            return found
    msg = f"{key} = {value!r}; give a number above 0, or its low, likely and high ends, as [0.08, 0.085, 0.09]"
    raise FileError(where, msg)


def _on_record(name: str, rates: Mapping[str, Estimate] | None) -> Estimate:
    """A price, a cooling or a grid of the catalog. Raises `UnknownNameError`."""
    price = next((one for one in prices() if one.id == name), None)
    if price is not None and rates is not None:
        return _usd(price, rates)
    found = find_site(name)
    if isinstance(found, GridCo2):
        return Estimate.exactly(found.kg_co2_per_kwh)
    if isinstance(found, Pue):
        middle = (found.least_ratio + found.most_ratio) / 2
        return Estimate(found.least_ratio, middle, found.most_ratio)
    msg = f"{name} is no price, no cooling and no grid"
    raise InputError(msg)


def _spanned(several: list[Estimate]) -> Estimate:
    """From the lowest end to the highest; in the middle, what the middle one says."""
    likely = sorted(one.likely for one in several)[len(several) // 2]
    return Estimate(min(one.low for one in several), likely, max(one.high for one in several))


def _usd(price: Price, rates: Mapping[str, Estimate]) -> Estimate:
    least, most = price.least, price.most
    assert least is not None
    assert most is not None
    own = Estimate(least, price.usual or (least + most) / 2, most)
    if price.currency == "CNY":
        return own / rates["cny_per_usd"]
    return own * rates["usd_per_eur"] if price.currency == "EUR" else own


def pue_of(island: Island, at: Site) -> tuple[Estimate, str]:
    """Total power over IT power, and what it rests on where its own is not known."""
    pod = island.pod
    if at.said_pue or pod is None or pod.pue is None:
        where = pod.id if pod else island.rank.chip
        note = "" if at.said_pue else f"{where}: no PUE on record; {at.pue.low:g} to {at.pue.high:g} taken, by cooling"  # fmt: skip
        return at.pue, note
    claimed = pod.pue.value
    high = claimed if pod.pue.kind in {"measured", "datasheet"} else max(claimed, _LIMIT_RATIO)
    return Estimate(claimed, claimed, high), ""


_LIMIT_RATIO: Final = 1.25
"""A claimed PUE may be of the tank alone: its high end is what new large sites are held to (pue-cn-limit)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hourly:
    """What an accelerator's hour costs in US dollars, by what it is for. Rent has everything in it."""

    capital_usd: Estimate
    hosting_usd: Estimate
    power_usd: Estimate
    evidence: str  # of the price
    note: str

    @property
    def total_usd(self) -> Estimate:
        return self.capital_usd + self.hosting_usd + self.power_usd


@dataclass(frozen=True, slots=True)
class _Paid:
    """A price or a rent of one accelerator."""

    usd: Estimate
    evidence: str
    note: str


def hourly(island: Island, watts: Watts | None, at: Site) -> Hourly | str:
    """An accelerator's hour, owned where a purchase price is on record, else rented; else in words what is missing."""
    price = _bought(island, at)
    if price is not None and watts is not None:
        years = Estimate.exactly(1.0) / at.life_years + at.upkeep_fraction_per_year
        return Hourly(
            capital_usd=price.usd * years * (1 / HOURS_A_YEAR),
            hosting_usd=at.usd_per_kw_month * (watts.plate.most_w / 1e3 / HOURS_A_MONTH),
            power_usd=at.usd_per_kwh * watts.site_w * 1e-3,
            evidence=price.evidence,
            note=price.note,
        )
    rent = _rented(island, at)
    if rent is not None:
        nothing = Estimate.exactly(0.0)
        return Hourly(
            capital_usd=rent.usd,
            hosting_usd=nothing,
            power_usd=nothing,
            evidence=rent.evidence,
            note=rent.note,
        )
    chip = island.rank.chip
    if price is not None:
        return f"{chip} has a price on record ({price.note}) but no power, which hosting and electricity are paid by"
    looked = ", though one was looked for" if looked_for_price(chip) else ""
    return (
        f"no price of {chip} on record{looked}; say one in a --prices file, under [accelerator_usd]"
    )


def _bought(island: Island, at: Site) -> _Paid | None:
    """A purchase price per accelerator with its server: the person's, the pod's, or the accelerator's own times a server's share."""
    chip, pod = island.rank.chip, island.pod
    if chip in at.accelerator_usd:
        return _Paid(at.accelerator_usd[chip], "your own", "your own price")
    if pod is not None and (found := _usable(prices_of(pod.id), "purchase", at)):
        each = [_each(one, pod.accelerators, at) for one in found]
        return _Paid(_spanned(each), found[0].basis, _named(found))
    found = _usable(prices_of(chip), "purchase", at)
    if not found:
        return None
    each = [
        _each(one, 1, at) * (at.server_ratio if _WHOLE[one.unit] == 1 else 1.0) for one in found
    ]
    return _Paid(_spanned(each), found[0].basis, _named(found))


def _each(price: Price, whole: int, at: Site) -> Estimate:
    return _usd(price, _rates(at)) * (1 / (_WHOLE[price.unit] or whole))


def _rented(island: Island, at: Site) -> _Paid | None:
    chip = island.rank.chip
    if chip in at.rent_usd_per_h:
        return _Paid(at.rent_usd_per_h[chip], "your own", "your own rent")
    found = _usable(prices_of(chip), "cloud-hourly", at)
    if not found:
        return None
    return _Paid(_spanned([_usd(one, _rates(at)) for one in found]), found[0].basis, _named(found))


def _rates(at: Site) -> dict[str, Estimate]:
    return {"cny_per_usd": at.cny_per_usd, "usd_per_eur": at.usd_per_eur}


def _usable(several: Iterable[Price], kind: str, at: Site) -> list[Price]:
    """Prices with both ends, of the whole thing."""
    return [
        one
        for one in several
        if one.least is not None
        and one.most is not None
        and one.id not in at.set_aside
        and price_kind(one) == kind
        and (kind != "purchase" or one.unit in _WHOLE)
    ]


def _named(found: list[Price]) -> str:
    kind = "rent" if price_kind(found[0]) == "cloud-hourly" else "price"
    return f"{kind} {', '.join(f'{one.id} of {one.date}' for one in found)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What accelerators at work draw and cost; what is not known is None and said in `unknown`.

    Tokens are output tokens, with everything of their prompts. Power is that of the accelerators used, with their part of the rest.
    """

    it_w: Estimate | None
    site_w: Estimate | None
    joules_per_million_tokens: Estimate | None
    usd_per_million_tokens: Estimate | None
    power_usd_per_million_tokens: Estimate | None  # the electricity's part
    kg_co2_per_million_tokens: Estimate | None
    usd_per_h: Estimate | None
    power_evidence: str = ""
    price_evidence: str = ""
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What accelerators give: how many they are, tokens/s of each, and the band of a token's time."""

    accelerators: float
    tokens_per_s: float
    band: Band

    @property
    def seconds_per_million(self) -> Estimate:
        """Of one accelerator."""
        return Estimate(self.band.low, 1.0, self.band.high) * (1e6 / self.tokens_per_s)


def running(island: Island, run: Serving, output: Output, at: Site) -> Running:
    """One deployment's power and money at work."""
    return running_at(island, drawn_fraction(run), output, at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What one accelerator draws and what its hour costs; in words what is missing of either."""

    drawn: Watts | str
    paid: Hourly | str
    pue_note: str

    @classmethod
    def of(cls, island: Island, fraction: Estimate, at: Site) -> "Card":
        """At a fraction of the design power."""
        plate = nameplate(island)
        pue, note = pue_of(island, at)
        drawn = plate if isinstance(plate, str) else watts_at(fraction, plate, pue)
        watts = None if isinstance(drawn, str) else drawn
        return cls(drawn=drawn, paid=hourly(island, watts, at), pue_note=note)

    def joules(self, seconds: Estimate) -> Estimate | None:
        """With cooling."""
        return None if isinstance(self.drawn, str) else self.drawn.site_w * seconds

    def usd(self, seconds: Estimate) -> Estimate | None:
        return None if isinstance(self.paid, str) else self.paid.total_usd * seconds * (1 / 3600)


def running_at(island: Island, fraction: Estimate, output: Output, at: Site) -> Running:
    """The same at a fraction of the design power."""
    card = Card.of(island, fraction, at)
    drawn = None if isinstance(card.drawn, str) else card.drawn
    paid = None if isinstance(card.paid, str) else card.paid
    notes = (
        "" if drawn is None else drawn.plate.note,
        card.pue_note if drawn else "",
        f"{island.rank.chip}: {paid.note}" if paid else "",
    )
    seconds = output.seconds_per_million
    joules = card.joules(seconds)
    return Running(
        it_w=None if drawn is None else drawn.it_w * output.accelerators,
        site_w=None if drawn is None else drawn.site_w * output.accelerators,
        joules_per_million_tokens=joules,
        usd_per_million_tokens=card.usd(seconds),
        power_usd_per_million_tokens=None if paid is None else paid.power_usd * seconds * (1 / 3600),
        kg_co2_per_million_tokens=None if joules is None else joules * at.kg_co2_per_kwh * (1 / _J_PER_KWH),
        usd_per_h=None if paid is None else paid.total_usd * output.accelerators,
        power_evidence="" if drawn is None else drawn.plate.evidence,
        price_evidence="" if paid is None else paid.evidence,
        notes=tuple(note for note in notes if note),
        unknown=tuple(one for one in (card.drawn, card.paid) if isinstance(one, str)),
    )  # fmt: skip


def in_all(parts: Sequence[tuple[float, Running]]) -> Running:
    """Several deployments, each with its output tokens/s: sums of power and money, means by their tokens; unknown where one of them is."""
    whole = sum(tokens_per_s for tokens_per_s, _ in parts)
    return added([(tokens_per_s / whole, run) for tokens_per_s, run in parts])


def added(parts: Sequence[tuple[float, Running]]) -> Running:
    """Sums of power and money; of what is per million tokens, each times its weight; unknown where one of them is."""
    summed = {name: _sum([getattr(run, name) for _, run in parts]) for name in _SUMMED}
    meant = {
        name: _sum(
            [None if (one := getattr(run, name)) is None else one * weight for weight, run in parts]
        )
        for name in _PER_MILLION
    }
    return Running(
        **summed,
        **meant,
        power_evidence=_several(run.power_evidence for _, run in parts),
        price_evidence=_several(run.price_evidence for _, run in parts),
        notes=tuple(dict.fromkeys(note for _, run in parts for note in run.notes)),
        unknown=tuple(dict.fromkeys(why for _, run in parts for why in run.unknown)),
    )


def _several(evidence: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(one for one in evidence if one))


_SUMMED: Final = ("it_w", "site_w", "usd_per_h")
_PER_MILLION: Final = (
    "joules_per_million_tokens", "usd_per_million_tokens", "power_usd_per_million_tokens", "kg_co2_per_million_tokens",
)  # fmt: skip


def _sum(several: list[Estimate | None]) -> Estimate | None:
    known = [one for one in several if one is not None]
    if len(known) < len(several) or not known:
        return None
    return reduce(Estimate.__add__, known)
