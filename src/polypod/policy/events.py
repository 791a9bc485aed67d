"""What the policy hears. Past tense, frozen, and all a log needs to replay.

`at_s` is monotonic seconds on the driver's clock, virtual or wall. A request is a number that one run never uses twice.
`attempt` counts its dispatches from 1; `epoch` counts the starts of a replica from 1. A word about an older attempt or
from an older epoch is stale, and ignored.
"""

from typing import Annotated, Literal

import msgspec

from polypod.cost.steptime import StepTime
from polypod.engine.closed_loop import Behaviour
from polypod.engine.imbalance import MOST_CV
from polypod.engine.prefix import TierSettings
from polypod.policy.settings import PolicySettings

Role = Literal["prefill", "decode", "both"]
Continuation = Literal[
    "off",  # a stream that breaks off ends with an error
    "text",  # it goes on elsewhere from the text that was sent
    "exact",  # it goes on elsewhere from the very tokens that were sent
]
FailureKind = Literal[
    "refused",  # no connection: nothing was sent
    "lost",  # the connection broke
    "timeout",  # silence past the limit
    "engine",  # the engine answered 5xx, or an answer that is no answer
    "client",  # the engine answered 4xx: the request's own fault, never the replica's
]


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag=True):
    """Something happened."""

    at_s: float


class RequestArrived(Event, frozen=True, kw_only=True):
    """A request came in. `max_output_tokens` is what the client allows.

    Where `input_tokens` was guessed from the text, `input_is_exact` is false, and the prompt is never refused for its length:
    the engine counts it. Where `is_streamed` is false, the answer comes in one piece and no `FirstToken` is told.
    `continuation` is what may be done for its stream once it has begun; `session` a number that one conversation's requests share.
    """

    request: int
    model: str
    input_tokens: int
    input_is_exact: bool = True
    max_output_tokens: int | None = None
    is_streamed: bool = True
    tenant: str = ""
    priority: int = 0
    prefix_hashes: tuple[int, ...] = ()
    only_replica: str | None = None  # asked for by name, for a test or a comparison
    continuation: Continuation = "off"
    session: int | None = None


class _OfAttempt(Event, frozen=True, kw_only=True):
    request: int
    attempt: int
    replica: str
    epoch: int


class PrefillFinished(_OfAttempt, frozen=True, kw_only=True):
    """The prefill worker holds the request's KV cache, `kv_tokens` long."""

    kv_tokens: int


class KvArrived(_OfAttempt, frozen=True, kw_only=True):
    """The decode worker holds the request's KV cache."""


class KvLost(_OfAttempt, frozen=True, kw_only=True):
    """The KV cache did not arrive; the prompt must be computed again."""


class FirstToken(_OfAttempt, frozen=True, kw_only=True):
    """The first byte of this attempt's answer left for the client. From here a retry would repeat what was sent; only a continuation may follow."""


class RequestFinished(_OfAttempt, frozen=True, kw_only=True):
    """The answer is complete. `output_tokens` is all of it, whoever computed it."""

    input_tokens: int | None = None  # as the engine counted, where it says
    output_tokens: int


class RequestFailed(_OfAttempt, frozen=True, kw_only=True):
    """This attempt failed. `status` is the engine's HTTP status where there was one.

    `sent_tokens` are those of the answer that the client has, from all attempts together.
    """

    kind: FailureKind
    status: int | None = None
    detail: str = ""
    sent_tokens: int = 0


class ClientGone(Event, frozen=True, kw_only=True):
    """The client went away; nobody waits for the answer."""

    request: int


class _OfReplica(Event, frozen=True, kw_only=True):
    replica: str
    epoch: int


class ReplicaUp(_OfReplica, frozen=True, kw_only=True):
    """A replica is ready, and this is what the cost model says of it."""

    model: str
    pool: str
    role: Role
    step_time: StepTime
    context_tokens: int  # the longest prompt plus answer it takes
    kv_capacity_tokens: int  # over all sequences
    max_sequences: int  # running at once; more wait inside the engine
    max_step_tokens: int  # the token budget of one step (chunked prefill)
    engine: Behaviour | None = (
        None  # how it schedules, where it differs from chunked prefill without drafts
    )
    prefix_tiers: TierSettings | None = None  # below HBM
    expert_imbalance_cv: Annotated[float, msgspec.Meta(ge=0, le=MOST_CV)] = 0.0  # of its step times
    kv_token_bytes: float = 0.0  # of its cache, as another replica is handed it
    kv_link_bytes_per_s: float = 0.0  # that caches come and go by, over all ranks; 0: in no time
    kv_link_latency_s: float = 0.0
    kv_pools: tuple[str, ...] = ()  # whose decode replicas it hands caches to; (): to all
    continues: Continuation = "off"  # how it goes on with an answer that another replica began
    build: str = ""  # its engine, version and weights: an exact continuation stays within one
    caches_prefixes: bool = True  # of prompts it has computed


class ReplicaDown(_OfReplica, frozen=True, kw_only=True):
    """A replica stopped answering: its process ended, or it hangs.

    `sent_tokens` says, by request, how much of the answers that were under way there their clients have. `back_in_s` is when its next start, or that of
    another in its place, is expected to answer; None where nobody is known to come. `also` are starts of other
    replicas that died with it, as those of one process do: it is one death.
    """

    reason: str
    sent_tokens: tuple[tuple[int, int], ...] = ()
    back_in_s: float | None = None
    also: tuple[tuple[str, int], ...] = ()


class ReplicaRetiring(_OfReplica, frozen=True, kw_only=True):
    """A replica is to go: it finishes what it has, and gets nothing new. Its `ReplicaDown` comes when it has ended."""


class ReplicaBusy(_OfAttempt, frozen=True, kw_only=True):
    """The engine answered 429 or 503: it is full, not broken."""

    retry_after_s: float | None = None
    sent_tokens: int = 0  # as of `RequestFailed`


class StepObserved(_OfReplica, frozen=True, kw_only=True):
    """A step, or the mean of several alike, was timed: the truth the cost model is corrected by.

    Counts are over the whole replica, and taken as spread evenly over its data-parallel ranks.
    """

    prompt_tokens: int  # computed in the step; 0 is a pure decode step
    sequences: int  # decoding, one token each
    kv_tokens: int  # that they read
    step_s: float


class LoadReported(_OfReplica, frozen=True, kw_only=True):
    """Another gateway's share of a replica's load."""

    gateway: str
    running: int
    queued_prompt_tokens: int


class SettingsChanged(Event, frozen=True, kw_only=True):
    """From here on the node has these settings: other models, limits of theirs, or limits of all.

    A model that is not among them takes nothing new; what runs of it runs to its end.
    """

    settings: PolicySettings


class Woke(Event, frozen=True, kw_only=True):
    """The time asked for by `WakeAt` has come."""


AnyEvent = (
    RequestArrived
    | FirstToken
    | StepObserved
    | RequestFinished
    | RequestFailed
    | ClientGone
    | PrefillFinished
    | KvArrived
    | KvLost
    | ReplicaUp
    | ReplicaDown
    | ReplicaRetiring
    | ReplicaBusy
    | LoadReported
    | SettingsChanged
    | Woke
)
