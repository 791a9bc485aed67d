"""The compiled driver beside the plain one: the same bytes, whatever is asked of them; and its record put to the live policy."""

import io
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from polypod import record
from polypod.cost.steptime import StepTime
from polypod.engine.closed_loop import Behaviour
from polypod.engine.native import build
from polypod.engine.prefix import TierSettings
from polypod.errors import RunError
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import ReplicaDown, ReplicaUp, Role
from polypod.policy.lifecycle import Validator
from polypod.record import Measure, Step
from polypod.simulate import Arrival, Fault, Scenario, play, replay
from polypod.simulate.arriving import Listed
from polypod.simulate.compiled import Session, play_compiled
from polypod.simulate.series import Cap, Draw, Watch
from polypod.simulate.ways import Ways
from polypod.workload.traffic import Trace
from polypod.workload.traffic_loop import ClosedLoop

STEP = StepTime(
    tokens=(1, 64, 256, 1024, 8192), seconds=(0.010, 0.011, 0.015, 0.040, 0.300),
    kv_token_s=1e-8, pair_s=1e-10, sequence_s=1e-6,
)  # fmt: skip


BLOCK = 64
"""Tokens of a prefix hash."""


def behaviour(rng: np.random.Generator) -> Behaviour | None:
    if rng.random() < 0.5:
        return None
    return Behaviour(
        exclusive_prefill=bool(rng.random() < 0.5),
        tokens_per_step=float(rng.choice([1.0, 1.7, 2.3])),
        drafts=float(rng.choice([0, 2])),
        draft_share=float(rng.choice([0.0, 0.1])),
        prefix_hits=float(rng.choice([0.0, 0.3])),
        schedules_ahead=bool(rng.random() < 0.5),
        whole_prompts=bool(rng.random() < 0.5),
        balance_steps=int(rng.choice([0, 0, 3, 20])),
    )


def tiers(rng: np.random.Generator) -> TierSettings | None:
    if rng.random() < 0.5:
        return None
    return TierSettings(
        kv_bytes_per_token=1e4,
        host_bytes=float(rng.choice([0.0, 4e7, 4e8])),
        host_bytes_per_s=float(rng.choice([1e8, 1e10])),
        remote_bytes=float(rng.choice([0.0, 1e8])),
        remote_bytes_per_s=float(rng.choice([1e8, 1e9])),
        remote_latency_s=float(rng.choice([0.0, 0.02])),
    )


def prefix(rng: np.random.Generator, input_tokens: int, output_tokens: int) -> tuple[int, ...]:
    """Of one of few conversations: a chain that begins alike, some of it past the prompt."""
    if rng.random() < 0.2:
        return ()
    chat, blocks = (
        int(rng.integers(1, 9)),
        (input_tokens + int(rng.integers(0, 2)) * output_tokens) // BLOCK,
    )
    split = int(rng.integers(0, blocks + 1))  # from here on it is a branch of its own
    branch = int(rng.integers(0, 3))
    return tuple(
        (chat << 40) + (block if block < split else (branch << 20) + block)
        for block in range(blocks)
    )


def roles(rng: np.random.Generator, count: int) -> list[Role]:
    """All whole, or prefill and decode apart with or without whole ones beside."""
    if rng.random() < 0.4:
        return ["both"] * count
    names: list[Role] = ["prefill", "decode", "prefill", "decode", "both"]
    return [names[n % int(rng.choice([2, 4, 5]))] for n in range(count)]


