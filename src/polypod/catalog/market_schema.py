"""The shape of market files: software stacks, hand-over, dated events, prices, failure rates. All dates are ISO prefixes.

Conventions. A file lists what it cites once, in its `[cited]` table, and every entry names those sources by key; an entry as read
holds the sources themselves. `least` and `most` are in the unit beside them; both missing means that no figure was found. A state is
one of six words, and `unknown` is not `no`: it says that nothing was found.
"""

from typing import Annotated, Literal, get_args

import msgspec

from polypod.catalog.schema import Count, Identifier, Positive, Strict

State = Literal[
    "supported",  # code is released, or the vendor documents it
    "experimental",  # code or an open pull request, not a release that says it works
    "reported",  # one side says so; no code and no figure were seen
    "unknown",  # nothing was found; not a no
    "no native support",  # the hardware or the library lacks it; emulation may exist
    "impossible",  # a rule of the software or of its owner refuses it
]
STATES: tuple[State, ...] = get_args(State)
"""Best first: of two answers to one question the earlier state is taken."""

Confidence = Literal["high", "medium", "low"]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Date = Annotated[str, msgspec.Meta(pattern=r"^\d{4}")]
"""2025, 2025-H1, 2025-Q3, 2025-07, 2025-07-14, or two years: 2024-2025. `catalog.dates` refuses the rest."""


class Cited(Strict, frozen=True, kw_only=True):
    """Where something was read. `memory` was not looked up, and its title says so."""

    title: Annotated[str, msgspec.Meta(min_length=4)]
    how: Literal["seen", "cited", "catalog", "memory"]
    url: str | None = None
    date: Date | None = None

    @property
    def text(self) -> str:
        """One line, address last.

        >>> Cited(title="NVIDIA 10-Q", how="seen", date="2025-05", url="https://a.b").text
        'NVIDIA 10-Q (2025-05), https://a.b'
        """
        dated = f"{self.title} ({self.date})" if self.date else self.title
        return f"{dated}, {self.url}" if self.url else dated


class Sourced(Strict, frozen=True, kw_only=True):
    """Anything somebody said."""

    sources: Annotated[tuple[Cited, ...], msgspec.Meta(min_length=1)]
    confidence: Confidence


class Cell(Strict, frozen=True, kw_only=True):
    """One thing a stack can or cannot do. `chips` has the state of the chips that differ from the rest of the stack."""

    state: State
    what: str | None = None
    connectors: tuple[str, ...] = ()  # of prefill/decode hand-over
    note: str | None = None
    says: str | None = None  # the source's own word, where it is not one of the states
    chips: dict[Identifier, State] = msgspec.field(default_factory=dict)
    sources: tuple[Cited, ...] = ()
    confidence: Confidence | None = None

    def on(self, chip: str) -> State:
        """The state on one chip of the stack."""
        return self.chips.get(chip, self.state)


class EngineSupport(Sourced, frozen=True, kw_only=True):
    """An engine on a stack: how it gets there, in which version, seen when."""

    engine: Text
    state: State
    how: str | None = None
    version: str | None = None
    date: Date | None = None
    note: str | None = None
    chips: dict[Identifier, State] = msgspec.field(default_factory=dict)

    def on(self, chip: str) -> State:
        """The state on one chip of the stack."""
        return self.chips.get(chip, self.state)


class Software(Sourced, frozen=True, kw_only=True):
    """How a stack shows itself to a program."""

    torch_device: str
    vllm: str
    torch_package: str | None = None
    collectives: str | None = None
    note: str | None = None


