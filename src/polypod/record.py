"""The run record: what happened, live or simulated, in one format.

JSON lines. The first is a `Header`; then one `Step` per event, with the actions the policy answered; `Measure` lines say
what the driver itself saw (busy time of a replica, energy), `FaultNote` lines what broke in a simulation, `PlanNote` lines which other plan a live node was brought to.
No line holds the text of a prompt or an answer.

A record replays: a fresh policy made from the header gives the same actions to the same events.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from polypod.errors import FileError
from polypod.policy.actions import AnyAction
from polypod.policy.events import AnyEvent
from polypod.policy.settings import PolicySettings

FORMAT = 1


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="header"):
    """What the run was made from."""

    format: Literal[1] = 1
    kind: Literal["live", "simulated"]
    polypod: str
    policy: PolicySettings
    plan: dict[str, Any] | None = None
    plan_sha256: str | None = None
    trace_sha256: str | None = None
    seed: int | None = None
    started_utc: str | None = None  # live only: a simulated run has no date
    sample: float | None = (
        None  # of the requests, the share whose steps were kept; such a record cannot be replayed
    )
    gateway: int | None = None  # from 0: this is one of `gateways` parts of a run
    gateways: int | None = None


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="step"):
    """One event and the policy's answer."""

    event: AnyEvent
    actions: list[AnyAction] = []


class Measure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="measure"):
    """A number the driver saw. `of` is a replica or a pool; the name wears its unit."""

    at_s: float
    of: str
    name: str
    value: float


class FaultNote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="fault"):  # fmt: skip
    """Something that broke, and whom it hit; what the policy heard of it are events. Times that never come are None.

    `what` is crash, hang, slow, flap or slow-link; `where` as in a fault file, "card a/17". `replicas` are those it stopped or slowed,
    none where nothing ran there. `back_s` is when the last of them served again, `by_spare` of how many a spare took the place.
    """

    id: int  # from 1, in the order of time
    at_s: float
    what: str
    where: str
    replicas: tuple[str, ...]
    noticed_s: float | None = None
    repaired_s: float | None = None
    back_s: float | None = None
    by_spare: int = 0
    cause: str = ""  # the kind of failure it was drawn from, or the file's own word


class PlanNote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="plan"):
    """From here on what comes up is of this plan; what the policy is told of it are events. A change that is undone ends with a note of the plan before."""

    at_s: float
    plan: dict[str, Any]
    plan_sha256: str


RUN = "run"
END = "end_s"
"""A `Measure` of the run with this name, the time of its end, is the last line of a record that is whole."""


def ended(at_s: float) -> Measure:
    """The last line of a whole record."""
    return Measure(at_s=at_s, of=RUN, name=END, value=at_s)


Line = Header | Step | Measure | FaultNote | PlanNote

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Line)


def encode(line: Line) -> bytes:
    """One line, newline included; the same object gives the same bytes."""
    return _ENCODER.encode(line) + b"\n"


def encode_all(lines: Sequence[Line]) -> bytes:
    """The same of many, one after the other."""
    return _ENCODER.encode_lines(lines)


class Writer:
    """Appends lines to a binary file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, line: Line) -> None:
        self._file.write(encode(line))


def read(path: Path) -> Iterator[Line]:
    """Yield the lines of a record: a header, then the others. Raises `FileError` with the line number where one is broken."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    with file:
        number = 0
        for number, raw in enumerate(file, start=1):
            try:
                line = _DECODER.decode(raw)
            except msgspec.DecodeError as error:
                raise FileError(path, f"line {number}: {error}") from error
            if isinstance(line, Header) != (number == 1):
                problem = (
                    "a second header"
                    if number > 1
                    else f"a record begins with a header of format {FORMAT}"
                )
                raise FileError(path, f"line {number}: {problem}")
            yield line
    if not number:
        raise FileError(path, "is empty")