def replica(rng: np.random.Generator, name: str, model: str, role: Role) -> ReplicaUp:
    ranks = int(rng.choice([1, 1, 2, 3]))
    step = StepTime(
        tokens=STEP.tokens, seconds=STEP.seconds, kv_token_s=float(rng.choice([0, 1e-8, 1e-7])),
        pair_s=1e-10, sequence_s=1e-6, data_ranks=ranks, stages=int(rng.choice([1, 1, 2])),
    )  # fmt: skip
    return ReplicaUp(
        at_s=float(rng.choice([0, 0, 0, 1.0])), replica=name, epoch=1, model=model, role=role,
        pool="p" if rng.random() < 0.6 else "q",
        kv_token_bytes=float(rng.choice([0.0, 1e4, 1e5])), kv_link_bytes_per_s=float(rng.choice([0.0, 1e8, 1e9])),
        kv_link_latency_s=float(rng.choice([0.0, 0.01])),
        prefix_tiers=tiers(rng), expert_imbalance_cv=float(rng.choice([0.0, 0.0, 0.2])),
        kv_pools=("q",) if role == "prefill" and rng.random() < 0.3 else (),
        step_time=step.scaled(float(rng.choice([1, 1, 2]))), context_tokens=4096,
        kv_capacity_tokens=int(rng.choice([3000, 8000, 40_000])) * ranks,
        max_sequences=int(rng.choice([2, 8, 64])), max_step_tokens=int(rng.choice([256, 2048])),
        engine=behaviour(rng),
    )  # fmt: skip


def arrival(rng: np.random.Generator, at_s: float, models: list[str], *, hashed: bool) -> Arrival:
    input_tokens = int(rng.integers(1, 3500 if rng.random() < 0.3 else 800))
    output_tokens = int(rng.integers(1, 300))
    return Arrival(
        at_s=at_s,
        prefix_hashes=prefix(rng, input_tokens, output_tokens) if hashed else (),
        model=str(rng.choice([*models, "unknown"] if rng.random() < 0.02 else models)),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        max_output_tokens=None if rng.random() < 0.5 else int(rng.integers(1, 400)),
        priority=int(rng.choice([0, 0, 1])),
        patience_s=None if rng.random() < 0.7 else float(rng.exponential(8.0)),
    )


def faults(rng: np.random.Generator, replicas: list[ReplicaUp], end_s: float) -> list[Fault]:
    found = []
    for _ in range(int(rng.integers(0, 8))):
        name = replicas[int(rng.integers(len(replicas)))].replica
        at_s = float(np.round(rng.uniform(0, end_s), 2))
        what: Any = str(rng.choice(["down", "up", "speed", "hang", "link"]))
        factor = float(rng.choice([0.5, 1, 3])) if what in ("speed", "link") else 1.0
        found.append(Fault(at_s=at_s, replica=name, what=what, factor=factor))
        if what in ("down", "hang"):
            found.append(Fault(at_s=at_s + 2, replica=name, what="down"))
            found.append(Fault(at_s=at_s + 3, replica=name, what="up"))
    return found


def promised(rng: np.random.Generator, found: list[Fault]) -> list[Fault]:
    """What goes down, with promises that are kept, early, late, or too late to wait for."""
    times_s = [None, 0.0, 0.4, 1.0, 2.0, 2.5, 1000.0]
    return [
        replace(fault, back_in_s=times_s[int(rng.integers(len(times_s)))])
        if fault.what == "down"
        else fault
        for fault in found
    ]


def watch(rng: np.random.Generator, replicas: list[ReplicaUp]) -> Watch | None:
    if rng.random() < 0.4:
        return None
    draw = Draw(idle_w=100.0, prompt_w=700.0, decode_w=450.0)
    names = [one.replica for one in replicas]
    caps = [
        Cap(
            name="rack 0",
            replicas=tuple(names[::2]),
            limit_w=float(rng.uniform(120, 500)) * len(names[::2]),
        )
    ]
    caps += [Cap(name="rack 1", replicas=tuple(names[1::2]), limit_w=1e6)] * (len(names) > 1)
    return Watch(
        interval_s=float(rng.choice([0.7, 1.0, 5.0])),
        draws={"p": draw, "q": draw},
        caps=tuple(caps) if rng.random() < 0.7 else (),
    )


def users(rng: np.random.Generator, models: list[str]) -> ClosedLoop:
    """A closed loop of a few, over some seconds or some requests."""
    requests = int(rng.integers(20, 200))
    trace = Trace(
        name="loop",
        arrival_s=np.zeros(requests),
        input_tokens=rng.integers(1, 3500, requests),
        output_tokens=rng.integers(1, 200, requests),
        model=rng.integers(0, len(models), requests),
        models=tuple(models),
    )
    return ClosedLoop(
        users=int(rng.integers(1, 30)),
        trace=trace,
        think_s=rng.exponential(float(rng.choice([0.0, 0.5])), requests),
        duration_s=float(rng.choice([5.0, 60.0])) if rng.random() < 0.5 else None,
    )


