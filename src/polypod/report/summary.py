"""What a run's record says: how requests fared and how busy replicas were, for live and simulated runs alike.

TTFT runs from a request's arrival to its first token, over all its attempts; an answer in one piece has its first token when it
ends, and no TPOT. TPOT is (finish - first token) / (output tokens - 1), and there is none for one token. E2E runs from arrival to the end.
All three are over the requests that finished. Percentiles are linear between the two nearest ranks.

Goodput counts finished requests inside every limit of their model's SLO; its fraction is of all that arrived.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from polypod.plan.spec import Slo
from polypod.policy.actions import AnyAction, Decode, Dispatch, Prefill, Reject
from polypod.policy.events import (
    AnyEvent,
    ClientGone,
    FirstToken,
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFinished,
)
from polypod.record import Header, Line, Measure, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Seconds over some requests, at least one."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Requests inside the SLO."""

    requests: int
    fraction: float  # of those that arrived
    per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one replica, or the replicas of one pool, did. Up times add up over replicas."""

    name: str
    pool: str
    model: str
    requests: int  # finished there
    output_tokens: int
    up_s: float
    busy_s: float | None  # None: the driver did not measure it

    @property
    def busy_fraction(self) -> float | None:
        return None if self.busy_s is None or not self.up_s else self.busy_s / self.up_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run. Requests are finished, rejected (by status), gone (the client left), or were open at the end."""

    kind: str
    requests: int
    finished: int
    rejected: dict[int, int]
    gone: int
    open: int
    retries: int  # dispatches beyond each request's first
    duration_s: float  # from the first arrival to the last end of a request
    output_tokens: int
    ttft: Percentiles | None
    tpot: Percentiles | None
    e2e: Percentiles | None
    goodput: Goodput | None  # None: no SLO
    replicas: tuple[Share, ...]
    pools: tuple[Share, ...]

    @property
    def requests_per_s(self) -> float | None:
        return self.finished / self.duration_s if self.duration_s else None

    @property
    def output_tokens_per_s(self) -> float | None:
        return self.output_tokens / self.duration_s if self.duration_s else None


def summarise(lines: Iterable[Line], slos: Mapping[str, Slo] | None = None) -> RunSummary:
    """Read a record once. SLOs are by model; those of the plan in the header unless others are given."""
    tally = _Tally()
    for line in lines:
        tally.add(line)
    return tally.summary(slos)


@dataclass(slots=True, eq=False)
class _Request:
    model: str
    arrived_s: float
    attempt: tuple[int, str, int] = (0, "", 0)  # number, replica, epoch
    first_s: float | None = None


@dataclass(slots=True, eq=False)
class _Replica:
    up: ReplicaUp
    is_up: bool = True
    requests: int = 0
    output_tokens: int = 0
    up_s: float = 0.0  # of the starts before this one
    busy_s: float | None = None


