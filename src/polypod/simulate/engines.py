"""The emulated engines of a run: which are up, and which request is on which."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from polypod.cost.steptime import StepTime
from polypod.engine import EngineLimits, Progress, ReplicaEmulation
from polypod.engine.imbalance import Imbalance
from polypod.engine.prefix import PrefixCache, RemoteStore
from polypod.engine.replica import PLAIN, Glimpse
from polypod.policy.actions import Decode, Dispatch, Prefill
from polypod.policy.events import ReplicaDown, ReplicaUp
from polypod.simulate.scenario import Fault
from polypod.simulate.trace import Arrival

Start = Dispatch | Prefill | Decode


@dataclass(slots=True, eq=False)
class Engine:
    """One start of a replica. `due_s` is the time of its entry in the agenda that counts."""

    up: ReplicaUp
    emulation: ReplicaEmulation
    due_s: float = math.inf
    starts: dict[int, Start] = field(default_factory=dict)  # by ticket


@dataclass(slots=True)
class Totals:
    """What a replica did, over all its starts. Prompt tokens that it found cached, by tier, and tokens that were evicted from its own tiers."""

    busy_s: float = 0.0
    computed_tokens: int = 0
    preemptions: int = 0
    found_hbm_tokens: int = 0
    found_host_tokens: int = 0
    found_remote_tokens: int = 0
    evicted_hbm_tokens: int = 0
    evicted_host_tokens: int = 0
    prompt_busy_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: float = 0.0

    def add(self, emulation: ReplicaEmulation) -> None:
        done = emulation.glimpse(-math.inf)  # without what a running step would have brought
        self.prompt_busy_s += done.prompt_busy_s
        self.prompt_tokens += done.prompt_tokens
        self.output_tokens += done.output_tokens
        self.busy_s += emulation.busy_s
        self.computed_tokens += emulation.computed_tokens
        self.preemptions += emulation.preemptions
        if emulation.prefix is not None:
            self._add_cache(emulation.prefix)

    def _add_cache(self, prefix: PrefixCache) -> None:
        hbm, host, remote = (prefix.block_tokens * int(found) for found in prefix.found_K)
        self.found_hbm_tokens += hbm
        self.found_host_tokens += host
        self.found_remote_tokens += remote
        self.evicted_hbm_tokens += prefix.block_tokens * prefix.evicted_blocks(0)
        self.evicted_host_tokens += prefix.block_tokens * prefix.evicted_blocks(1)


class Caches:
    """Prefix caches for starting replicas: each begins empty, but for the remote store of its pool."""

    def __init__(self, block_tokens: Mapping[str, int]) -> None:
        self._block_tokens = block_tokens
        self._remotes: dict[tuple[str, str], RemoteStore] = {}

    def start(self, up: ReplicaUp) -> PrefixCache | None:
        """The replica's cache; none where the blocks of its model's prompts are not known."""
        block_tokens, tiers = self._block_tokens.get(up.model), up.prefix_tiers
        if block_tokens is None:
            return None
        remote = None
        if tiers is not None and tiers.remote_bytes:
            pool = (up.model, up.pool)
            remote = self._remotes.setdefault(pool, RemoteStore(tiers, block_tokens))
        ranks = up.step_time.data_ranks
        return PrefixCache(block_tokens=block_tokens, ranks=ranks, settings=tiers, remote=remote)


class Engines:
    """An engine knows a start by its ticket, a number used once: a request may come back to where it was."""

    def __init__(
        self,
        replicas: Sequence[ReplicaUp],
        slowdowns: Mapping[str, float],
        *,
        seed: int = 0,
        block_tokens: Mapping[str, int] | None = None,
        step_times: Mapping[str, StepTime] | None = None,
    ) -> None:
        """`step_times` are of replicas whose steps are not as told; `block_tokens` by model turns prefix caches on; draws of expert imbalance are of the seed and the replica's place among `replicas`."""
        self._seed = seed
        self._numbers = {up.replica: number for number, up in enumerate(replicas)}
        self._caches = Caches(block_tokens or {})
        self._factors = dict(slowdowns)
        self._step_times = step_times or {}
        self._caps: dict[str, float] = {}
        self._engines: dict[str, Engine] = {}
        self._tickets: dict[int, tuple[Engine, int]] = {}  # by request
        self._last_ticket = 0
        self._totals = {up.replica: Totals() for up in replicas}

    def switch(self, event: ReplicaUp | ReplicaDown) -> None:
        """Start a replica empty, or take it away with all it had."""
        before = self._engines.pop(event.replica, None)
        if before is not None:
            self._totals[event.replica].add(before.emulation)
            before.starts.clear()
            before.due_s = math.inf  # what stands in the agenda for it is over
        if isinstance(event, ReplicaUp):
            limits = EngineLimits(
                max_sequences=event.max_sequences,
                max_step_tokens=event.max_step_tokens,
                kv_capacity_tokens=event.kv_capacity_tokens,
                behaviour=event.engine or PLAIN,
            )
            emulation = ReplicaEmulation(
                self._step_times.get(event.replica, event.step_time),
                limits,
                prefix=self._caches.start(event),
                imbalance=Imbalance(
                    cv=event.expert_imbalance_cv,
                    seed=self._seed,
                    replica=self._numbers[event.replica],
                    epoch=event.epoch,
                ),
            )
            self._engines[event.replica] = Engine(event, emulation)
            self._set_speed(event.replica, event.at_s)

    def strike(self, fault: Fault) -> Engine | None:
        """Let a replica run slower or faster, now and after every start, or hang; its engine, where it is up."""
        if fault.what == "speed":
            self._factors[fault.replica] = fault.factor
            return self._set_speed(fault.replica, fault.at_s)
        engine = self._engines.get(fault.replica)
        if engine is not None:
            engine.emulation.hang()
            engine.due_s = math.inf
        return engine

    def _set_speed(self, replica: str, at_s: float) -> Engine | None:
        engine = self._engines.get(replica)
        if engine is not None:
            factor = self._factors.get(replica, 1.0) * self._caps.get(replica, 1.0)
            engine.emulation.speed(at_s, factor)
        return engine

    def submit(self, start: Start, arrival: Arrival, now_s: float) -> Engine:
        """Hand a request to its engine, which is returned. Raises `ValueError` for one that the engine cannot hold."""
        engine = self._engines[start.replica]
        self._last_ticket += 1
        ticket, prompt_tokens, emulation = self._last_ticket, arrival.input_tokens, engine.emulation
        answer, hashes = output_tokens(arrival, engine.up), arrival.prefix_hashes
        if isinstance(start, Prefill):
            emulation.prefill(now_s, request=ticket, prompt_tokens=prompt_tokens, hashes=hashes)
        elif isinstance(start, Dispatch):
            emulation.submit(
                now_s,
                request=ticket,
                prompt_tokens=prompt_tokens,
                output_tokens=answer,
                hashes=hashes,
            )
        else:
            emulation.decode(
                now_s, request=ticket, prompt_tokens=prompt_tokens, output_tokens=answer
            )
        engine.starts[ticket] = start
        self._tickets[start.request] = (engine, ticket)
        return engine

    def stop(self, request: int, now_s: float) -> Engine | None:
        """Take a request, or its cache, off its engine, which is returned if there was one."""
        engine, ticket = self._tickets.pop(request, (None, 0))
        if engine is None or engine.starts.pop(ticket, None) is None:
            return None
        engine.emulation.cancel(now_s, ticket)
        return engine

    def advance(self, engine: Engine, to_s: float) -> Iterator[tuple[Progress, Start]]:
        """Play the engine on, and give what happened to requests that are still meant to run."""
        for progress in engine.emulation.advance(to_s):
            start = engine.starts.get(progress.request)
            if start is None:
                continue
            if progress.kind == "finished":
                del engine.starts[progress.request]
                del self._tickets[start.request]
            yield progress, start

    def glimpse(self, replica: str, at_s: float) -> tuple[Glimpse | None, tuple[float, ...]]:
        """What is there now, if it is up; and over all starts busy seconds, those with prompts, tokens of prompts and of answers."""
        total, engine = self._totals[replica], self._engines.get(replica)
        done = (total.busy_s, total.prompt_busy_s, total.prompt_tokens, total.output_tokens)
        if engine is None:
            return None, done
        now = engine.emulation.glimpse(at_s)
        since = (now.busy_s, now.prompt_busy_s, now.prompt_tokens, now.output_tokens)
        return now, tuple(before + more for before, more in zip(done, since, strict=True))

    def cap(self, replica: str, at_s: float, factor: float) -> Engine | None:
        """Let steps take `factor` times as long, beside what else slows the replica; its engine, where it is up."""
        self._caps[replica] = factor
        return self._set_speed(replica, at_s)

    def totals(self) -> dict[str, Totals]:
        """What every replica did up to now; asked once, at the end."""
        for replica, engine in self._engines.items():
            self._totals[replica].add(engine.emulation)
        return self._totals


def output_tokens(arrival: Arrival, up: ReplicaUp) -> int:
    """The length of the answer: what the model has to say, cut where the client or the context cuts it."""
    context = min(up.context_tokens, up.kv_capacity_tokens // up.step_time.data_ranks)
    cuts = [arrival.output_tokens, context - arrival.input_tokens]
    cuts += [] if arrival.max_output_tokens is None else [arrival.max_output_tokens]
    return max(min(cuts), 1)
