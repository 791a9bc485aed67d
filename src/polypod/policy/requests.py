"""What the policy remembers of a live request; nothing of one that has ended."""

import math
from typing import Literal, NamedTuple

import msgspec

from polypod.policy.events import RequestArrived

Phase = Literal[
    "whole",  # waits, or runs on one replica from its prompt to its end
    "prefill",  # its prompt is computed by a prefill replica
    "held",  # that replica holds its cache, and no decode replica has room
    "transfer",  # its cache is on the way
    "decode",  # a decode replica has it
]


Turn = tuple[int, float, int]
"""Higher priority first, then the tenant's turn, then first come first served: less priority, start of the tenant's turn, number of the arrival."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What a request needs of a replica."""

    input_tokens: int
    output_tokens: float  # expected
    need_tokens: int  # context it may come to fill
    is_streamed: bool = True  # its first token will be heard of
    prefix_hashes: tuple[int, ...] = ()

    @property
    def mean_kv_tokens(self) -> float:
        """Cache it holds on average while it decodes."""
        return self.input_tokens + self.output_tokens / 2


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What one dispatched request adds to its row, kept so that exactly this is taken off again."""

    row: int
    is_streamed: bool
    prompt_s: float
    kv_tokens: float
    first_token_s: float  # predicted, from the dispatch on
    token_s: float  # predicted
    model_token_s: float  # the same without the correction


class Failure(NamedTuple):
    """An attempt that came to nothing, at one start of a replica."""

    replica: str
    epoch: int
    was_sent: bool  # the replica had the request, and may have died of it
    had_answered: bool = False  # it computed the prompt and more, so that it hardly died of that


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where an attempt runs, and what it added there."""

    replica: str
    epoch: int
    load: Load


class Tracked(msgspec.Struct, eq=False, kw_only=True):
    """One live request: it waits while it has no place, runs while it has one, and streams from its first token on.

    With prefill and decode apart its place is the prefill replica until the cache leaves, and then the decode replica.
    """

    arrived: RequestArrived
    request: int
    model: str
    turn: Turn  # a retry keeps it
    cost_tokens: float = 0.0  # that its tenant is charged for it
    deadline_s: float  # for waiting
    kv_wait_s: float = math.inf  # that its cache may be on the way
    kv_deadline_s: float = math.inf  # for its cache to come, while that is on the way
    attempt: int = 0
    place: Place | None = None
    phase: Phase = "whole"
    source: Place | None = None  # where its cache comes from, while it is on the way to its place
    kv_tokens: int = 0  # of that cache
    placed_s: float = 0.0
    first_token_s: float | None = None  # of the attempt that runs
    continued: int = 0  # times that its stream went on, or waits to go on, elsewhere
    sent_tokens: int = 0  # that its client had by then
    build: str = ""  # of the replica where it broke off last
    attempts_failed: int = 0
    deaths: int = 0  # of replicas, while it was there
    failures: tuple[Failure, ...] = ()

    @classmethod
    def of(cls, arrived: RequestArrived, order: int, deadline_s: float) -> "Tracked":
        """A newcomer. What is asked of it often is kept beside what it said."""
        return cls(
            arrived=arrived,
            request=arrived.request,
            model=arrived.model,
            turn=(-arrived.priority, 0.0, order),
            deadline_s=deadline_s,
        )

    @property
    def start_tokens(self) -> float:
        """Of its tenant's turn among tenants: `fairness`."""
        return self.turn[1]

    def moved_to(self, start_tokens: float) -> None:
        """Give it another turn among tenants; it waits nowhere meanwhile."""
        self.turn = (self.turn[0], start_tokens, self.turn[2])

    @property
    def places(self) -> tuple[Place, ...]:
        """All that have something of it: one, or two while its cache is on the way."""
        return tuple(place for place in (self.source, self.place) if place is not None)

    @property
    def is_streaming(self) -> bool:
        """Whether the attempt that runs has answered."""
        return self.first_token_s is not None

    @property
    def has_begun(self) -> bool:
        """Whether the client has a part of its answer, from whichever attempt."""
        return self.is_streaming or self.continued > 0
