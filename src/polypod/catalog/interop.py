"""What goes together: engines on chips, chips in one collective, a cache from one chip to another, events that concern a chip.

Every answer has a state, a reason in words, and the sources it rests on. `unknown` says that nothing was found, which is not a no: no
answer here turns the one into the other. Where a source names vendors and not chips, the answer for a chip says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from polypod.catalog.dates import parse_date
from polypod.catalog.load import entry_id, load_accelerator
from polypod.catalog.market import (
    collectives,
    events,
    handovers,
    no_price_found,
    prices,
    regimes,
    stack_of,
    stacks,
)
from polypod.catalog.market_schema import (
    STATES,
    Cell,
    Cited,
    CrossVendor,
    EngineSupport,
    Event,
    Handover,
    NativeCollective,
    Price,
    Regime,
    Stack,
    State,
)

Sources = tuple[Cited, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Whether something goes, why, and who says so."""

    state: State
    reason: str
    sources: Sources = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAnswer(Answer):
    """An engine on a chip."""

    engine: str
    version: str | None = None
    date: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveAnswer(Answer):
    """A library that could join two chips. `lacks` are collectives that it does not carry between them."""

    library: str | None
    through_host: bool = False
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverAnswer(Answer):
    """A cache from one chip to another: by which transfer engine, under which conditions."""

    engine: str | None = None
    via: str | None = None
    conditions: tuple[str, ...] = ()


def engines_on(chip: str) -> list[EngineAnswer]:
    """Engines on record for a chip, the best supported first; none where no stack of it is on record.

    >>> [(one.engine, one.state) for one in engines_on("thead-zhenwu-810e")]
    [('vLLM', 'reported'), ('SGLang', 'reported'), ('RTP-LLM', 'reported')]

    Raises `UnknownNameError` for a chip that the catalog does not have.
    """
    chip = load_accelerator(chip).id
    stack = stack_of(chip)
    found = [_engine(support, chip) for support in stack.engines] if stack else []
    return sorted(found, key=_rank)


def engine_on(engine: str, chip: str) -> EngineAnswer:
    """One engine on a chip; unknown where no source mentions it."""
    named = [one for one in engines_on(chip) if one.engine.casefold() == engine.casefold()]
    if named:
        return named[0]
    reason = f"no source on record says whether {engine} runs on {chip}"
    return EngineAnswer(engine=engine, state="unknown", reason=reason)


def dtypes_on(chip: str) -> dict[str, Answer]:
    """What an engine of the chip's stack can serve in, by format; empty where nothing is on record.

    >>> dtypes = dtypes_on("910C")
    >>> dtypes["int8_w8a8"].state, dtypes["fp8"].state
    ('supported', 'no native support')
    """
    chip = load_accelerator(chip).id
    stack = stack_of(chip)
    if stack is None:
        return {}
    cells = stack.dtypes.items()
    return {name: _cell(cell, chip, stack, stack.dtype_sources) for name, cell in cells}


def abilities_of(chip: str) -> dict[str, Answer]:
    """Expert parallelism, MLA, disaggregation, drafting and cache offload on a chip; empty where nothing is on record."""
    chip = load_accelerator(chip).id
    stack = stack_of(chip)
    if stack is None:
        return {}
    return {name: _cell(cell, chip, stack, cell.sources) for name, cell in stack.abilities.items()}


def shared_collective(a: str, b: str) -> CollectiveAnswer:
    """The best way for two chips to take part in one collective; between memories of the chips before through a host.

    >>> shared_collective("nvidia-h100-sxm", "hygon-bw1000").library
    'FlagCX'
    >>> shared_collective("910C", "h20").through_host
    True
    """
    return shared_collectives(a, b)[0]


