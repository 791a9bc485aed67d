"""Prefix caches in a run: sessions, tiers, restarts, and the first 3,000 requests of Mooncake's conversation trace."""

import csv
import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypod.engine.prefix import TierSettings
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import FirstToken, RequestArrived
from polypod.record import Measure, Step
from polypod.simulate import Arrival, Fault, Run, Scenario, play, replay

BLOCK = 16
MOONCAKE = Path(__file__).parents[1] / "data" / "mooncake" / "conversation-3000.csv"


def fleet(make: Any, count: int, **over: Any) -> tuple[Any, ...]:
    known = {"kv_capacity_tokens": 200_000, "context_tokens": 200_000, "max_step_tokens": 8192, "max_sequences": 64}  # fmt: skip
    return tuple(make["replica"](f"r{n}", **(known | over)) for n in range(count))


def scenario(ups: Any, trace: Any, *, blocks: int = 10**6, block_tokens: int = BLOCK, **over: Any) -> Scenario:  # fmt: skip
    service = ServiceSettings(model="m", context_tokens=200_000, block_tokens=block_tokens)
    limits = {"prefix_blocks": blocks, "queue_requests": 10**6, "queue_wait_s": 1e9}
    return Scenario(
        replicas=tuple(ups), settings=PolicySettings(services=(service,), **limits), trace=tuple(trace), **over
    )  # fmt: skip


def measures(run: Run) -> Counter[str]:
    counted: Counter[str] = Counter()
    for line in run.lines:
        if isinstance(line, Measure):
            counted[line.name] += line.value  # type: ignore[assignment]
    return counted


def found_tokens(run: Run) -> float:
    counted = measures(run)
    return sum(counted[f"found_{tier}_tokens"] for tier in ("hbm", "host", "remote"))


def mean_ttft_s(run: Run) -> float:
    arrived, waits = {}, []
    for line in run.lines:
        if isinstance(line, Step) and isinstance(line.event, RequestArrived):
            arrived[line.event.request] = line.event.at_s
        elif isinstance(line, Step) and isinstance(line.event, FirstToken):
            waits.append(line.event.at_s - arrived[line.event.request])
    return float(np.mean(waits))


def sessions(count: int, turns: int, seed: int = 1) -> list[Arrival]:
    """Conversations that begin with the same eight blocks; a turn adds ten of the user's and five of the answer's."""
    rng = np.random.default_rng(seed)
    trace = []
    for session in range(count):
        at_s = float(rng.uniform(0, 60))
        blocks = list(range(8))
        for turn in range(turns):
            base = 10_000 + 1000 * session + 15 * turn
            prompt = blocks + list(range(base, base + 10))
            blocks = prompt + list(range(base + 10, base + 15))
            trace.append(
                Arrival(
                    at_s=at_s, model="m", input_tokens=len(prompt) * BLOCK + 1, output_tokens=5 * BLOCK,
                    prefix_hashes=tuple(blocks),
                )
            )  # fmt: skip
            at_s += float(rng.uniform(2, 8))
    return trace


def round_robin(make: Any, count: int, trace: list[Arrival], **over: Any) -> float:
    """Found tokens where replica n has every count-th request, and the others' are no concern of its."""
    ordered = sorted(trace, key=lambda arrival: arrival.at_s)
    parts = (ordered[n::count] for n in range(count))
    return sum(found_tokens(play(scenario(fleet(make, 1, **over), part))) for part in parts)


@pytest.mark.parametrize(("kv_tokens", "factor"), [(200_000, 2.5), (5_000, 2.5)])
def test_sessions_find_more_than_by_turns_where_the_router_knows_prefixes(
    make: Any, kv_tokens: int, factor: float
) -> None:
    """Factor 2.5 at least on eight replicas, whether or not all sessions fit; and the first token comes sooner than without prefixes in the forecast."""
    trace = sessions(count=80, turns=8)
    over = {"kv_capacity_tokens": kv_tokens, "context_tokens": kv_tokens}
    aware = play(scenario(fleet(make, 8, **over), trace))
    blind = play(scenario(fleet(make, 8, **over), trace, blocks=0))

    assert found_tokens(aware) > factor * round_robin(make, 8, trace, **over)
    assert found_tokens(aware) > 2 * found_tokens(blind)
    assert mean_ttft_s(aware) < mean_ttft_s(blind)


@pytest.mark.parametrize("seed", range(6))
def test_it_never_finds_less_than_by_turns(make: Any, seed: int) -> None:
    trace = sessions(count=12 + 5 * seed, turns=2 + seed, seed=seed)
    aware = play(scenario(fleet(make, 2 + seed), trace, seed=seed))

    assert found_tokens(aware) >= round_robin(make, 2 + seed, trace)


