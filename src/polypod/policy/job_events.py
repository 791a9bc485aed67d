"""What the job scheduler hears and what it asks for: frozen, and all a log needs to replay.

A job is a number that one scheduler never uses twice. `run` counts its starts from 1, over preemptions and failures; a word about
another run than the present one is stale, and ignored. Cards are numbered as `job_fleet.Fleet` lays them out.
"""

from typing import Annotated, Literal

import msgspec

from polypod.policy.actions import Action, WakeAt
from polypod.policy.events import Event, Woke

Within = Literal["node", "rack", "island", "fleet"]
"""The widest tier a gang may span, nearest first; `fleet` is every island of one kind."""

Positive = Annotated[int, msgspec.Meta(ge=1)]


class JobSubmitted(Event, frozen=True, kw_only=True):
    """A gang of `cards` like cards wants to run: all of them at once, or none.

    The gang is made of groups of `group` cards, each inside one node, all of them inside one instance of `within`. `kinds` are tried in
    order; none given means any kind. `limit_s` is of work, in all runs together; time spent on checkpoints and restarts comes on top.
    A checkpoint is written after every `checkpoint_every_s` of work and takes `checkpoint_cost_s`; None: there are none, and a run that is
    cut short has done nothing. `restart_s` is spent at the start of every run after the first.
    """

    job: int
    cards: Positive
    limit_s: Annotated[float, msgspec.Meta(gt=0)]
    kinds: tuple[str, ...] = ()
    group: Positive = 1
    within: Within = "island"
    tenant: str = ""
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    checkpoint_every_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    checkpoint_cost_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    restart_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    is_preemptible: bool = True
    retries: Annotated[int, msgspec.Meta(ge=0)] = 0  # after failures of its own


class _OfRun(Event, frozen=True, kw_only=True):
    job: int
    run: int


class JobFinished(_OfRun, frozen=True, kw_only=True):
    """The work is done; the cards are free."""


class JobFailed(_OfRun, frozen=True, kw_only=True):
    """The run ended without its result, by the job's own fault; the cards are free."""

    reason: str = ""


class JobWithdrawn(Event, frozen=True, kw_only=True):
    """Nobody wants the job any more, running or waiting."""

    job: int


class CardsLost(Event, frozen=True, kw_only=True):
    """These cards are gone, and with them every run that held one."""

    cards: tuple[int, ...]


class CardsBack(Event, frozen=True, kw_only=True):
    """These cards work again."""

    cards: tuple[int, ...]


class ServiceWants(Event, frozen=True, kw_only=True):
    """A serving pool is to have this many replicas, each a gang of `cards`; what it holds above that it gives back.

    Its replicas come before every job, and take cards from jobs that may be preempted.
    """

    service: str
    replicas: Annotated[int, msgspec.Meta(ge=0)]
    cards: Positive
    kinds: tuple[str, ...] = ()
    group: Positive = 1
    within: Within = "node"


AnyJobEvent = (
    JobSubmitted
    | JobFinished
    | JobFailed
    | JobWithdrawn
    | CardsLost
    | CardsBack
    | ServiceWants
    | Woke
)


class StartJob(Action, frozen=True, kw_only=True):
    """Run the job on these cards, from its beginning."""

    job: int
    run: int
    cards: tuple[int, ...]
    is_backfilled: bool  # it went past a job that waits for a reserved time


class ResumeJob(StartJob, frozen=True, kw_only=True):
    """Run the job on these cards from its last checkpoint, `saved_s` of work done."""

    saved_s: float


PreemptReason = Literal["service", "priority", "reclaim", "cards_lost"]


class PreemptJob(Action, frozen=True, kw_only=True):
    """Stop this run; the job waits again. What it did after its last checkpoint, `lost_s` of work, is lost."""

    job: int
    run: int
    reason: PreemptReason
    lost_s: float


EndReason = Literal["time_limit", "failed", "withdrawn"]


class EndJob(Action, frozen=True, kw_only=True):
    """The job is over without its result: stop its run where it has one. It will not be started again."""

    job: int
    run: int  # 0: it never ran
    reason: EndReason


class RejectJob(Action, frozen=True, kw_only=True):
    """The job can never run here. `most_cards` is the largest gang of its shape that could, 0 where none could."""

    job: int
    code: Literal["never_fits", "over_quota", "unknown_kind", "bad_shape"]
    message: str
    most_cards: int


class StartReplica(Action, frozen=True, kw_only=True):
    """The service has these cards for a replica."""

    service: str
    replica: int  # one scheduler never uses the number twice
    cards: tuple[int, ...]


class StopReplica(Action, frozen=True, kw_only=True):
    """The service gives the replica's cards back."""

    service: str
    replica: int
    reason: Literal["not_wanted", "cards_lost"]


AnyJobAction = (
    StartJob | ResumeJob | PreemptJob | EndJob | RejectJob | StartReplica | StopReplica | WakeAt
)
