"""What `polypod catalog show` says of the market: stacks, events and prices, alone or below the chip they are of."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from polypod.catalog.interop import (
    Answer,
    Crossing,
    abilities_of,
    crossings,
    dtypes_on,
    engines_on,
    events_of,
    looked_for_price,
    neighbours,
    prices_of,
    regimes_of,
    shared_collective,
)
from polypod.catalog.load import known_names
from polypod.catalog.market import find_entry, price_kind, stack_of
from polypod.catalog.market_schema import STATES, Cell, Cited, Event, Price, Stack
from polypod.catalog.search_market import amount, event_date
from polypod.catalog.site import SiteEntry, find_site, site_entries, site_title
from polypod.cli.cited import Sources
from polypod.errors import UnknownNameError
from polypod.report.tables import entry, table

_LATEST = 3
"""Events shown below a chip; the rest are counted."""


def is_market_name(name: str) -> bool:
    """Whether a name is of a stack, an event or a price, and of no entry: an entry's names come first."""
    if name.casefold() in known_names() or name.endswith((".toml", ".json")) or "/" in name:
        return False
    if name.casefold() in site_entries():
        return True
    try:
        find_entry(name)
    except UnknownNameError:
        return False
    return True


def market_entry(name: str) -> Stack | Event | Price | SiteEntry:
    """What the market has of this name. Raises `UnknownNameError`."""
    return find_site(name) if name.casefold() in site_entries() else find_entry(name)


def show(name: str, *, as_json: bool) -> str:
    """A stack, an event, a price or what is known of a site, with its sources. Raises `UnknownNameError`."""
    found = market_entry(name)
    if as_json:
        kind = type(found).__name__.lower()
        raw = {"kind": kind} | _renamed(msgspec.to_builtins(found))
        return json.dumps(raw, indent=2, ensure_ascii=False)
    sources = Sources()
    if isinstance(found, Stack):
        body = _stack(found, sources)
    elif isinstance(found, Event):
        body = _event(found, sources)
    elif isinstance(found, Price):
        body = _price(found, sources)
    else:
        body = _site(found, sources)
    return "\n".join([*body, *sources.lines()])


def _site(found: SiteEntry, sources: Sources) -> Iterator[str]:
    """Every figure of it, as it was said."""
    yield f"{site_title(found)} ({found.id})"
    yield ""
    raw: dict[str, Any] = msgspec.to_builtins(found)
    shown = {name: value for name, value in raw.items() if name not in {"id", "what", "sources"} and value}  # fmt: skip
    for name, value in shown.items():
        if isinstance(value, dict):
            told = "; ".join(f"{key.replace('_', ' ')} {one}" for key, one in value.items())
        else:
            told = ", ".join(value) if isinstance(value, list | tuple) else str(value)
        yield entry(name.replace("_", " "), told, indent=25)
    yield ""
    yield f"said by {_marks(found.sources, sources)}"


def sections(chip: str, sources: Sources) -> Iterator[str]:
    """What the market says of an accelerator: software, neighbours, events, prices."""
    yield from _software(chip, sources)
    yield from _neighbours(chip, sources)
    yield from dated(chip, sources)


def dated(target: str, sources: Sources) -> Iterator[str]:
    """Events and prices of an accelerator or a pod."""
    yield from _events(target, sources)
    yield from _prices(target, sources)


def dated_json(target: str) -> dict[str, Any]:
    """The same, in full."""
    raw = {
        "events": events_of(target),
        "prices": prices_of(target),
        "price_looked_for_and_not_found": looked_for_price(target),
    }
    return msgspec.to_builtins(raw)  # type: ignore[no-any-return]


def market_json(chip: str) -> dict[str, Any]:
    """All that is said of an accelerator, in full."""
    stack = stack_of(chip)
    if stack is None:
        return {"stack": None, **dated_json(chip)}
    joined = [{"stack": one.stack.id, "answer": one.answer} for one in neighbours(chip)]
    raw = {
        "stack": stack.id,
        "engines": engines_on(chip),
        "dtypes": dtypes_on(chip),
        "abilities": abilities_of(chip),
        "collectives": joined,
        "handovers": crossings(chip),
        "regimes": regimes_of(chip),
    }
    return msgspec.to_builtins(raw) | dated_json(chip)  # type: ignore[no-any-return]


def _renamed(raw: dict[str, Any]) -> dict[str, Any]:
    """An event has a kind of its own, which is not what it is an entry of."""
    return {("event_kind" if key == "kind" else key): value for key, value in raw.items()}


def _marks(cited: Iterable[Cited], sources: Sources) -> str:
    return "".join(sources.mark(source.text) for source in cited)


def _software(chip: str, sources: Sources) -> Iterator[str]:
    stack = stack_of(chip)
    if stack is None:
        return
    device = stack.torch_device or stack.software.torch_device
    yield f"\nsoftware: {stack.name} ({stack.id}), torch device {device}"
    engines = engines_on(chip)
    rows = [
        [one.engine, one.state, one.version or "", _marks(one.sources, sources)] for one in engines
    ]
    if rows:
        yield table(["engine", "state", "version", "source"], rows)
    told = {"serves": dtypes_on(chip), "can": abilities_of(chip)}
    for label, answers in told.items():
        if answers:
            cited = dict.fromkeys(source for one in answers.values() for source in one.sources)
            yield entry(label, f"{_by_state(answers)} {_marks(cited, sources)}", indent=20)


def _by_state(answers: dict[str, Answer]) -> str:
    """Names under the state they share, best first."""
    groups = {
        state: [name for name, one in answers.items() if one.state == state] for state in STATES
    }
    return "; ".join(f"{state}: {', '.join(names)}" for state, names in groups.items() if names)