def test_a_run_with_caches_is_replayed_and_repeated(make: Any) -> None:
    tiers = TierSettings(
        kv_bytes_per_token=1e5, host_bytes=2e8, host_bytes_per_s=50e9, remote_bytes=1e9, remote_bytes_per_s=5e9
    )  # fmt: skip
    whole = scenario(
        fleet(make, 3, kv_capacity_tokens=2_500, context_tokens=2_500, prefix_tiers=tiers, expert_imbalance_cv=0.1),
        sessions(30, 5),
        seed=9,
    )  # fmt: skip
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        play(whole, file)
    run = play(whole)

    assert files[0].getvalue() == files[1].getvalue()
    assert replay(run.lines) is None
    counted = measures(run)
    assert min(counted["found_hbm_tokens"], counted["found_host_tokens"], counted["found_remote_tokens"], counted["evicted_host_tokens"]) > 0  # fmt: skip


def test_a_run_without_hashes_has_no_measures_of_caches(make: Any) -> None:
    trace = make["arrivals"]([(0.0, 100, 5)])
    tiers = TierSettings(kv_bytes_per_token=1.0, host_bytes=1e9, host_bytes_per_s=1e9)
    run = play(scenario(fleet(make, 1, prefix_tiers=tiers), trace))

    assert not any(name.startswith(("found", "evicted")) for name in measures(run))


@pytest.mark.parametrize(
    ("tier", "kept", "after_restart"), [("host", 320, 0), ("remote", 320, 320)]
)
def test_a_restart_empties_host_memory_and_not_the_pools_store(
    make: Any, tier: str, kept: int, after_restart: int
) -> None:
    """Two prompts on one replica, the second of which leaves nothing of the first in HBM; then the first comes again, with a restart in between or not."""
    sizes: dict[str, float] = {f"{tier}_bytes": 1e6, f"{tier}_bytes_per_s": 1e9}
    tiers = TierSettings(kv_bytes_per_token=1.0, **sizes)
    prompts = [tuple(range(100 * n, 100 * n + 20)) for n in range(2)]
    trace = [
        Arrival(at_s=at_s, model="m", input_tokens=321, output_tokens=1, prefix_hashes=prompts[n % 2])
        for n, at_s in enumerate((0.0, 1.0, 3.0))
    ]  # fmt: skip
    faults = (Fault(at_s=2.0, replica="r0", what="down"), Fault(at_s=2.5, replica="r0", what="up"))
    up = fleet(make, 1, kv_capacity_tokens=322, context_tokens=322, prefix_tiers=tiers)
    steady = measures(play(scenario(up, trace)))
    broken = measures(play(scenario(up, trace, faults=faults)))

    assert steady["found_hbm_tokens"] == broken["found_hbm_tokens"] == 0
    assert (steady[f"found_{tier}_tokens"], broken[f"found_{tier}_tokens"]) == (kept, after_restart)


def test_a_restart_empties_hbm(make: Any) -> None:
    hashes = tuple(range(20))
    trace = [
        Arrival(at_s=at_s, model="m", input_tokens=321, output_tokens=1, prefix_hashes=hashes)
        for at_s in (0.0, 1.0, 3.0)
    ]
    faults = (Fault(at_s=2.0, replica="r0", what="down"), Fault(at_s=2.5, replica="r0", what="up"))

    assert found_tokens(play(scenario(fleet(make, 1), trace))) == 640
    assert found_tokens(play(scenario(fleet(make, 1), trace, faults=faults))) == 320


def test_the_policy_hears_of_the_prompts_blocks_and_not_of_the_answers(make: Any) -> None:
    trace = [Arrival(at_s=0.0, model="m", input_tokens=40, output_tokens=30, prefix_hashes=(1, 2, 3, 4))]  # fmt: skip
    run = play(scenario(fleet(make, 1), trace))
    (event,) = [line.event for line in run.lines if isinstance(line, Step) and isinstance(line.event, RequestArrived)]  # fmt: skip

    assert event.prefix_hashes == (1, 2)


