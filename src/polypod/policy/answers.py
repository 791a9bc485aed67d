"""The errors a request can end with: one function each, so that every status, code and way out is read in one place.

400  context_length_exceeded  no replica of the model could hold it
404  model_not_found          this node does not serve the model
404  model_removed            the model was taken out while the request waited
404  replica_not_found        no replica of that name has been up here
429  queue_full               as many wait already as may
429  too_late                 it would wait longer than it may
4xx  engine_refused           the engine's own answer, handed on
500  quarantined              replicas died with this request
502  replica_lost             the answer broke off after its first byte, and may not or cannot go on elsewhere
502  attempts_exhausted       it failed as often as it may
503  no_replica               none is up, nor expected in time
503  replica_retiring         the one that was asked for is to go
503  queue_timeout            some are up; none had room in time
503  retry_budget             too many requests are on a retry
"""

import math
from collections.abc import Iterable

from polypod.policy.actions import Reject
from polypod.policy.events import RequestArrived


def model_not_found(arrived: RequestArrived, models: Iterable[str]) -> Reject:
    return Reject(
        request=arrived.request,
        status=404,
        code="model_not_found",
        message=f"no model {arrived.model!r} here; there are: {', '.join(models)}",
        param="model",
    )


def model_removed(arrived: RequestArrived, models: Iterable[str]) -> Reject:
    return Reject(
        request=arrived.request,
        status=404,
        code="model_removed",
        message=f"model {arrived.model!r} was taken out of this node while the request waited; there are: {', '.join(models)}",
        param="model",
    )


def context_length_exceeded(arrived: RequestArrived, context_tokens: int) -> Reject:
    prompt = arrived.input_tokens if arrived.input_is_exact else 0
    most = arrived.max_output_tokens
    asked = [f"the prompt has {prompt}"] if prompt else []
    asked += [] if most is None else [f"max_tokens asks for {most}"]
    if prompt < context_tokens:
        way_out = f"max_tokens can be {context_tokens - prompt} at most"
    else:
        way_out = f"shorten the prompt by {prompt - context_tokens + 1} or more"
    return Reject(
        request=arrived.request,
        status=400,
        code="context_length_exceeded",
        message=f"{arrived.model} holds {context_tokens} tokens; {' and '.join(asked)}; {way_out}",
        param=None if most is None else "max_tokens",
    )


def replica_not_found(arrived: RequestArrived) -> Reject:
    return Reject(
        request=arrived.request,
        status=404,
        code="replica_not_found",
        message=f"no replica {arrived.only_replica!r} of {arrived.model!r} has been up here",
    )


def replica_retiring(arrived: RequestArrived) -> Reject:
    return Reject(
        request=arrived.request,
        status=503,
        code="replica_retiring",
        message=(
            f"replica {arrived.only_replica!r} is to go: it ends what it has, and takes nothing new; "
            "ask without `x-polypod-replica`, or for another one"
        ),
    )


def no_replica(arrived: RequestArrived, retry_after_s: float) -> Reject:
    named = "" if arrived.only_replica is None else f" called {arrived.only_replica!r}"
    return Reject(
        request=arrived.request,
        status=503,
        code="no_replica",
        message=f"no replica of {arrived.model!r}{named} is up now",
        retry_after_s=retry_after_s,
    )


def queue_timeout(arrived: RequestArrived, waited_s: float, retry_after_s: float) -> Reject:
    return Reject(
        request=arrived.request,
        status=503,
        code="queue_timeout",
        message=f"no replica of {arrived.model!r} had room within {waited_s:g} s",
        retry_after_s=retry_after_s,
    )


def queue_full(arrived: RequestArrived, waiting: int, retry_after_s: float) -> Reject:
    return Reject(
        request=arrived.request,
        status=429,
        code="queue_full",
        message=f"{waiting} requests for {arrived.model!r} wait already, as many as may",
        retry_after_s=retry_after_s,
    )


def too_late(arrived: RequestArrived, expected_s: float, limit_s: float, retry_after_s: float) -> Reject:  # fmt: skip
    return Reject(
        request=arrived.request,
        status=429,
        code="too_late",
        message=(
            f"the first token of {arrived.model!r} is expected in {expected_s:.1f} s, and may take {limit_s:g} s; "
            f"ask again in {math.ceil(retry_after_s)} s"
        ),
        retry_after_s=retry_after_s,
    )


def engine_refused(request: int, status: int | None, what: str) -> Reject:
    return Reject(
        request=request, status=status or 400, code="engine_refused", message=what, from_engine=True
    )


def replica_lost(request: int, what: str) -> Reject:
    return Reject(
        request=request, status=502, code="replica_lost", message=f"the answer broke off: {what}"
    )


def attempts_exhausted(request: int, attempts: int, what: str) -> Reject:
    return Reject(
        request=request,
        status=502,
        code="attempts_exhausted",
        message=f"{attempts} attempts failed, as many as may; the last: {what}",
    )


def retry_budget(request: int, what: str, retry_after_s: float) -> Reject:
    return Reject(
        request=request,
        status=503,
        code="retry_budget",
        message=f"too many requests are on a retry to try this one again: {what}",
        retry_after_s=retry_after_s,
    )


def quarantined(request: int, deaths: int) -> Reject:
    return Reject(
        request=request,
        status=500,
        code="quarantined",
        message=f"{deaths} replicas died with this request in flight; it is not tried again",
    )