def shared_ways(rng: np.random.Generator, replicas: list[ReplicaUp]) -> Ways | None:
    """Groups of groups of the replicas, some of them in none, on one to four tiers and one to three ports; wide and narrow ways."""
    if rng.random() < 0.1 or all(one.role == "both" for one in replicas):
        return None
    count, tiers = len(replicas), int(rng.integers(1, 5))
    sizes = np.cumprod(rng.integers(1, 4, tiers))
    instance = np.arange(count)[:, None] // sizes[None, :]
    instance[:, -1] = 0
    inner = np.column_stack([np.arange(count), instance[:, :-1]])
    way, names = np.full((count, tiers), -1), list[str]()
    for tier in range(tiers):
        if rng.random() < 0.8:
            way[:, tier] = len(names) + inner[:, tier]
            names += [f"way {tier}/{n}" for n in range(int(inner[:, tier].max()) + 1)]
    instance[rng.random(instance.shape) < 0.05] = -1
    first = np.minimum(np.maximum.accumulate(rng.integers(0, tiers, tiers)), np.arange(tiers))
    shape = (count, tiers)
    return Ways(
        tiers=tuple(f"tier {n}" for n in range(tiers)),
        names=tuple(names),
        capacity_bytes_per_s_W=rng.choice([3e6, 3e7, 1e8, 7e8, 1e10], len(names)),
        way_RT=way,
        instance_RT=instance,
        first_RT=np.broadcast_to(first, shape).copy(),
        tier_RT=np.broadcast_to(
            np.where(rng.random(tiers) < 0.9, np.arange(tiers), -1), shape
        ).copy(),
        port_bytes_per_s_R=rng.choice([0.0, 1e8, 1e9], count),
        exact_caches=int(rng.choice([0, 2, 5, 32])),
    )


def way_faults(rng: np.random.Generator, ways: Ways, end_s: float) -> list[Fault]:
    """Ways that are narrow or dead for a while; some stay dead."""
    found = []
    for _ in range(int(rng.integers(0, 5)) if ways.names else 0):
        name, at_s = str(rng.choice(ways.names)), float(np.round(rng.uniform(0, end_s), 2))
        found.append(
            Fault(at_s=at_s, replica=name, what="way", factor=float(rng.choice([2, 10, np.inf])))
        )
        if rng.random() < 0.9:
            found.append(Fault(at_s=at_s + float(rng.choice([0.5, 3])), replica=name, what="way"))
    return found


