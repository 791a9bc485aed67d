"""A record's requests as a trace: what came then, to be played again, on the same replicas or on others.

When each came, its model, tenant, priority, limit on the answer and prefix hashes are those of its arrival; its lengths are what the engine counted, where it
finished. How long the others' answers would have been nobody knows: each gets the length of a finished request of its model, drawn from the seed (of any
model, where none of its own finished). A request that asked for a replica by name is one that any may answer.

The hashes are of a prompt's full blocks. Blocks that an answer filled are in a record only where a later prompt has them.
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from polypod.errors import FileError, InputError, nearest_names
from polypod.policy.events import (
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFinished,
    SettingsChanged,
    StepObserved,
)
from polypod.policy.settings import ServiceSettings
from polypod.record import Header, Step
from polypod.report.outcomes import Bools, Ints
from polypod.report.reading import Reading, record_file
from polypod.workload.traffic_rows import Trace, starts_of
from polypod.workload.traffic_sessions import with_sessions

_HEAD_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """A record's requests, n of them in the order they came; the first at second 0 of the trace, and at `begin_s` of the record."""

    header: Header
    trace: Trace
    begin_s: float
    changes: tuple[ReplicaUp | ReplicaDown, ...]  # in the record's own time
    warm_ups: tuple[StepObserved, ...]  # steps that were timed
    is_drawn: Bools  # n long: whose answer's length is drawn
    is_pinned: Bools  # n long: who asked for a replica by name
    is_streamed: Bools  # n long
    served: tuple[
        str, ...
    ]  # models that the run ever was to serve; a request for another was refused
    note: str | None  # what is wrong with the file, where it can be read all the same


def is_record(path: Path) -> bool:
    """Whether the file, or `record.jsonl` in the folder, begins as a record does. False for one that cannot be read."""
    try:
        with record_file(path).open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return head.startswith(b'{"type":"header"')


def read_recorded(path: Path, *, seed: int = 0) -> Recorded:
    """Read a record, whole or cut short. Raises `FileError` for one that is broken, holds no request, or none that finished."""
    file = record_file(path)
    lines = _read(file)
    if not lines.arrived:
        raise FileError(file, "holds no request, so that there is nothing to play again")
    came = list(lines.arrived.values())
    trace = _arrivals(file, lines.header, came)
    trace, is_drawn = _with_lengths(file, trace, came, lines.finished, seed)
    return Recorded(
        header=lines.header,
        trace=replace(trace, sha256=_sha256(file)),
        begin_s=came[0].at_s,
        changes=tuple(lines.changes),
        warm_ups=tuple(lines.warm_ups),
        is_drawn=is_drawn,
        is_pinned=np.array([event.only_replica is not None for event in came]),
        is_streamed=np.array([event.is_streamed for event in came]),
        served=tuple(dict.fromkeys(service.model for service in lines.services)),
        note=lines.note,
    )


@dataclass(slots=True, kw_only=True, eq=False)
class _Lines:
    """What is wanted of a record; requests by number, in the order they came."""

    header: Header
    arrived: dict[int, RequestArrived] = field(default_factory=dict)
    finished: dict[int, RequestFinished] = field(default_factory=dict)
    changes: list[ReplicaUp | ReplicaDown] = field(default_factory=list)
    warm_ups: list[StepObserved] = field(default_factory=list)
    services: list[ServiceSettings] = field(default_factory=list)
    note: str | None = None


def _read(file: Path) -> _Lines:
    reading = Reading(file)
    lines = itertools.chain.from_iterable(reading)
    header = next(lines)
    assert isinstance(header, Header), "a record begins with its header"
    found = _Lines(header=header, services=list(header.policy.services))
    for line in lines:
        if not isinstance(line, Step):
            continue
        match line.event:
            case RequestArrived() as event:
                found.arrived[event.request] = event
            case RequestFinished() as event:
                found.finished[event.request] = event
            case ReplicaUp() | ReplicaDown() as event:
                found.changes.append(event)
            case StepObserved() as event:
                found.warm_ups.append(event)
            case SettingsChanged() as event:
                found.services += event.settings.services
    found.note = reading.note
    return found