@dataclass(slots=True, eq=False)
class _Tally:
    header: Header | None = None
    open: dict[int, _Request] = field(default_factory=dict)
    replicas: dict[str, _Replica] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    rejected: Counter[int] = field(default_factory=Counter)
    ended: list[tuple[str, float, float | None, float]] = field(default_factory=list)
    first_arrival_s: float | None = None
    last_end_s: float = 0.0
    now_s: float = 0.0

    def add(self, line: Line) -> None:
        if isinstance(line, Header):
            self.header = line
        elif isinstance(line, Step):
            self.now_s = max(self.now_s, line.event.at_s)
            self._event(line.event)
            for action in line.actions:
                self._action(action)
        else:
            self._measure(line)

    def _measure(self, line: Measure) -> None:
        self.now_s = max(self.now_s, line.at_s)
        replica = self.replicas.get(line.of)
        if replica is not None and line.name == "busy_s":
            replica.busy_s = line.value

    def _event(self, event: AnyEvent) -> None:
        match event:
            case RequestArrived():
                self._arrived(event)
            case FirstToken() | RequestFinished():
                request = self.open.get(event.request)
                said = (event.attempt, event.replica, event.epoch)
                if request is not None and request.attempt == said:
                    self._progress(request, event)
            case ClientGone() if self.open.pop(event.request, None) is not None:
                self.counts["gone"] += 1
                self.last_end_s = event.at_s
            case ReplicaUp():
                self._up(event)
            case ReplicaDown():
                self._down(event.replica, event.epoch, event.at_s)
            case _:
                pass

    def _arrived(self, event: RequestArrived) -> None:
        if event.request not in self.open:
            self.counts["requests"] += 1
            self.open[event.request] = _Request(event.model, event.at_s)
            if self.first_arrival_s is None:
                self.first_arrival_s = event.at_s

    def _progress(self, request: _Request, event: FirstToken | RequestFinished) -> None:
        if isinstance(event, FirstToken):
            request.first_s = event.at_s if request.first_s is None else request.first_s
            return
        del self.open[event.request]
        replica = self.replicas[event.replica]
        replica.requests += 1
        replica.output_tokens += event.output_tokens
        e2e_s, gaps = event.at_s - request.arrived_s, event.output_tokens - 1
        ttft_s, tpot_s = e2e_s, None
        if request.first_s is not None:
            ttft_s = request.first_s - request.arrived_s
            tpot_s = (event.at_s - request.first_s) / gaps if gaps > 0 else None
        self.ended.append((request.model, ttft_s, tpot_s, e2e_s))
        self.last_end_s = event.at_s

    def _up(self, event: ReplicaUp) -> None:
        known = self.replicas.get(event.replica)
        if known is None:
            self.replicas[event.replica] = _Replica(event)
        elif event.epoch > known.up.epoch:
            self._down(event.replica, known.up.epoch, event.at_s)
            known.up, known.is_up = event, True

    def _down(self, name: str, epoch: int, at_s: float) -> None:
        known = self.replicas.get(name)
        if known is not None and known.is_up and known.up.epoch == epoch:
            known.up_s += at_s - known.up.at_s
            known.is_up = False

    def _action(self, action: AnyAction) -> None:
        match action:
            case Dispatch() | Prefill() | Decode() if action.request in self.open:
                self.counts["retries"] += action.attempt > 1 and not isinstance(action, Decode)
                request = self.open[action.request]
                request.attempt = (action.attempt, action.replica, action.epoch)
            case Reject() if self.open.pop(action.request, None) is not None:
                self.rejected[action.status] += 1
                self.last_end_s = self.now_s
            case _:
                pass

    def summary(self, slos: Mapping[str, Slo] | None) -> RunSummary:
        since_s = self.last_end_s if self.first_arrival_s is None else self.first_arrival_s
        duration_s = max(self.last_end_s - since_s, 0.0)
        slos = _plan_slos(self.header) if slos is None else slos
        replicas = tuple(self._share(name, one) for name, one in self.replicas.items())
        return RunSummary(
            kind="" if self.header is None else self.header.kind,
            requests=self.counts["requests"],
            finished=len(self.ended),
            rejected=dict(sorted(self.rejected.items())),
            gone=self.counts["gone"],
            open=len(self.open),
            retries=self.counts["retries"],
            duration_s=duration_s,
            output_tokens=sum(share.output_tokens for share in replicas),
            ttft=percentiles([ttft_s for _, ttft_s, _, _ in self.ended]),
            tpot=percentiles([tpot_s for _, _, tpot_s, _ in self.ended if tpot_s is not None]),
            e2e=percentiles([e2e_s for *_, e2e_s in self.ended]),
            goodput=self._goodput(slos, duration_s),
            replicas=replicas,
            pools=_pools(replicas),
        )

    def _goodput(self, slos: Mapping[str, Slo], duration_s: float) -> Goodput | None:
        if not slos:
            return None
        inside = sum(_keeps(slos.get(one[0]), ttft_s=one[1], tpot_s=one[2]) for one in self.ended)
        return Goodput(
            requests=inside,
            fraction=inside / max(self.counts["requests"], 1),
            per_s=inside / duration_s if duration_s else None,
        )

    def _share(self, name: str, replica: _Replica) -> Share:
        return Share(
            name=name,
            pool=replica.up.pool,
            model=replica.up.model,
            requests=replica.requests,
            output_tokens=replica.output_tokens,
            up_s=replica.up_s + (self.now_s - replica.up.at_s if replica.is_up else 0.0),
            busy_s=replica.busy_s,
        )


def percentiles(values_s: Sequence[float]) -> Percentiles | None:
    """Mean and percentiles; None of nothing, and of one value that value.

    >>> percentiles([1.0, 2.0, 3.0, 4.0, 5.0])
    Percentiles(mean_s=3.0, p50_s=3.0, p90_s=4.6, p99_s=4.96)
    """
    if not values_s:
        return None
    p50_s, p90_s, p99_s = (float(value) for value in np.percentile(values_s, (50, 90, 99)))
    return Percentiles(mean_s=float(np.mean(values_s)), p50_s=p50_s, p90_s=p90_s, p99_s=p99_s)


def _keeps(slo: Slo | None, *, ttft_s: float, tpot_s: float | None) -> bool:
    """Whether a request kept the limits of its model, if it has any."""
    if slo is None:
        return True
    keeps_ttft = slo.ttft_s is None or ttft_s <= slo.ttft_s
    return keeps_ttft and (slo.tpot_s is None or tpot_s is None or tpot_s <= slo.tpot_s)


def _plan_slos(header: Header | None) -> dict[str, Slo]:
    services = (header.plan or {}).get("services", []) if header is not None else []
    return {
        service["model"]: msgspec.convert(service["slo"], Slo)
        for service in services
        if service.get("slo")
    }


def _pools(replicas: Sequence[Share]) -> tuple[Share, ...]:
    by_pool: dict[tuple[str, str], list[Share]] = {}
    for share in replicas:
        by_pool.setdefault((share.pool, share.model), []).append(share)
    return tuple(_sum(pool, model, shares) for (pool, model), shares in by_pool.items())


def _sum(pool: str, model: str, shares: Sequence[Share]) -> Share:
    busy_s = [share.busy_s for share in shares if share.busy_s is not None]
    return Share(
        name=pool,
        pool=pool,
        model=model,
        requests=sum(share.requests for share in shares),
        output_tokens=sum(share.output_tokens for share in shares),
        up_s=sum(share.up_s for share in shares),
        busy_s=sum(busy_s) if len(busy_s) == len(shares) else None,
    )