def scenario(seed: int) -> Scenario:
    """Anything: unlike engines, several ranks and stages, small caches, full queues, impatient clients, every kind of fault."""
    rng = np.random.default_rng(seed)
    models = ["m", "k"][: int(rng.integers(1, 3))]
    count = int(rng.integers(1, 7))
    replicas = [
        replica(rng, f"r{n}", models[n * len(models) // count], role)
        for n, role in enumerate(roles(rng, count))
    ]
    requests, rate_per_s = int(rng.integers(50, 300)), float(rng.choice([2, 10, 40]))
    at_s = np.cumsum(rng.exponential(1 / rate_per_s, requests))
    if rng.random() < 0.3:
        at_s = np.round(at_s, 1)  # many at one moment
    services = tuple(
        ServiceSettings(model=model, context_tokens=4096, block_tokens=BLOCK) for model in models
    )
    hashed = bool(rng.random() < 0.5)
    loop = users(rng, models) if rng.random() < 0.15 else None
    apart = np.random.default_rng([seed, 1])
    ways = shared_ways(apart, replicas)
    broken = way_faults(apart, ways, float(at_s[-1])) if ways else []
    return Scenario(
        loop=loop,
        is_hashed=None if loop is None else False,
        replicas=tuple(replicas),
        settings=PolicySettings(
            services=services,
            queue_requests=int(rng.choice([5, 1000])),
            queue_wait_s=float(rng.choice([2.0, 60.0])),
            kv_wait_s=float(apart.choice([0.05, 0.5, 60.0])),
            max_attempts=int(rng.choice([2, 3])),
            quarantine_deaths=int(rng.choice([1, 2, 3])),
            prefix_blocks=int(rng.choice([0, 40, 100_000])),
        ),
        trace=()
        if loop
        else tuple(arrival(rng, at, models, hashed=hashed) for at in at_s.tolist()),
        seed=seed,
        faults=(*promised(apart, faults(rng, replicas, float(at_s[-1]))), *broken),
        ways=ways,
        slowdowns={"r0": 1.5} if rng.random() < 0.3 else {},
        step_times={"r0": not_as_told(rng, replicas[0].step_time)} if seed % 3 == 0 else {},
        watch=watch(rng, replicas),
    )


def not_as_told(rng: np.random.Generator, told: StepTime) -> StepTime:
    """Other knots, and each term off by a factor of its own."""
    knots = (*told.tokens, 2 * told.tokens[-1])
    factors = rng.uniform(0.5, 2.0, len(knots) + 2).tolist()
    return msgspec.structs.replace(
        told,
        tokens=knots,
        seconds=tuple(
            factor * told.curve_s(knot) for factor, knot in zip(factors, knots, strict=False)
        ),
        kv_token_s=factors[-1] * told.kv_token_s,
        pair_s=factors[-2] * told.pair_s,
    )


def record_of(driver: Any, seed: int) -> bytes:
    file = io.BytesIO()
    driver(scenario(seed), file)
    return file.getvalue()


@pytest.mark.parametrize("seed", range(60))
def test_both_drivers_write_the_same_bytes(seed):
    plain, compiled = record_of(play, seed), record_of(play_compiled, seed)

    assert (
        compiled.splitlines() == plain.splitlines()
    )  # by line, so that a difference is shown short


@pytest.mark.parametrize("seed", range(100, 110))
def test_the_live_policy_answers_a_compiled_record_in_the_same_way(seed, tmp_path):
    path = tmp_path / "record.jsonl"
    path.write_bytes(record_of(play_compiled, seed))
    validator = Validator()
    for line in record.read(path):
        if isinstance(line, Step):
            validator.feed(line.event, line.actions)

    assert replay(record.read(path)) is None
    assert validator.open == {}


def test_the_result_without_a_file_is_the_same_lines():
    run, plain = play_compiled(scenario(7)), play(scenario(7))

    assert run == plain


def test_no_compiler_is_an_error_with_the_way_out(monkeypatch):
    monkeypatch.setattr(build, "compiler", lambda: None)
    build.library.cache_clear()
    with pytest.raises(RunError, match=r"no C compiler is here .* --driver plain"):
        build.library()


def test_a_compiler_that_fails_is_an_error_with_its_words(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-Werror", "-DROOM=oops"))
    build.library.cache_clear()
    with pytest.raises(RunError, match=r"core.c .* failed"):
        build.library()
    build.library.cache_clear()


def test_a_cache_that_cannot_be_written_compiles_for_this_process_alone(monkeypatch, tmp_path):
    (tmp_path / "polypod").write_text("a file is in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    assert build.library().core_run
    build.library.cache_clear()


def measures_of(share: float) -> list[Measure]:
    one = scenario(3)
    played = replace(one, watch=Watch(interval_s=0.5))
    session = Session(played, Listed(played.trace), share=share)
    told = [line for turn in session.turns() for line in turn.lines]
    if share == 0.0:
        assert {type(line.event) for line in told if isinstance(line, Step)} <= {ReplicaUp, ReplicaDown}  # fmt: skip
    return [line for line in told if isinstance(line, Measure)]


def test_the_series_are_whole_where_no_request_is_written_down():
    assert len(measures_of(1.0)) > 100
    assert measures_of(0.0) == measures_of(0.3) == measures_of(1.0)
