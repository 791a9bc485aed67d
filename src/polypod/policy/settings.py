"""What the policy is told: the models it may serve and its limits. In every record's header, and in an event of it whenever they change."""

from typing import Annotated, Final, Literal

import msgspec

from polypod.errors import InputError


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model the node is meant to serve, whether or not a replica is up."""

    model: str
    context_tokens: int
    mean_output_tokens: float = 256.0  # expected of a request until the first ones have finished
    block_tokens: Annotated[int, msgspec.Meta(ge=1)] = (
        512  # of the prompt, that each of a request's prefix hashes stands for
    )
    first_token_limit_s: Annotated[float, msgspec.Meta(gt=0)] | None = None  # promised


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits, each with a reason.

    `queue_requests` bounds what waits for each model; `queue_wait_s` how long (a client has given up by then). A cache that is on its way from a prefill to a decode replica
    for `kv_wait_s` is given up for lost: what is between them may be dead, and nobody says so.
    `max_attempts` counts the dispatches of one request that may fail; a busy answer is no failure, nor is a connection that nobody takes. `retry_budget_fraction`
    caps, fleet-wide, the live requests that are on a retry, so that a sick fleet is not drowned by its own second tries (the
    20 % of Envoy and Finagle), above a floor of `retry_budget_floor`. What a replica drops once the breaker has opened or it
    is down is not charged: it comes in one wave and cannot go back there.
    `quarantine_deaths`: a request in flight at this many replica deaths is suspected of causing them.
    `breaker_failures` in a row take a replica out of routing for `breaker_open_s`; then one request at a time tries it, until
    one succeeds. `busy_pause_s` is how long a replica that says it is full, and not for how long, is left alone.
    `prefix_blocks`, of each model, are remembered by where they were sent last; 0 lets the router take no notice of prefixes.
    `max_continuations`: so often a stream goes on elsewhere after it broke off; one that kills its replicas in the middle of its answer kills so many
    and one more. Such a death says nothing against the prompt, and does not count for `quarantine_deaths`.
    `turns`: within a priority, first come first served, or tenants in proportion to `tenant_weights` (1 where not said), by tokens.
    `admission`: whoever finds no room waits (`queue`); or is turned away at once where the wait is expected to last past `queue_wait_s`, or the first
    token to come past the model's `first_token_limit_s` (`slo`).
    `session_entries` sessions are remembered by where they went last. The next request goes there too while it is expected to end at most
    `session_stay_fraction` later than at the best place.
    """

    services: tuple[ServiceSettings, ...]
    queue_requests: int = 1024
    queue_wait_s: float = 60.0
    kv_wait_s: float = 60.0
    max_attempts: int = 3
    retry_budget_fraction: float = 0.2
    retry_budget_floor: int = 10
    quarantine_deaths: int = 2
    breaker_failures: int = 3
    breaker_open_s: float = 5.0
    busy_pause_s: float = 1.0
    prefix_blocks: Annotated[int, msgspec.Meta(ge=0)] = 131_072
    max_continuations: Annotated[int, msgspec.Meta(ge=0)] = 3
    turns: Literal["arrival", "tenants"] = "arrival"
    tenant_weights: dict[str, Annotated[float, msgspec.Meta(gt=0)]] = {}
    admission: Literal["queue", "slo"] = "queue"
    session_entries: Annotated[int, msgspec.Meta(ge=0)] = 65_536
    session_stay_fraction: Annotated[float, msgspec.Meta(ge=0)] = 0.5


FIXED: Final = ("prefix_blocks", "session_entries", "session_stay_fraction")
"""Memory that is laid out by these stays as a policy began."""


def check_change(old: PolicySettings, new: PolicySettings) -> None:
    """Raise `InputError` for what a policy cannot be told while it runs."""
    changed = [name for name in FIXED if getattr(old, name) != getattr(new, name)]
    blocks = {service.model: service.block_tokens for service in old.services}
    changed += [
        f"block_tokens of {service.model}"
        for service in new.services
        if service.block_tokens != blocks.get(service.model, service.block_tokens)
    ]
    if changed:
        msg = f"{', '.join(changed)} cannot change while a node runs; stop it and start it anew"
        raise InputError(msg)
