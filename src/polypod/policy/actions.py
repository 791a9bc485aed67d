"""What the policy asks its driver to do, in order. Imperative, frozen; carried out, never questioned."""

from typing import Literal

import msgspec

RetryReason = Literal["refused", "lost", "timeout", "engine", "busy", "replica_down", "kv_lost"]


class Action(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag=True):
    """Do this now."""


class _OfAttempt(Action, frozen=True, kw_only=True):
    request: int
    attempt: int
    replica: str
    epoch: int


class Dispatch(_OfAttempt, frozen=True, kw_only=True):
    """Send the whole request to this replica.

    `predicted_first_token_s` is how long the router expects to wait for the first token from now on,
    `predicted_token_s` how long for each one after it. Where `continues_after_tokens` is more than 0, the client has that much of the
    answer, and the replica is asked for the rest.
    """

    predicted_first_token_s: float
    predicted_token_s: float
    continues_after_tokens: int = 0


class Prefill(_OfAttempt, frozen=True, kw_only=True):
    """Compute the prompt's KV cache on this replica."""


class TransferKv(_OfAttempt, frozen=True, kw_only=True):
    """Move the KV cache from `source` to this replica."""

    source: str
    source_epoch: int


class Decode(_OfAttempt, frozen=True, kw_only=True):
    """Generate from the KV cache that this replica holds."""


class Retry(Action, frozen=True, kw_only=True):
    """Give up this attempt quietly; the request waits, and will be dispatched again."""

    request: int
    attempt: int  # the one given up
    reason: RetryReason


class Reject(Action, frozen=True, kw_only=True):
    """End the request with an error: a status before the first byte, in-band after it.

    `from_engine` asks the driver to hand on the engine's own 4xx answer, which it holds.
    """

    request: int
    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    from_engine: bool = False


class Cancel(_OfAttempt, frozen=True, kw_only=True):
    """Stop this attempt on its replica; nobody waits for it."""


class Drain(Action, frozen=True, kw_only=True):
    """Let a replica finish what it has, and give it nothing new."""

    replica: str
    epoch: int


class Scale(Action, frozen=True, kw_only=True):
    """Bring a pool to this many replicas."""

    pool: str
    replicas: int


class WakeAt(Action, frozen=True, kw_only=True):
    """Send `Woke` at this time or just after it; a time already past means at once."""

    at_s: float


AnyAction = (
    Dispatch | Prefill | TransferKv | Decode | Retry | Reject | Cancel | Drain | Scale | WakeAt
)