class Stack(Strict, frozen=True, kw_only=True):
    """A vendor's software, and what runs on it. A stack without cells is one that nothing else was found of."""

    id: Identifier
    name: str
    vendor: str
    chips: tuple[Identifier, ...]
    software: Software
    torch_device: str | None = None
    note: str | None = None
    sources: tuple[Cited, ...] = ()
    confidence: Confidence | None = None
    engines: tuple[EngineSupport, ...] = ()
    dtypes: dict[str, Cell] = msgspec.field(default_factory=dict)
    dtype_sources: tuple[Cited, ...] = ()
    chip_limits: dict[Identifier, str] = msgspec.field(default_factory=dict)
    moe_ep: Cell | None = None
    mla: Cell | None = None
    pd_disaggregation: Cell | None = None
    speculative_decoding: Cell | None = None
    kv_offload: Cell | None = None

    @property
    def abilities(self) -> dict[str, Cell]:
        """The cells that are not of one engine or one dtype, by name; those on record only."""
        cells = {
            "moe_ep": self.moe_ep,
            "mla": self.mla,
            "pd_disaggregation": self.pd_disaggregation,
            "speculative_decoding": self.speculative_decoding,
            "kv_offload": self.kv_offload,
        }
        return {name: cell for name, cell in cells.items() if cell is not None}


class NativeCollective(Sourced, frozen=True, kw_only=True):
    """A stack's own library, and what FlagCX does with it beside unlike ones."""

    id: Identifier
    vendor: str
    library: str
    stack: Identifier
    in_flagcx: str | None = None
    flagcx_hetero: str | None = None
    flagcx_mixes: Literal["all", "some", "none"] | None = None
    flagcx_lacks: tuple[str, ...] = ()
    gaps: str | None = None


class CrossVendor(Sourced, frozen=True, kw_only=True):
    """A library that joins unlike accelerators. `pairs` are the stacks it is said to join."""

    id: Identifier
    name: str
    state: State
    basis: str
    says: str | None = None
    version: str | None = None
    pairs: tuple[tuple[Identifier, Identifier], ...] = ()
    across: State | None = None  # of joining unlike stacks, where the library itself is further
    any_stacks: bool = False
    through_host: bool = False
    collective: bool = True
    vendors_shown: tuple[str, ...] = ()
    shown_pairs: tuple[str, ...] = ()
    transports: tuple[str, ...] = ()
    ops: str | None = None
    requirements: tuple[str, ...] = ()
    measured: str | None = None
    note: str | None = None


class Collectives(Strict, frozen=True, kw_only=True):
    """Every library on record."""

    native: tuple[NativeCollective, ...]
    cross_vendor: tuple[CrossVendor, ...]


class Handover(Sourced, frozen=True, kw_only=True):
    """A cache going from one kind of accelerator to another, or a rule that refuses it."""

    id: Identifier
    prefill: str
    state: State
    decode: str | None = None
    prefill_stacks: tuple[Identifier, ...] = ()  # `any` stands for all
    decode_stacks: tuple[Identifier, ...] = ()
    prefill_chips: tuple[Identifier, ...] = ()
    decode_chips: tuple[Identifier, ...] = ()
    chips_named: bool = False  # the source names the chips, not only their vendors
    either_direction: bool = False
    rule: bool = False
    engine: str | None = None
    via: str | None = None
    constraints: tuple[str, ...] = ()
    measured: str | None = None
    note: str | None = None


class SameVendor(Sourced, frozen=True, kw_only=True):
    """A cache going between accelerators of one stack."""

    pair: str
    stack: Identifier
    via: str
    state: State


class HandoverRule(Sourced, frozen=True, kw_only=True):
    """What both ends must agree on."""

    id: Identifier
    rule: Text


class Handovers(Strict, frozen=True, kw_only=True):
    """Every hand-over on record."""

    pairs: tuple[Handover, ...]
    same_vendor: tuple[SameVendor, ...]
    rules: tuple[HandoverRule, ...]


class Event(Sourced, frozen=True, kw_only=True):
    """Something that happened to what can be bought. `date` is exact to `precision`; a later part of it only orders events."""

    id: Identifier
    date: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    kind: Literal["policy", "launch", "supply", "market", "corporate"]
    what: Text
    region: str
    effect: Literal[
        "barred", "licence", "allowed with condition", "discouraged", "announced", "launched",
        "shipping", "end of sale", "investigation", "market share", "listed", "corporate",
    ]  # fmt: skip
    basis: str
    precision: Literal["day", "month", "quarter", "half", "year"] = "day"
    actor: str | None = None
    chips: tuple[Identifier, ...] = ()  # accelerators and pods
    vendors: tuple[str, ...] = ()
    magnitude: str | None = None
    note: str | None = None


class Background(Sourced, frozen=True, kw_only=True):
    """What was so before the first event."""

    id: Identifier
    date: Date
    what: Text


