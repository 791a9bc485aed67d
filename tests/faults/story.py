"""What a seed says: a fleet, its limits, what clients ask, what breaks, and how bad the network is.

A story is data. Requests and troubles can be left out of it by number, and the rest stays what it was: a failing story is made shorter so.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec
import numpy as np

from polypod.cost.steptime import StepTime
from polypod.engine.closed_loop import Behaviour
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import Continuation, ReplicaUp, Role

STEP = StepTime(tokens=(1, 1000), seconds=(0.005, 0.065), kv_token_s=1e-7, pair_s=1e-9)
BLOCK_TOKENS = 64
LATER = 10**6
CALM_S = 15.0
"""From then on nothing breaks, no word is lost, and the clock goes evenly."""

TROUBLES = (
    "kill", "kill two", "hang", "slow", "flap", "clock", "old up", "old down", "flood",
    "in prefill", "in transfer", "after first", "while restarting",
)  # fmt: skip
FLEETS: tuple[tuple[Role, ...], ...] = (
    ("both",), ("both", "both"), ("both", "both", "both"), ("both",) * 5,
    ("prefill", "decode"), ("prefill", "decode", "decode"), ("prefill", "prefill", "decode"),
    ("both", "prefill", "decode"), ("both", "both", "prefill", "decode", "decode"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, as its client knows it; `output_tokens` is what the model has to say."""

    number: int
    at_s: float
    model: str
    input_tokens: int
    output_tokens: int
    input_is_exact: bool
    max_output_tokens: int | None
    is_streamed: bool
    tenant: str
    priority: int
    patience_s: float | None
    only_replica: str | None
    prefix_hashes: tuple[int, ...]
    continuation: Continuation = "off"
    session: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """One thing that goes wrong: at a time, or at the n-th moment of its kind. `extent` is from 0 to 1."""

    number: int
    what: str
    at_s: float
    nth: int
    replica: int
    extent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How often (0 to 1) a word is lost, told twice or late, and an engine refuses."""

    lost: float
    twice: float
    late: float
    late_s: float
    busy: float
    client: float
    engine: float
    broken: float  # connections that break in the middle
    silent: float  # of the connections of a dead replica, those that nobody hears break
    unnoticed: float  # hangs that nobody notices


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """The driver's: how long it hears nothing of an attempt, and of a cache on its way."""

    answer_s: float
    cache_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """All that a run depends on."""

    seed: int
    settings: PolicySettings
    ups: tuple[ReplicaUp, ...]
    requests: tuple[Asked, ...]
    troubles: tuple[Trouble, ...]
    weather: Weather
    patience: Patience
    has_prefixes: bool

    def only(self, requests: Iterable[int] | None, troubles: Iterable[int] | None) -> "Story":
        """The same with these requests and troubles alone; None keeps all."""
        kept, left = set(requests or ()), set(troubles or ())
        return replace(
            self,
            requests=tuple(r for r in self.requests if requests is None or r.number in kept),
            troubles=tuple(t for t in self.troubles if troubles is None or t.number in left),
        )


def draw(seed: int) -> Story:
    """The seed's story."""
    rng = np.random.default_rng(seed)
    models = ("m", "k")[: int(rng.integers(1, 3))]
    has_prefixes = bool(rng.random() < 0.4)
    ups = tuple(_ups(rng, models))
    count = int(rng.integers(3, 26))
    span_s = float(rng.choice([0.5, 4.0, 12.0]))
    requests = tuple(_asked(rng, n, span_s, models, ups, has_prefixes) for n in range(count))
    requests = tuple(_on_an_edge(np.random.default_rng([seed, one.number]), one) for one in requests)  # fmt: skip
    later = np.random.default_rng(
        [seed, LATER]
    )  # what was added later changes nothing of what was before
    requests = tuple(_that_goes_on(later, one) for one in requests)
    ups = tuple(_that_goes_on_with(later, one) for one in ups)
    whats = rng.choice(TROUBLES, size=int(rng.integers(1, 6)), replace=False)
    troubles = tuple(_trouble(rng, n, whats) for n in range(int(rng.integers(0, 9))))
    return Story(
        seed=seed, settings=_with_turns(later, _settings(rng, models)), ups=ups, requests=requests, troubles=troubles,
        weather=_weather(rng), has_prefixes=has_prefixes,
        patience=Patience(answer_s=float(rng.choice([4.0, 20.0])), cache_s=float(rng.choice([1.0, 5.0]))),
    )  # fmt: skip