def shared_collectives(a: str, b: str) -> list[CollectiveAnswer]:
    """Every library on record that could join two chips, best first. Never empty: the last word is `unknown`."""
    one, other = load_accelerator(a).id, load_accelerator(b).id
    first, second = stack_of(one), stack_of(other)
    if first is None or second is None:
        missing = one if first is None else other
        reason = f"no software of {missing} is on record"
        return [CollectiveAnswer(library=None, state="unknown", reason=reason)]
    return _own_library(first) if first is second else _ways(first, second)


def _ways(first: Stack, second: Stack) -> list[CollectiveAnswer]:
    found = [_flagcx(first, second), *_other_libraries(first, second)]
    return sorted(found, key=lambda way: (way.state not in _GOES, way.through_host, _rank(way)))


def kv_handover(a: str, b: str, engine: str | None = None) -> HandoverAnswer:
    """Whether chip `a` prefills and `b` decodes, by which transfer engine; with `engine`, only what is said of that one.

    >>> answer = kv_handover("910B", "h20")
    >>> answer.state, answer.via.split(" ")[0]
    ('experimental', 'Mooncake')

    The conditions are those of the path, then the rules that hold for every hand-over.
    """
    return kv_handovers(a, b, engine)[0]


def kv_handovers(a: str, b: str, engine: str | None = None) -> list[HandoverAnswer]:
    """Every path on record from `a` to `b`, best first. Never empty: the last word is `unknown`."""
    return _paths(load_accelerator(a).id, load_accelerator(b).id, engine)