class Regime(Sourced, frozen=True, kw_only=True):
    """How a chip stands by the last evidence: what each government allows, and what to plan with."""

    id: Identifier
    what: Text
    planner_state: Text
    chips: tuple[Identifier, ...] = ()
    vendors: tuple[str, ...] = ()
    evidence: Date | None = None  # where the last evidence is older than the catalog
    us: str | None = None
    cn: str | None = None


PriceKind = Literal["purchase", "cloud-hourly", "power", "hosting"]


class Price(Sourced, frozen=True, kw_only=True):
    """A price in its own currency and unit, at a date; never converted."""

    id: Identifier
    currency: Literal["USD", "CNY", "EUR"]
    unit: Text
    region: str
    date: Date
    basis: str
    target: Identifier | None = None  # an accelerator, a pod or a host processor
    what: str | None = None
    terms: str | None = None  # on demand, spot, reserved
    least: Positive | None = None
    most: Positive | None = None
    usual: Positive | None = None
    condition: str | None = None
    note: str | None = None


class NoPrice(Sourced, frozen=True, kw_only=True):
    """What a price was looked for and not found."""

    targets: tuple[Identifier, ...]


class GridCo2(Sourced, frozen=True, kw_only=True):
    """CO2 per kilowatt-hour. Factors of different `kind` must not be mixed."""

    id: Identifier
    region: str
    kg_co2_per_kwh: Positive
    year: int
    kind: str
    basis: str
    note: str | None = None


class Reliability(Sourced, frozen=True, kw_only=True):
    """What a fleet's owner counted, or what a vendor says. Figures' names wear their unit; text is a bound or a range."""

    id: Identifier
    what: str
    basis: str
    chips: tuple[Identifier, ...] = ()
    effective_training_time: str | None = None
    manual_interventions: Count | None = None
    interruptions: dict[str, float | str] = msgspec.field(default_factory=dict)
    breakdown: dict[str, float | str] = msgspec.field(default_factory=dict)
    figures: dict[str, float | str] = msgspec.field(default_factory=dict)
    derived: dict[str, float | str] = msgspec.field(default_factory=dict)
    note: str | None = None


class Repair(Sourced, frozen=True, kw_only=True):
    """How long until a part is back."""

    id: Identifier
    what: str
    least_s: Positive
    most_s: Positive
    basis: str
    note: str | None = None


class Pue(Sourced, frozen=True, kw_only=True):
    """Total power over IT power."""

    id: Identifier
    technology: str
    least_ratio: Positive
    most_ratio: Positive
    ambient: str
    basis: str
    note: str | None = None


class Cooling(Sourced, frozen=True, kw_only=True):
    """What else is said of cooling."""

    id: Identifier
    what: str
    basis: str
    least_ratio: Positive | None = None
    most_ratio: Positive | None = None
    immersion: str | None = None
    direct_to_chip: str | None = None
    note: str | None = None


class Disagreement(Strict, frozen=True, kw_only=True):
    """Sources that say different things, and which is used."""

    about: Literal["interop", "events", "prices"]
    topic: str
    values: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    use: str


class Unreliable(Strict, frozen=True, kw_only=True):
    """A data set or page found wrong."""

    what: str
    why: str
    use: str | None = None
    sources: tuple[Cited, ...] = ()
    confidence: Confidence | None = None


class OtherAccelerator(Sourced, frozen=True, kw_only=True):
    """One the catalog has no figures of."""

    id: Identifier
    engine: str | None = None
    handover: str | None = None


class Maker(Sourced, frozen=True, kw_only=True):
    """A company that makes parts of others' accelerators."""

    id: Identifier
    name: str
    note: str


class HostCpu(Sourced, frozen=True, kw_only=True):
    """A processor that accelerators are hosted by."""

    id: Identifier
    name: str
    vendor: str
    cores: Count
    note: str | None = None


class Beyond(Strict, frozen=True, kw_only=True):
    """Names the catalog knows of without having an entry of them."""

    accelerators: tuple[OtherAccelerator, ...]
    makers: tuple[Maker, ...]
    host_cpus: tuple[HostCpu, ...]