def another(up: ReplicaUp, extent: float) -> ReplicaUp:
    """What the replica may be when it is back: slower or faster."""
    return up if extent < 0.5 else _with_speed(up, 0.5 + 2 * extent)


def _with_speed(up: ReplicaUp, factor: float) -> ReplicaUp:
    known: dict[str, Any] = {name: getattr(up, name) for name in up.__struct_fields__}
    return ReplicaUp(**(known | {"step_time": up.step_time.scaled(factor)}))


def _ups(rng: np.random.Generator, models: tuple[str, ...]) -> Iterable[ReplicaUp]:
    number = 0
    for model in models:
        for role in FLEETS[int(rng.integers(len(FLEETS)))]:
            ranks = int(rng.choice([1, 1, 1, 2]))
            step = StepTime(
                tokens=STEP.tokens, seconds=STEP.seconds, kv_token_s=STEP.kv_token_s, pair_s=STEP.pair_s, data_ranks=ranks,
            )  # fmt: skip
            yield ReplicaUp(
                at_s=0.0, replica=f"r{number}", epoch=1, model=model, role=role,
                pool=str(rng.choice(["p", "q"])) if role == "decode" and rng.random() < 0.3 else "p",
                step_time=step.scaled(float(rng.choice([1, 1, 2, 4]))),
                context_tokens=int(rng.choice([800, 1500, 1500])),
                kv_capacity_tokens=int(rng.choice([1500, 3000, 9000])) * ranks,
                max_sequences=int(rng.choice([1, 2, 4])), max_step_tokens=int(rng.choice([128, 1024])),
                engine=Behaviour(exclusive_prefill=True) if rng.random() < 0.2 else None,
                kv_token_bytes=1e5, kv_link_bytes_per_s=float(rng.choice([0.0, 1e7, 1e9])), kv_link_latency_s=0.01,
                kv_pools=("p",) if role == "prefill" and rng.random() < 0.2 else (),
            )  # fmt: skip
            number += 1


def _settings(rng: np.random.Generator, models: tuple[str, ...]) -> PolicySettings:
    services = tuple(
        ServiceSettings(model=model, context_tokens=1200, mean_output_tokens=60.0, block_tokens=BLOCK_TOKENS)
        for model in models
    )  # fmt: skip
    return PolicySettings(
        services=services,
        queue_requests=int(rng.choice([0, 2, 1000, 1000])),
        queue_wait_s=float(rng.choice([1.0, 5.0, 30.0])),
        kv_wait_s=float(rng.spawn(1)[0].choice([0.2, 2.0, 60.0])),
        max_attempts=int(rng.integers(1, 5)),
        retry_budget_fraction=float(rng.choice([0.0, 0.2, 1.0])),
        retry_budget_floor=int(rng.choice([0, 1, 10])),
        quarantine_deaths=int(rng.integers(1, 4)),
        breaker_failures=int(rng.integers(1, 4)),
        breaker_open_s=float(rng.choice([0.5, 3.0])),
        busy_pause_s=float(rng.choice([0.2, 1.0])),
        prefix_blocks=int(rng.choice([0, 20, 131_072])),
    )