def renamed(recorded: Recorded, models: Sequence[str], names: Mapping[str, str], way_out: str) -> Recorded:  # fmt: skip
    """The same requests for these models, some under other names (old to new). Raises `InputError` for what is not served, which ends with `way_out`.

    A model that the run itself did not serve keeps its name: its requests were refused, and are again.
    """
    for old, new in names.items():
        _known(old, recorded.trace.models, f"no request of {recorded.trace.name} is for {old!r}", "")  # fmt: skip
        _known(new, models, f"the plan does not serve {new!r}", "")
    asked = [names.get(name, name) for name in recorded.trace.models]
    for name, new in zip(recorded.trace.models, asked, strict=True):
        if name in recorded.served:
            problem = (
                f"{recorded.trace.name} has requests for {name!r}, which the plan does not serve"
            )
            _known(new, models, problem, way_out)
    return replace(recorded, trace=replace(recorded.trace, models=tuple(asked)))


def check_whole(recorded: Recorded, way_out: str) -> None:
    """Raise `InputError` for a record of a sample of its requests, which ends with `way_out`."""
    share = recorded.header.sample
    if share is not None:
        msg = f"{recorded.trace.name} keeps {100 * share:g} % of its requests, and the others came between them; {way_out}"
        raise InputError(msg)


def _known(name: str, known: Sequence[str], problem: str, way_out: str) -> None:
    if name not in known:
        near = ", ".join(nearest_names(name, known) or known[:5])
        msg = f"{problem}; nearest: {near}{way_out}"
        raise InputError(msg)


def _arrivals(file: Path, header: Header, came: Sequence[RequestArrived]) -> Trace:
    """All but the lengths."""
    at_s = np.array([event.at_s for event in came])
    if (np.diff(at_s) < 0).any():
        late = came[int(np.argmax(np.diff(at_s) < 0)) + 1]
        raise FileError(file, f"request {late.request} came before the one that stands before it; a record is in the order of time")  # fmt: skip
    model, models = _codes([event.model for event in came])
    tenant, tenants = _codes([event.tenant for event in came])
    trace = Trace(
        name=str(file),
        arrival_s=at_s - at_s[0],
        input_tokens=np.array([event.input_tokens for event in came]),
        output_tokens=np.ones(len(came), dtype=np.int64),
        model=model,
        models=models,
        tenant=tenant,
        tenants=tenants,
        priority=np.array([event.priority for event in came]),
        max_output_tokens=np.array([event.max_output_tokens or 0 for event in came]),
    )
    if not any(event.prefix_hashes for event in came):
        return trace
    hashed = replace(
        trace,
        block_hashes=np.array(
            [key for event in came for key in event.prefix_hashes], dtype=np.int64
        ),
        block_starts=starts_of(np.array([len(event.prefix_hashes) for event in came])),
        block_tokens=_block_tokens(file, header),
    )
    return with_sessions(hashed)


def _codes(names: Sequence[str]) -> tuple[Ints, tuple[str, ...]]:
    places: dict[str, int] = {}
    codes = np.array([places.setdefault(name, len(places)) for name in names], dtype=np.int64)
    return codes, tuple(places)


def _block_tokens(file: Path, header: Header) -> int:
    sizes = {service.block_tokens for service in header.policy.services}
    if len(sizes) > 1:
        raise FileError(file, f"has prefix hashes of {' and '.join(map(str, sorted(sizes)))} tokens, and a trace has them of one size")  # fmt: skip
    return sizes.pop()


def _with_lengths(
    file: Path,
    trace: Trace,
    came: Sequence[RequestArrived],
    finished: Mapping[int, RequestFinished],
    seed: int,
) -> tuple[Trace, Bools]:
    """Lengths as counted, and whose answers' are drawn. An engine that does not count says 0."""
    ends = [finished.get(event.request) for event in came]
    counted = [0 if end is None else end.input_tokens or 0 for end in ends]
    output_tokens = np.array([0 if end is None else end.output_tokens for end in ends])
    is_drawn = output_tokens < 1
    if is_drawn.all():
        raise FileError(file, "has no request that finished, so that nobody knows how long answers are")  # fmt: skip
    draw = np.random.default_rng(seed)
    for model in range(len(trace.models)):
        wanted = np.flatnonzero(is_drawn & (trace.model == model))
        known = ~is_drawn & (trace.model == model)
        pool = output_tokens[known if known.any() else ~is_drawn]
        output_tokens[wanted] = pool[draw.integers(len(pool), size=len(wanted))]
    input_tokens = np.where(counted, counted, trace.input_tokens)
    return replace(trace, input_tokens=input_tokens, output_tokens=output_tokens), is_drawn


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