def _paths(one: str, other: str, engine: str | None) -> list[HandoverAnswer]:
    first, second = stack_of(one), stack_of(other)
    same = first is not None and first is second
    found = _same_stack(first, one) if same and first else list(_across(one, other))
    if engine is not None:
        both = [engine_on(engine, chip) for chip in (one, other)]
        found = [_with_engine(path, engine, both) for path in found if _is_of(path, engine)]
    if not found:
        with_engine = f" with {engine}" if engine else ""
        reason = f"no source on record says whether a cache goes from {one} to {other}{with_engine}"
        found = [HandoverAnswer(state="unknown", reason=reason, engine=engine)]
    return sorted(found, key=_rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """Another vendor's stack, and the library that joins it best."""

    stack: Stack
    answer: CollectiveAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """A hand-over to or from another stack's chip that somebody says works."""

    to: bool  # the other decodes what this one prefilled
    chip: str
    answer: HandoverAnswer


def neighbours(chip: str) -> list[Neighbour]:
    """The other stacks by how well a collective joins them to a chip's, best first; empty where its stack is not on record."""
    own = stack_of(load_accelerator(chip).id)
    if own is None:
        return []
    others = [stack for stack in stacks() if stack is not own]
    found = [Neighbour(stack=one, answer=_ways(own, one)[0]) for one in others]
    return sorted(found, key=lambda one: (one.answer.through_host, _rank(one.answer)))


def crossings(chip: str) -> list[Crossing]:
    """Chips of other stacks that a cache goes to or comes from, where a source says that it works."""
    own = load_accelerator(chip).id
    stack = stack_of(own)
    others = [other for one in stacks() if one is not stack for other in one.chips]
    found = [
        Crossing(to=to, chip=other, answer=_paths(*pair, None)[0])
        for other in others
        for to, pair in ((True, (own, other)), (False, (other, own)))
    ]
    return sorted(
        (one for one in found if one.answer.state in _GOES), key=lambda one: _rank(one.answer)
    )


def events_of(chip: str, until: str | None = None) -> list[Event]:
    """Events that name an accelerator or a pod, newest first; with `until`, those that had begun by the end of that date.

    >>> [event.date for event in events_of("nvidia-h20", until="2025-07-14")][:2]
    ['2025-07-14', '2025-04-09']
    """
    chip = entry_id(chip)
    last = parse_date(until).last.isoformat() if until else "9999"
    return [event for event in reversed(events()) if chip in event.chips and event.date <= last]


def latest_rule(chip: str, until: str | None = None) -> Event | None:
    """The latest policy event of a chip by a date; None where none is on record."""
    rules = (event for event in events_of(chip, until) if event.kind == "policy")
    return next(rules, None)


def regimes_of(chip: str) -> list[Regime]:
    """How a chip stands by the last evidence, those that name it before those that name its vendor."""
    found = load_accelerator(chip)
    named = [regime for regime in regimes() if found.id in regime.chips]
    return [*named, *(regime for regime in regimes() if found.vendor in regime.vendors)]


def prices_of(target: str) -> list[Price]:
    """Prices of an accelerator, a pod or a host processor; empty where none is on record."""
    return [price for price in prices() if price.target == entry_id(target)]


def looked_for_price(target: str) -> bool:
    """Whether a price was looked for and not found, which is more than not having one."""
    return entry_id(target) in no_price_found().targets


_GOES = ("supported", "experimental", "reported")


def _rank(answer: Answer) -> int:
    return STATES.index(answer.state)


def _engine(support: EngineSupport, chip: str) -> EngineAnswer:
    parts = [support.how, support.note]
    if chip in support.chips:
        parts.append(f"{support.state} on other chips of the stack")
    return EngineAnswer(
        engine=support.engine,
        version=support.version,
        date=support.date,
        state=support.on(chip),
        reason="; ".join(part for part in parts if part) or "no more is on record",
        sources=support.sources,
    )


def _cell(cell: Cell, chip: str, stack: Stack, sources: Sources) -> Answer:
    parts = [cell.what, cell.note, stack.chip_limits.get(chip)]
    if chip not in cell.chips:
        parts.append(f"said of {stack.name} as a whole")
    reason = _joined(*parts) or f"said of {chip}"
    return Answer(state=cell.on(chip), reason=reason, sources=sources)


def _own_library(stack: Stack) -> list[CollectiveAnswer]:
    own = [native for native in collectives().native if native.stack == stack.id]
    if not own:
        reason = f"no collective library of {stack.name} is on record"
        return [CollectiveAnswer(library=None, state="unknown", reason=reason)]
    reason = f"both are of {stack.name}, and it is {stack.name}'s own library"
    return [
        CollectiveAnswer(
            library=native.library, state="supported", reason=reason, sources=native.sources
        )
        for native in own
    ]


def _flagcx(first: Stack, second: Stack) -> CollectiveAnswer:
    """FlagCX joins what its own table says it joins; a pair it was not shown with is reported, not supported."""
    library = next(one for one in collectives().cross_vendor if one.id == "flagcx")
    ends = [_in_flagcx(stack) for stack in (first, second)]
    sources = (*library.sources, *(source for end in ends if end for source in end.sources))
    absent = [
        stack.name
        for stack, end in zip((first, second), ends, strict=True)
        if end is None or end.flagcx_mixes is None
    ]
    alone = [end for end in ends if end is not None and end.flagcx_mixes == "none"]
    lacks = tuple(name for end in ends if end for name in end.flagcx_lacks)
    state: State
    if alone:
        state = "no native support"
        reason = f"{alone[0].library} joins only its own kind: {alone[0].gaps}"
    elif absent:
        state, reason = "unknown", f"{' and '.join(absent)}: not in FlagCX's table"
    elif _is_pair(library, first, second):
        state = library.state
        reason = f"shown by its authors: {'; '.join(library.shown_pairs)}"
    else:
        state = "reported"
        reason = "its table lists both; no run of the two together is published"
    return CollectiveAnswer(
        library=library.name,
        state=state,
        reason=reason,
        lacks=lacks,
        sources=tuple(dict.fromkeys(sources)),
    )


def _in_flagcx(stack: Stack) -> NativeCollective | None:
    """A stack's library that FlagCX knows, or any of it."""
    own = [native for native in collectives().native if native.stack == stack.id]
    return next((native for native in own if native.in_flagcx), own[0] if own else None)


def _is_pair(library: CrossVendor, first: Stack, second: Stack) -> bool:
    return {first.id, second.id} in [set(pair) for pair in library.pairs]


def _other_libraries(first: Stack, second: Stack) -> Iterator[CollectiveAnswer]:
    for library in collectives().cross_vendor:
        joins = library.any_stacks or _is_pair(library, first, second)
        if library.id == "flagcx" or not library.collective or not joins:
            continue
        yield CollectiveAnswer(
            library=library.name,
            state=library.across or library.state,
            reason=_joined(library.measured, library.note, *library.vendors_shown),
            through_host=library.through_host,
            sources=library.sources,
        )


def _joined(*parts: str | None) -> str:
    return "; ".join(part for part in parts if part)


def _rules() -> tuple[str, ...]:
    refused = [row for row in handovers().pairs if row.rule]
    return (
        *(rule.rule for rule in handovers().rules),
        *(f"{row.prefill} to {row.decode}: {row.constraints[0]}" for row in refused),
    )


def _same_stack(stack: Stack, chip: str) -> list[HandoverAnswer]:
    """What is on record of the pair; else what the stack says of disaggregation, which it means among its own."""
    found = [
        HandoverAnswer(
            state=row.state,
            reason=f"{row.pair}: both ends are of {stack.name}",
            via=row.via,
            conditions=_rules(),
            sources=row.sources,
        )
        for row in handovers().same_vendor
        if row.stack == stack.id
    ]
    cell = stack.pd_disaggregation
    if found or cell is None:
        return found
    reason = _joined(f"disaggregation on {stack.name}", cell.what, cell.note)
    via = ", ".join(cell.connectors) or None
    answer = HandoverAnswer(state=cell.on(chip), reason=reason, via=via, sources=cell.sources)
    return [answer]


def _across(one: str, other: str) -> Iterator[HandoverAnswer]:
    """What is on record of two chips, or of their vendors' stacks."""
    stack_ids = {chip: stack.id if (stack := stack_of(chip)) else "" for chip in (one, other)}
    for row in handovers().pairs:
        if row.rule:
            continue
        ways = [(one, other), (other, one)] if row.either_direction else [(one, other)]
        exact = any(start in row.prefill_chips and end in row.decode_chips for start, end in ways)
        if exact or any(_by_stack(row, stack_ids[a], stack_ids[b]) for a, b in ways):
            yield _path(row, exact=exact)


def _by_stack(row: Handover, start: str, end: str) -> bool:
    return bool({start, "any"} & {*row.prefill_stacks} and {end, "any"} & {*row.decode_stacks})


def _path(row: Handover, *, exact: bool) -> HandoverAnswer:
    said_of = f"{row.prefill} to {row.decode or 'any'}"
    whose = "" if exact and row.chips_named else "the source names no such pair of chips"
    state: State = row.state
    if row.chips_named and not exact and state in _GOES:
        state = "unknown"  # shown of other chips of the two vendors
        whose = f"{row.state} for the chips it names, which these are not"
    return HandoverAnswer(
        state=state,
        reason=_joined(said_of, whose, row.measured, row.note),
        engine=row.engine,
        via=row.via,
        conditions=(*row.constraints, *_rules()),
        sources=row.sources,
    )


def _is_of(path: HandoverAnswer, engine: str) -> bool:
    return path.engine is None or engine.casefold() in path.engine.casefold()


def _with_engine(path: HandoverAnswer, engine: str, ends: list[EngineAnswer]) -> HandoverAnswer:
    """A path of no particular engine goes as far as the engine does on both ends."""
    worst = max(ends, key=_rank)
    if path.engine is not None or _rank(worst) <= _rank(path):
        return replace(path, engine=path.engine or engine)
    reason = _joined(path.reason, f"{engine} on these chips: {worst.state}, {worst.reason}")
    sources = tuple(dict.fromkeys((*path.sources, *worst.sources)))
    return replace(path, engine=engine, state=worst.state, reason=reason, sources=sources)