def _asked(
    rng: np.random.Generator, number: int, span_s: float, models: tuple[str, ...], ups: tuple[ReplicaUp, ...], has_prefixes: bool
) -> Asked:  # fmt: skip
    input_tokens = int(rng.integers(1, 1000 if rng.random() < 0.3 else 300))
    blocks, family = input_tokens // BLOCK_TOKENS, int(rng.integers(1, 4))
    own = int(rng.integers(0, 3))  # blocks that it shares with nobody
    shared = max(blocks - own, 0)
    hashes = [1000 * family + n for n in range(shared)] + [
        10**6 + 100 * number + n for n in range(blocks - shared)
    ]
    is_pinned = rng.random() < 0.08
    pin = "zz" if rng.random() < 0.1 else ups[int(rng.integers(len(ups)))].replica
    return Asked(
        number=number + 1,
        at_s=float(rng.uniform(0.05, span_s)) if rng.random() < 0.9 else 1.0,
        model="unknown" if rng.random() < 0.02 else str(rng.choice(models)),
        input_tokens=input_tokens,
        output_tokens=int(rng.integers(1, 120)),
        input_is_exact=bool(rng.random() < 0.8),
        max_output_tokens=int(rng.integers(1, 200)) if rng.random() < 0.5 else None,
        is_streamed=bool(rng.random() < 0.7),
        tenant=str(rng.choice(["a", "b"])),
        priority=int(rng.choice([-1, 0, 0, 0, 1])),
        patience_s=float(rng.exponential(3.0)) if rng.random() < 0.15 else None,
        only_replica=pin if is_pinned else None,
        prefix_hashes=tuple(hashes) if has_prefixes else (),
    )


def _on_an_edge(rng: np.random.Generator, asked: Asked) -> Asked:
    """Now and then a request that is just as long as a context, or a token too long, or that is all prompt."""
    edge = int(rng.choice([800, 1200])) + int(rng.integers(0, 2))
    if asked.prefix_hashes or rng.random() > 0.1:
        return asked
    if rng.random() < 0.3:
        return replace(asked, input_tokens=800, max_output_tokens=None, only_replica=None)
    most = max(edge - asked.input_tokens, 1)
    return replace(asked, max_output_tokens=most, only_replica=None)


def _that_goes_on(rng: np.random.Generator, asked: Asked) -> Asked:
    """Some streams may go on elsewhere, and some are of one conversation."""
    continuation: Continuation = rng.choice(["off", "text", "text", "exact"])  # type: ignore[assignment]
    return replace(
        asked,
        continuation=str(continuation) if asked.is_streamed else "off",  # type: ignore[arg-type]
        session=int(rng.integers(0, 4)) if rng.random() < 0.3 else None,
    )


def _that_goes_on_with(rng: np.random.Generator, up: ReplicaUp) -> ReplicaUp:
    known: dict[str, Any] = {name: getattr(up, name) for name in up.__struct_fields__}
    how = {"continues": str(rng.choice(["off", "text", "exact", "exact"])), "build": str(rng.choice(["e1", "e2"]))}  # fmt: skip
    return ReplicaUp(**(known | how))


def _with_turns(rng: np.random.Generator, settings: PolicySettings) -> PolicySettings:
    return msgspec.structs.replace(
        settings,
        max_continuations=int(rng.integers(0, 4)),
        turns=str(rng.choice(["arrival", "arrival", "tenants"])),
        tenant_weights={"a": 2.0},
        admission=str(rng.choice(["queue", "queue", "slo"])),
        services=tuple(
            msgspec.structs.replace(one, first_token_limit_s=0.5 if rng.random() < 0.5 else None)
            for one in settings.services
        ),
    )


def _trouble(rng: np.random.Generator, number: int, whats: Any) -> Trouble:
    return Trouble(
        number=number,
        what=str(rng.choice(whats)),
        at_s=float(rng.choice([1.0, 2.0, float(rng.uniform(0, CALM_S - 1))])),
        nth=int(rng.integers(1, 12)),
        replica=int(rng.integers(0, 10)),
        extent=float(rng.random()),
    )


def _weather(rng: np.random.Generator) -> Weather:
    """Of every kind of bad luck a story has a lot, a little, or none."""

    def some(*most: Literal[0] | float) -> float:
        return float(rng.choice([0.0, 0.0, *most]))

    return Weather(
        lost=some(0.02, 0.15),
        twice=some(0.05, 0.3),
        late=some(0.05, 0.3),
        late_s=float(rng.choice([0.3, 3.0])),
        busy=some(0.05, 0.3),
        client=some(0.03),
        engine=some(0.05, 0.4),
        broken=some(0.05, 0.3),
        silent=some(0.5, 1.0),
        unnoticed=some(0.5, 1.0),
    )