def _neighbours(chip: str, sources: Sources) -> Iterator[str]:
    if stack_of(chip) is None:
        return
    own = shared_collective(chip, chip)
    yield ""
    text = own.library or f"own library {own.state}"
    yield entry("collective", f"{text} among its own {_marks(own.sources, sources)}", indent=20)
    groups: dict[tuple[str, str], list[str]] = {}
    cited: dict[tuple[str, str], tuple[Cited, ...]] = {}
    for one in neighbours(chip):
        how = " through the hosts" if one.answer.through_host else ""
        lacks = f" without {', '.join(one.answer.lacks)}" if one.answer.lacks else ""
        key = (f"{one.answer.library}{how}{lacks}", one.answer.state)
        groups.setdefault(key, []).append(one.stack.id)
        cited[key] = tuple(dict.fromkeys((*cited.get(key, ()), *one.answer.sources)))
    for (library, state), ids in groups.items():
        text = f"{library}, {state}: {', '.join(ids)} {_marks(cited[library, state], sources)}"
        yield entry("", text, indent=20)
    yield from _crossings(crossings(chip), sources)


def _crossings(found: list[Crossing], sources: Sources) -> Iterator[str]:
    """One line per path, with the chips it reaches."""
    paths: dict[tuple[bool, str, str], list[Crossing]] = {}
    for one in found:
        paths.setdefault((one.to, one.answer.state, one.answer.via or "?"), []).append(one)
    if not paths:
        yield entry("cache crosses", "to no other vendor's chip that a source names", indent=20)
    for (to, state, via), chips in paths.items():
        names = ", ".join(one.chip for one in chips[:4])
        more = f" and {len(chips) - 4} more" if len(chips) > 4 else ""
        label = "cache goes to" if to else "cache comes from"
        text = f"{names}{more}: {state}, {via} {_marks(chips[0].answer.sources, sources)}"
        yield entry(label, text, indent=20)


def _events(chip: str, sources: Sources) -> Iterator[str]:
    events = events_of(chip)
    regimes = regimes_of(chip) if known_names().get(chip) == "accelerator" else []
    if not events and not regimes:
        return
    yield f"\nevents: {len(events)}"
    for event in events[:_LATEST]:
        text = f"{event.what} ({event.region}: {event.effect}) {_marks(event.sources, sources)}"
        yield entry(event_date(event), text, indent=12)
    if len(events) > _LATEST:
        yield f"            and {len(events) - _LATEST} before; --json has them all"
    for regime in regimes:
        marks = _marks(regime.sources, sources)
        yield entry("plan with", f"{regime.what}: {regime.planner_state} {marks}", indent=12)


def _prices(chip: str, sources: Sources) -> Iterator[str]:
    found = prices_of(chip)
    if found:
        yield "\nprices"
    for price in found:
        what = f"{price.what or price_kind(price)}, {price.region}, {price.basis}"
        marks = _marks(price.sources, sources)
        yield entry(price.date, f"{amount(price)}: {what} {marks}", indent=12)
    if looked_for_price(chip):
        yield "\nprices: looked for, none found"


def _stack(stack: Stack, sources: Sources) -> Iterator[str]:
    yield f"{stack.vendor} {stack.name} ({stack.id})"
    software = stack.software
    told = {
        "chips": ", ".join(stack.chips),
        "torch": f"{software.torch_package or '?'}, device {stack.torch_device or software.torch_device}",
        "collectives": software.collectives,
        "vLLM": software.vllm,
        "limits": _chips(stack.chip_limits),
        "note": stack.note,
        "software": software.note,
    }
    yield from (entry(label, text, indent=14) for label, text in told.items() if text)
    yield f"\nread in {_marks((*software.sources, *stack.sources), sources)}"
    for engine in stack.engines:
        what = [engine.how, engine.version, engine.date, engine.note, _chips(engine.chips)]
        yield _told(engine.engine, engine.state, what, _marks(engine.sources, sources))
    for name, cell in stack.dtypes.items():
        yield _told(name, cell.state, _parts(cell), _marks(stack.dtype_sources, sources))
    for name, cell in stack.abilities.items():
        yield _told(name.replace("_", " "), cell.state, _parts(cell), _marks(cell.sources, sources))


def _told(label: str, state: str, parts: Iterable[str | None], marks: str) -> str:
    text = "; ".join(part for part in (state, *parts) if part)
    return entry(f"{label} ", f"{text} {marks}", indent=22)


def _parts(cell: Cell) -> list[str | None]:
    return [cell.what, ", ".join(cell.connectors), cell.note, _chips(cell.chips)]


def _chips(states: dict[str, Any]) -> str | None:
    return ", ".join(f"{chip} {state}" for chip, state in states.items()) or None


def _event(event: Event, sources: Sources) -> Iterator[str]:
    yield f"{event_date(event)} {event.id}"
    told = {
        "what": f"{event.what} {_marks(event.sources, sources)}",
        "effect": f"{event.effect}, {event.region}",
        "by": event.actor,
        "chips": ", ".join(event.chips),
        "vendors": ", ".join(event.vendors),
        "magnitude": event.magnitude,
        "basis": f"{event.kind}, {event.basis}, confidence {event.confidence}",
        "note": event.note,
    }
    yield from (entry(label, text) for label, text in told.items() if text)


def _price(price: Price, sources: Sources) -> Iterator[str]:
    yield f"{price.id} {price.target or price.region}"
    told = {
        "price": f"{amount(price)} {_marks(price.sources, sources)}",
        "of": price.what,
        "terms": price.terms,
        "region": price.region,
        "date": price.date,
        "basis": f"{price.basis}, confidence {price.confidence}",
        "condition": price.condition,
        "note": price.note,
    }
    yield from (entry(label, text) for label, text in told.items() if text)
