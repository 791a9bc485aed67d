"""What the policy is told once: the models it may serve and its limits. Part of every record's header."""

from typing import Annotated

import msgspec


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model the node is meant to serve, whether or not a replica is up."""

    model: str
    context_tokens: int
    mean_output_tokens: float = 256.0  # expected of a request until the first ones have finished
    block_tokens: Annotated[int, msgspec.Meta(ge=1)] = (
        512  # of the prompt, that each of a request's prefix hashes stands for
    )


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits, each with a reason.

    `queue_requests` bounds what waits for each model; `queue_wait_s` how long (a client has given up by then).
    `max_attempts` counts the dispatches of one request that may fail; a busy answer is no failure. `retry_budget_fraction`
    caps, fleet-wide, the live requests that are on a retry, so that a sick fleet is not drowned by its own second tries (the
    20 % of Envoy and Finagle), above a floor of `retry_budget_floor`. What a replica drops once the breaker has opened or it
    is down is not charged: it comes in one wave and cannot go back there.
    `quarantine_deaths`: a request in flight at this many replica deaths is suspected of causing them.
    `breaker_failures` in a row take a replica out of routing for `breaker_open_s`; then one request at a time tries it, until
    one succeeds. `busy_pause_s` is how long a replica that says it is full, and not for how long, is left alone.
    `prefix_blocks`, of each model, are remembered by where they were sent last; 0 lets the router take no notice of prefixes.
    """

    services: tuple[ServiceSettings, ...]
    queue_requests: int = 1024
    queue_wait_s: float = 60.0
    max_attempts: int = 3
    retry_budget_fraction: float = 0.2
    retry_budget_floor: int = 10
    quarantine_deaths: int = 2
    breaker_failures: int = 3
    breaker_open_s: float = 5.0
    busy_pause_s: float = 1.0
    prefix_blocks: Annotated[int, msgspec.Meta(ge=0)] = 131_072