def mooncake() -> list[Arrival]:
    """One request every ten seconds, so that none meets another."""
    trace = []
    with MOONCAKE.open(encoding="utf-8") as file:
        for n, row in enumerate(csv.DictReader(file)):
            ids: list[int] = []
            for run in row["hash_ids"].split():
                first, _, last = run.partition("-")
                ids += range(int(first), int(last or first) + 1)
            tokens = int(row["input_length"])
            trace.append(
                Arrival(at_s=10.0 * n, model="m", input_tokens=tokens, output_tokens=1, prefix_hashes=tuple(ids[: tokens // 512]))
            )  # fmt: skip
    return trace


def test_on_one_replica_without_limits_the_hit_rate_is_that_of_a_set(make: Any) -> None:
    trace = mooncake()
    seen: set[int] = set()
    expected = 0
    for arrival in trace:
        most = (arrival.input_tokens - 1) // 512  # the last token is computed
        hashes = arrival.prefix_hashes[:most]
        expected += 512 * next((n for n, key in enumerate(hashes) if key not in seen), len(hashes))
        seen.update(arrival.prefix_hashes)
    up = fleet(make, 1, kv_capacity_tokens=10**9, max_step_tokens=10**6)
    run = play(scenario(up, trace, block_tokens=512))
    counted = measures(run)

    assert counted["found_hbm_tokens"] == expected > 0
    assert counted["computed_tokens"] == sum(one.input_tokens for one in trace) - expected
    assert counted["evicted_hbm_tokens"] == 0


@pytest.mark.parametrize("cv", [0.0, 0.2])
def test_uneven_experts_keep_the_mean_step_and_spread_it(make: Any, cv: float) -> None:
    """Prompts alone, one step each: the mean is the even one's, and the spread is what was said."""
    trace = make["arrivals"]([(float(n), 1000, 1) for n in range(2000)])
    run = play(scenario(fleet(make, 1, expert_imbalance_cv=cv), trace, seed=2))
    waits = np.array(
        [line.event.at_s % 1.0 for line in run.lines if isinstance(line, Step) and isinstance(line.event, FirstToken)]
    )  # fmt: skip

    assert len(waits) == 2000
    assert waits.mean() == pytest.approx(0.110, rel=0.015)
    assert waits.std() / 0.110 == pytest.approx(cv, abs=0.01)
    assert math.isclose(waits.max(), 0.110 * (1 + 3 * cv), rel_tol=0.1)


def test_every_replica_start_and_seed_draws_its_own_unevenness(make: Any) -> None:
    """The same prompt on two replicas at once, and again after a restart of both."""
    trace = make["arrivals"]([(at_s, 1000, 1) for at_s in (1.0, 1.0, 4.0, 4.0)])
    faults = tuple(
        Fault(at_s=2.0 + 0.5 * (what == "up"), replica=name, what=what)  # type: ignore[arg-type]
        for name in ("r0", "r1")
        for what in ("down", "up")
    )
    ups = fleet(make, 2, expert_imbalance_cv=0.2)
    waits = []
    for seed in (1, 2):
        run = play(scenario(ups, trace, seed=seed, faults=faults))
        waits += [round(line.event.at_s % 1.0, 9) for line in run.lines if isinstance(line, Step) and isinstance(line.event, FirstToken)]  # fmt: skip

    assert len(waits) == len(set(waits)) == 8


def test_a_replica_finds_in_the_pools_store_what_another_one_left_there(make: Any) -> None:
    tiers = TierSettings(kv_bytes_per_token=1.0, remote_bytes=1e6, remote_bytes_per_s=1e9)
    trace = [
        Arrival(at_s=at_s, model="m", input_tokens=321, output_tokens=1, prefix_hashes=tuple(range(first, first + 20)))
        for at_s, first in ((0.0, 0), (1.0, 100), (3.0, 0))
    ]  # fmt: skip
    over = {"kv_capacity_tokens": 322, "context_tokens": 322, "prefix_tiers": tiers}
    found = {}
    for pool in ("p", "q"):
        ups = (*fleet(make, 1, **over), make["replica"]("late", at_s=2.0, pool=pool, **over))
        faults = (Fault(at_s=2.5, replica="r0", what="down"),)
        found[pool] = found_tokens(play(scenario(ups, trace, faults=faults)))

    assert found == {"p": 320, "q": 0}


def test_a_prefill_replica_finds_what_it_computed_for_another_decode(make: Any) -> None:
    """The second prompt is computed but for nineteen of its blocks, and a cache that was handed on is idle and not lost."""
    over = {"kv_token_bytes": 1.0, "kv_link_bytes_per_s": 1e9}
    ups = [
        *(make["replica"](f"p{n}", role="prefill", pool="p", context_tokens=2000, **over) for n in range(2)),
        make["replica"]("d", role="decode", pool="d", context_tokens=2000, **over),
    ]  # fmt: skip
    trace = [
        Arrival(at_s=at_s, model="m", input_tokens=320, output_tokens=5, prefix_hashes=tuple(range(20)))
        for at_s in (0.0, 2.0, 4.0)
    ]  # fmt: skip
    run = play(scenario(ups, trace))
    computed = {line.of: line.value for line in run.lines if isinstance(line, Measure) and line.name == "computed_tokens"}  # fmt: skip

    assert found_tokens(run) == 2 * 19 * BLOCK
    assert computed["p0"] + computed["p1"] == 320 + 2 * BLOCK
    assert min(computed["p0"], computed["p1"]) == 0
    assert replay(run.lines) is None
