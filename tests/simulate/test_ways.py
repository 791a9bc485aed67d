"""Caches over links that they share: against rates worked by hand, the laws of max-min fairness, and `Flows` on the fabric's own links."""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from polypod.cli.simulated import ANSWERS
from polypod.cost.deployment import Precision
from polypod.cost.steptime import StepTime
from polypod.errors import FileError, InputError
from polypod.plan.place import parse_fleet
from polypod.plan.spec import Plan, Pool, Service
from polypod.policy.actions import Decode, Retry
from polypod.policy.events import ClientGone, KvArrived, RequestFinished
from polypod.record import Measure, Step
from polypod.simulate import Fault, Scenario, play
from polypod.simulate.arriving import Listed
from polypod.simulate.compiled import Session, play_compiled
from polypod.simulate.fabric import Network, fabric_of
from polypod.simulate.fault_files import read_faults
from polypod.simulate.faults import Resolved, resolve
from polypod.simulate.flows import Demand, Flows, play_flows
from polypod.simulate.placed import placement
from polypod.simulate.seats import Recovery, seat
from polypod.simulate.series import Watch
from polypod.simulate.spots import Domains, read_spot
from polypod.simulate.transfers import Transfers
from polypod.simulate.way_plan import ways_of
from polypod.simulate.ways import Ways
from polypod.workload.layout import Layout

STEP = StepTime(tokens=(0, 1000), seconds=(0.010, 0.110), kv_token_s=0.0, pair_s=0.0)


def named(way: Sequence[Sequence[int]], capacity: Sequence[float], **over: Any) -> Ways:
    """One tier that joins all, unless it is said otherwise; `way` is of each replica and tier."""
    way_RT = np.array(way, dtype=np.int64)
    shape = way_RT.shape
    known: dict[str, Any] = {
        "tiers": tuple(f"tier {n}" for n in range(shape[1])),
        "names": tuple(f"way {n}" for n in range(len(capacity))),
        "capacity_bytes_per_s_W": np.array(capacity, dtype=np.float64),
        "way_RT": way_RT,
        "instance_RT": np.zeros(shape, dtype=np.int64),
        "first_RT": np.zeros(shape, dtype=np.int64),
        "tier_RT": np.broadcast_to(np.arange(shape[1]), shape).copy(),
        "port_bytes_per_s_R": np.full(shape[0], 100.0),
    }
    return Ways(**(known | over))


def transfers(make: Any, ways: Ways, ranks: int = 1) -> Transfers:
    """Of replicas named 0, 1, 2 and on."""
    step = StepTime(tokens=(0, 1000), seconds=(0.01, 0.11), kv_token_s=0, pair_s=0, data_ranks=ranks)  # fmt: skip
    ups = [make["replica"](str(n), step_time=step) for n in range(len(ways.way_RT))]
    made = Transfers(ways, ups)
    for up in ups:
        made.link(up)
    return made


def started(made: Transfers, pairs: Iterable[tuple[int, int]], size_bytes: float = 1000.0) -> list[float]:  # fmt: skip
    """Rates of caches that begin at once."""
    count = 0
    for request, (source, target) in enumerate(pairs):
        made.start(0.0, request=request, ends=(str(source), str(target)), kv_bytes=size_bytes)
        count += 1
    made.advance(0.0)
    return [made.rate_bytes_per_s(request) for request in range(count)]


SIX = [[0], [0], [-1], [-1], [1], [1]]
"""Way 0 is shared by the sources of the first two of the pairs below, way 1 by the targets of the last two."""

PAIRS = [(0, 3), (1, 4), (2, 5)]


def test_what_a_cache_cannot_use_goes_to_those_beside_it(make):
    """10 a second for two, of which one is held to 2 by the other way's 4 for two: the first has the 8 that are left."""
    assert started(transfers(make, named(SIX, [10.0, 4.0])), PAIRS) == [8.0, 2.0, 2.0]


def test_of_many_too(make):
    """The third begins to be one of many, so that all levels are made."""
    assert started(transfers(make, named(SIX, [10.0, 4.0], exact_caches=2)), PAIRS) == [8.0, 2.0, 2.0]  # fmt: skip


def test_beyond_exact_rates_a_link_hears_of_its_own_caches_alone(make):
    """The second may have 4 by the other way, and leaves 6; when the third halves that, nobody tells the first, until one comes or goes beside it."""
    made = transfers(make, named(SIX, [10.0, 4.0], exact_caches=0))
    assert started(made, PAIRS) == [6.0, 2.0, 2.0]
    made.start(0.0, request=3, ends=("0", "3"), kv_bytes=1000.0)
    made.advance(0.0)
    made.stop(0.0, 3)
    assert [made.rate_bytes_per_s(n) for n in range(3)] == [8.0, 2.0, 2.0]


def test_a_busy_link_tells_of_a_new_share_once_it_has_moved_by_more_than_a_32nd(make):
    """992 a second: 32 for each of 31; the 32nd makes it 31, one 32nd less, which nobody hears; with the 33rd all hear."""
    ways = named([[0], [-1]], [992.0], port_bytes_per_s_R=np.full(2, 1e6), exact_caches=0)
    assert started(transfers(make, ways), [(0, 1)] * 31) == [32.0] * 31
    assert started(transfers(make, ways), [(0, 1)] * 32) == [32.0] * 32
    assert started(transfers(make, ways), [(0, 1)] * 33) == [992 / 33] * 33


def test_a_data_parallel_group_sends_by_its_own_ports(make):
    """Of 100 a second and four groups 25 each, though the ways have more; and never more than the whole link."""
    wide = named(SIX, [1e6, 1e6])
    assert started(transfers(make, wide, ranks=4), PAIRS) == [25.0] * 3
    assert started(transfers(make, wide, ranks=2), [(0, 3)] * 4) == [25.0] * 4


def test_a_cache_crosses_the_ways_up_to_where_its_ends_meet_and_down_from_there():
    """Two nodes to a leaf, two leaves; the third tier's port begins at the second."""
    ways = named(
        [[-1, 0, 4], [-1, 0, 4], [-1, 1, 4], [-1, 2, 5]], [1.0] * 6,
        instance_RT=np.array([[0, 4, 9], [0, 4, 9], [1, 4, 9], [2, 5, 9]]), first_RT=np.array([[0, 1, 1]] * 4),
    )  # fmt: skip
    assert ways.path(0, 1) == ([], [0])
    assert ways.path(0, 2) == ([0, 3], [1])
    assert ways.path(0, 3) == ([0, 8, 5, 11], [1, 2])
    assert ways.path(3, 0) == ([4, 10, 1, 9], [1, 2])


def test_both_directions_of_a_way_have_all_of_it(make):
    assert started(transfers(make, named([[0], [1]], [10.0, 10.0])), [(0, 1), (1, 0)]) == [10.0] * 2  # fmt: skip


def test_a_narrow_way_takes_longer_and_a_dead_one_lets_caches_wait_until_it_is_back(make):
    """10 bytes a second: half of 100 bytes in 5 s, then nothing for 3 s, then a quarter of the speed."""
    made = transfers(make, named([[0], [-1]], [10.0]))
    made.start(0.0, request=1, ends=("0", "1"), kv_bytes=100.0)
    made.advance(5.0)
    made.slow_way(5.0, 0, math.inf)
    assert (made.rate_bytes_per_s(1), made.next_s) == (0.0, math.inf)
    assert made.advance(8.0) == []
    assert made.tier_bytes(8.0) == [50.0]
    made.slow_way(8.0, 0, 4.0)
    assert made.next_s == pytest.approx(8.0 + 50.0 / 2.5)
    made.slow_way(12.0, 0, 1.0)
    assert made.next_s == pytest.approx(12.0 + 40.0 / 10.0)
    assert made.advance(16.0) == [1]
    assert made.tier_bytes(16.0) == [100.0]


@pytest.mark.parametrize("exact", [0, 32])
def test_a_dead_way_holds_up_only_those_that_cross_it(make, exact):
    made = transfers(make, named(SIX, [10.0, 4.0], exact_caches=exact))
    started(made, PAIRS)
    made.slow_way(1.0, 1, math.inf)
    assert [made.rate_bytes_per_s(n) for n in range(3)] == [10.0 if exact else 6.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(20))
def test_max_min_rates_fill_a_link_of_every_cache_and_no_link_over_its_capacity(make, seed):
    """And levels come near them: made anew of all links at once, and told one by one to whom they are nearest."""
    rng = np.random.default_rng(seed)
    replicas, tiers = 12, 3
    way = np.column_stack([np.arange(replicas) // 3 + 8 * tier for tier in range(tiers)])
    ways = named(
        way, rng.choice([5.0, 20.0, 70.0, 300.0], 8 * tiers), port_bytes_per_s_R=rng.choice([10.0, 50.0, 100.0], replicas),
        instance_RT=np.column_stack([np.arange(replicas) // 4, np.arange(replicas) // 6, np.zeros(replicas, dtype=np.int64)]),
    )  # fmt: skip
    made = transfers(make, ways)
    pairs = [tuple(rng.choice(replicas, 2, replace=False).tolist()) for _ in range(int(rng.integers(2, 33)))]  # fmt: skip
    rates = started(made, pairs)
    on: dict[tuple[str, int], list[float]] = {}
    for (source, target), rate in zip(pairs, rates, strict=True):
        links = [("shared", link) for link in ways.path(source, target)[0]]
        for link in [("own", source), ("own", target), *links]:
            on.setdefault(link, []).append(rate)
    capacity = {link: float(ways.port_bytes_per_s_R[link[1]] if link[0] == "own" else ways.capacity_bytes_per_s_W[link[1] // 2]) for link in on}  # fmt: skip
    for link, its in on.items():
        assert sum(its) <= capacity[link] * (1 + 1e-12)
    full = {link for link, its in on.items() if sum(its) >= capacity[link] * (1 - 1e-12)}
    for (source, target), rate in zip(pairs, rates, strict=True):
        its_links = [("own", source), ("own", target), *(("shared", link) for link in ways.path(source, target)[0])]  # fmt: skip
        assert any(link in full and rate >= max(on[link]) * (1 - 1e-12) for link in its_links)
    wide = replace(ways, capacity_bytes_per_s_W=1e6 * ways.capacity_bytes_per_s_W, port_bytes_per_s_R=1e6 * ways.port_bytes_per_s_R)  # fmt: skip
    made_anew = np.array(started(transfers(make, _with(wide, len(pairs) - 1)), pairs)) / rates
    assert made_anew == pytest.approx(np.full(len(pairs), 1e6), rel=0.3)
    assert np.median(np.abs(made_anew / 1e6 - 1)) < 0.01
    one_by_one = np.array(started(transfers(make, _with(wide, 0)), pairs)) / rates
    assert np.median(np.abs(one_by_one / 1e6 - 1)) < 0.25
    assert one_by_one.min() > 0.2e6


def _with(ways: Ways, exact: int) -> Ways:
    return replace(ways, exact_caches=exact)


def apart(replicas: int, world: int = 1, fleet: str = "nvidia-h200-sxm:64", **over: Any) -> Plan:
    pools = tuple(
        Pool(role=role, on="a", layout=Layout(tp=world), replicas=replicas, precision=Precision(weights="bf16", kv="bf16"), state="modelled", name=role, **over)
        for role in ("prefill", "decode")
    )  # fmt: skip
    return Plan(polypod=1, fleet=parse_fleet(fleet), services=(Service(model="qwen3-8b", pools=pools),))  # fmt: skip


NARROW = Network(leaf_cards=16, node_blocking_ratio=4.0, leaf_blocking_ratio=3.0)


@pytest.mark.parametrize("seed", range(8))
def test_caches_end_when_flows_on_the_fabrics_links_do(make, seed):
    """At most 32 at once between nodes: `Flows` has a link for every port and way, and its own filling."""
    plan = apart(32)
    fabric, placed = fabric_of(plan, NARROW)
    found = ways_of(plan, fabric, placed)
    assert found is not None
    rng = np.random.default_rng(seed)
    made = transfers(make, found.ways)
    count, at_s, end_s = 200, np.cumsum(rng.exponential(0.004, 200)), {}
    pairs = [(int(rng.integers(32)), 32 + int(rng.integers(32))) for _ in range(count)]
    size = rng.uniform(1e8, 2e9, count)
    most = 0
    for n, (source, target) in enumerate(pairs):
        _advance(made, float(at_s[n]), end_s)
        made.start(float(at_s[n]), request=n, ends=(str(source), str(target)), kv_bytes=float(size[n]))  # fmt: skip
        most = max(most, n + 1 - len(end_s))
    _advance(made, math.inf, end_s)
    assert 8 < most <= 32
    path_FW, _ = fabric.paths(*(np.array([placed.first_rank_R[pair[end]] for pair in pairs]) for end in (0, 1)))  # fmt: skip
    asked = Demand(at_s_F=at_s, size_bytes_F=size, path_FW=path_FW, latency_s_F=np.zeros(count))
    assert [end_s[n] for n in range(count)] == pytest.approx(play_flows(Flows(fabric), asked).tolist(), rel=1e-9)  # fmt: skip


def _advance(made: Transfers, to_s: float, end_s: dict[int, float]) -> None:
    while made.next_s <= to_s and made.next_s < math.inf:
        at_s = made.next_s
        end_s |= dict.fromkeys(made.advance(at_s), at_s)


# ---- of a plan


def test_a_plans_ways_are_its_fabrics_links_and_its_ports_the_specification():
    plan = apart(8, world=4)
    fabric, placed = fabric_of(plan, NARROW)
    found = ways_of(plan, fabric, placed)
    assert found is not None
    ways = found.ways
    assert ways.tiers == ("NVLink 4", "scale-out, 400 Gb/s per GPU, leaf", "scale-out, 400 Gb/s per GPU, spine")  # fmt: skip
    assert set(ways.port_bytes_per_s_R) == {4 * 50e9}
    links, tiers = ways.path(
        0, 15
    )  # the first node's first replica to the last one of the last node
    assert [round(float(ways.capacity_bytes_per_s_W[link // 2]) / 1e9) for link in links] == [100, 267, 100, 267]  # fmt: skip
    assert tiers == [1, 2]
    assert ways.path(0, 1) == ([], [0])
    spine = ways.names.index("scale-out, 400 Gb/s per GPU, spine a/0")
    assert (found.first_card_W[spine], found.end_card_W[spine], found.group_cards_W[spine]) == (0, 16, 16)  # fmt: skip


def test_what_the_plan_was_charged_for_neighbours_is_not_taken_off_twice():
    """Blocking 2:1 of the fleet's file: 25 GB/s a rank for the policy's forecasts, ports of 50 and a way of 200 for eight here."""
    text = parse_fleet("nvidia-h200-sxm:64")
    plan = apart(8, world=4)
    plan = msgspec.structs.replace(plan, fleet={"a": msgspec.structs.replace(text["a"], blocking_ratio=2.0)})  # fmt: skip
    fabric, placed = fabric_of(plan)
    found = ways_of(plan, fabric, placed)
    assert found is not None
    assert set(found.ways.port_bytes_per_s_R) == {4 * 50e9}
    assert set(found.ways.capacity_bytes_per_s_W) == {200e9}
    said = msgspec.structs.replace(plan, services=apart(8, world=4, kv_link="10GB/s").services)
    found = ways_of(said, fabric, placed)
    assert found is not None
    assert set(found.ways.port_bytes_per_s_R) == {40e9}


def test_replicas_over_several_nodes_have_one_way_as_wide_as_all_of_them():
    plan = apart(2, world=16)
    found = ways_of(plan, *fabric_of(plan))
    assert found is not None
    assert found.ways.names == tuple(f"scale-out, 400 Gb/s per GPU a/{n}-{n + 1}" for n in (0, 2, 4, 6))  # fmt: skip
    assert set(found.ways.capacity_bytes_per_s_W) == {800e9}


def test_replicas_that_overlap_in_a_node_have_one_way():
    plan = apart(2, world=12)  # cards 0-11, 12-23, 24-35, 36-47 on nodes of 8
    found = ways_of(plan, *fabric_of(plan))
    assert found is not None
    assert found.ways.way_RT[:, 1].tolist() == [0, 0, 1, 1]
    assert found.ways.names[0].endswith("a/0-2")


def test_whole_replicas_share_no_ways():
    pool = apart(2).services[0].pools[0]
    whole = msgspec.structs.replace(pool, role="both")
    plan = msgspec.structs.replace(apart(2), services=(Service(model="qwen3-8b", pools=(whole,)),))
    assert ways_of(plan, *fabric_of(plan)) is None


def test_parts_of_a_fleet_meet_where_both_lead_out():
    pools = list(apart(2, world=4).services[0].pools)
    pools[1] = msgspec.structs.replace(pools[1], on="b")
    plan = msgspec.structs.replace(apart(2), fleet=parse_fleet("nvidia-h200-sxm:64+nvidia-h200-sxm:16"), services=(Service(model="qwen3-8b", pools=tuple(pools)),))  # fmt: skip
    found = ways_of(plan, *fabric_of(plan))
    assert found is not None
    links, tiers = found.ways.path(0, 2)
    assert [found.ways.names[link // 2] for link in links] == [f"scale-out, 400 Gb/s per GPU {part}/0" for part in "ab"]  # fmt: skip
    assert [found.ways.tiers[tier] for tier in tiers] == ["scale-out, 400 Gb/s per GPU"]


# ---- in a run, by both drivers

DRIVERS = pytest.mark.parametrize("driver", [play, play_compiled])


def played(make: Any, ways: Ways, rows: Any, **over: Any) -> Scenario:
    """A prefill replica and two for decode; a token's cache is 1 kB, and a prompt of 100 tokens 20 ms."""
    fleet = [make["replica"](name, role=role, pool=role, kv_token_bytes=1000.0, kv_link_bytes_per_s=10e6) for name, role in (("0", "prefill"), ("1", "decode"), ("2", "decode"))]  # fmt: skip
    return make["scenario"](fleet, make["arrivals"](rows), ways=ways, watch=Watch(interval_s=0.05), limits={"queue_wait_s": 1e9}, **over)  # fmt: skip


ONE_WAY = named([[0], [1], [1]], [1e6, 1e9], port_bytes_per_s_R=np.full(3, 10e6))


@DRIVERS
def test_bytes_of_each_tier_add_up_to_the_caches(make, driver):
    rows = [(0.1 * n, 100 + n, 3) for n in range(20)]
    run = driver(played(make, ONE_WAY, rows))
    series = [line for line in run.lines if isinstance(line, Measure) and line.name == "bytes"]
    assert sum(line.value for line in series) == sum(1000.0 * row[1] for row in rows)
    assert len({line.at_s for line in series}) == len(series)
    assert max(line.value for line in series) <= 0.05 * 1e6 + 1000


@DRIVERS
def test_a_cache_on_a_dead_way_arrives_when_it_is_back(make, driver):
    """100 kB at 1 MB/s from 20 ms on: 30 kB are there at 50 ms, the other 70 from 250 ms on."""
    faults = (
        Fault(at_s=0.05, replica="way 0", what="way", factor=math.inf),
        Fault(at_s=0.25, replica="way 0", what="way"),
    )
    run = driver(played(make, ONE_WAY, [(0.0, 100, 3)], faults=faults))
    (arrived,) = [line.event for line in run.lines if isinstance(line, Step) and isinstance(line.event, KvArrived)]  # fmt: skip
    assert arrived.at_s == pytest.approx(0.25 + 0.070)


@DRIVERS
def test_a_client_may_tire_of_waiting_for_a_link_that_never_comes_back(make, driver):
    dead = (Fault(at_s=0.05, replica="way 0", what="way", factor=math.inf),)
    scenario = played(make, ONE_WAY, [(0.0, 100, 3)], faults=dead)
    patient = driver(scenario)
    assert not any(isinstance(line, Step) and isinstance(line.event, KvArrived) for line in patient.lines)  # fmt: skip
    impatient = Scenario(
        replicas=scenario.replicas, settings=scenario.settings, ways=ONE_WAY, faults=dead,
        trace=make["arrivals"]([(0.0, 100, 3)], patience_s=2.0),
    )  # fmt: skip
    gone = [line.event for line in driver(impatient).lines if isinstance(line, Step) and isinstance(line.event, ClientGone)]  # fmt: skip
    assert [one.at_s for one in gone] == [2.0]


@pytest.mark.parametrize("seed", range(3))
def test_both_drivers_play_many_caches_at_once_to_the_byte(make, seed):
    """Some hundred over few links, which break and come back: beyond exact rates, back to them, and shares told late."""
    rng = np.random.default_rng(seed)
    kinds = ["prefill"] * 6 + ["decode"] * 6
    step = StepTime(tokens=(0, 1000), seconds=(0.001, 0.002), kv_token_s=0.0, pair_s=0.0)
    fleet = [
        make["replica"](str(n), role=role, pool=role, step_time=step, kv_token_bytes=1000.0, kv_link_bytes_per_s=1e6, max_sequences=100)
        for n, role in enumerate(kinds)
    ]  # fmt: skip
    rows = np.arange(12) // 3
    ways = named(
        np.column_stack([rows, 4 + rows // 2]), rng.choice([1e6, 3e6, 9e6], 6), instance_RT=np.column_stack([rows, 0 * rows]),
        port_bytes_per_s_R=np.full(12, 1e6), exact_caches=int(rng.choice([8, 32])),
    )  # fmt: skip
    faults = [
        Fault(at_s=float(at_s), replica=f"way {rng.integers(6)}", what="way", factor=float(factor))
        for at_s, factor in zip(rng.uniform(0, 4, 6), rng.choice([1, 4, math.inf], 6), strict=True)
    ]
    faults += [Fault(at_s=5.0, replica=f"way {n}", what="way") for n in range(6)]
    trace = make["arrivals"]([(float(at_s), int(rng.integers(1, 200)), 3) for at_s in np.sort(rng.uniform(0, 3, 500))])  # fmt: skip
    scenario = make["scenario"](fleet, trace, ways=ways, faults=tuple(faults), watch=Watch(interval_s=0.3), seed=seed)  # fmt: skip
    files = [io.BytesIO(), io.BytesIO()]
    play(scenario, files[0])
    play_compiled(scenario, files[1])
    assert files[0].getvalue().splitlines() == files[1].getvalue().splitlines()


@DRIVERS
def test_a_cache_that_a_dead_link_keeps_is_computed_again_and_goes_elsewhere(make, driver):
    """The way down to the first decode replica dies with the cache on it; a minute later the other one has it."""
    scenario = played(make, ONE_WAY, [(0.0, 100, 3)])
    (first,) = [action.replica for line in driver(scenario).lines if isinstance(line, Step) for action in line.actions if isinstance(action, Decode)]  # fmt: skip
    wide = named([[-1], [0], [1]], [1e6, 1e6], port_bytes_per_s_R=np.full(3, 10e6))
    dead = (Fault(at_s=0.05, replica=f"way {int(first) - 1}", what="way", factor=math.inf),)
    run = driver(played(make, wide, [(0.0, 100, 3)], faults=dead))
    steps = [line for line in run.lines if isinstance(line, Step)]
    (retry,) = [step for step in steps if any(isinstance(one, Retry) for one in step.actions)]
    assert retry.event.at_s == pytest.approx(0.020 + 60)
    (decode,) = [action for step in steps for action in step.actions if isinstance(action, Decode)]
    assert {first, decode.replica} == {"1", "2"}
    assert isinstance(steps[-1].event, RequestFinished)


def test_caches_that_no_link_lets_through_use_up_the_attempts(make):
    dead = (Fault(at_s=0.05, replica="way 0", what="way", factor=math.inf),)
    scenario = played(make, ONE_WAY, [(0.0, 100, 3)], faults=dead)
    turns = list(Session(scenario, Listed(scenario.trace)).turns())
    (code,) = np.concatenate([turn.outcomes["status"] for turn in turns]).tolist()
    assert ANSWERS[code - 1] == ("attempts_exhausted", 502)


def test_without_ways_nothing_changes(make):
    """A way as wide as anything, that all cross alone: the times of a run without it."""
    wide = named([[-1], [-1], [-1]], [], port_bytes_per_s_R=np.full(3, 10e6), exact_caches=0)
    rows = [(0.01 * n, 100, 3) for n in range(30)]
    records = []
    for ways in (wide, None):
        file = io.BytesIO()
        play(played(make, ways, rows), file)
        records.append([line for line in file.getvalue().splitlines() if b'"bytes"' not in line])
    assert records[0] == records[1]


def test_ways_that_cannot_be_are_refused(make):
    with pytest.raises(InputError, match=r"9 tiers in a row .* over 8 in a row"):
        named([[-1] * 9], [])
    with pytest.raises(InputError, match=r"'way 1' has a capacity of 0 bytes/s"):
        named([[0], [1]], [1.0, 0.0])
    with pytest.raises(InputError, match=r"ways are of 2 replicas, and the scenario has 3"):
        played(make, named([[0], [1]], [1.0, 1.0]), [])
    with pytest.raises(InputError, match=r"no shared way .* called 'way 9'; nearest: way 1, way 0"):
        played(make, ONE_WAY, [], faults=(Fault(at_s=0.0, replica="way 9", what="way", factor=2.0),))  # fmt: skip
    with pytest.raises(InputError, match=r"has the factor inf; 2 is twice as long"):
        Fault(at_s=0.0, replica="0", what="link", factor=math.inf)


# ---- what breaks


def broken(plan: Plan, rows: str, tmp_path: Path, network: Network | None = None) -> Resolved:
    found = ways_of(plan, *fabric_of(plan, network))
    assert found is not None
    seated = seat(plan, Recovery(restart_s=0, storage_bytes_per_s=1e30))
    path = tmp_path / "faults.yaml"
    path.write_text(rows)
    listed, _ = read_faults(path, seated.placed, ways=found.ways.names)
    return resolve(seated, listed, lambda part, pool, spot: 0.5, found)


def test_a_dead_uplink_of_a_node_holds_up_its_caches_and_stops_no_replica_inside(tmp_path):
    found = broken(apart(8, world=4), "- {at: 1s, what: crash, where: link node a/1, repair: 10s}", tmp_path)  # fmt: skip
    name = "scale-out, 400 Gb/s per GPU a/1"
    assert [(one.at_s, one.replica, one.what, one.factor) for one in found.faults] == [(1.0, name, "way", math.inf), (11.0, name, "way", 1.0)]  # fmt: skip
    assert found.notes[0].replicas == ("prefill-2", "prefill-3")
    assert found.notes[0].back_s == 11.0


def test_a_dead_uplink_stops_replicas_that_exchange_over_it(tmp_path):
    found = broken(apart(2, world=16), "- {at: 1s, what: crash, where: link node a/1, repair: 10s}", tmp_path)  # fmt: skip
    assert [(one.at_s, one.replica, one.what) for one in found.faults] == [
        (1.0, "prefill-0", "down"), (1.0, "scale-out, 400 Gb/s per GPU a/0-1", "way"),
        (11.0, "prefill-0", "up"), (11.0, "scale-out, 400 Gb/s per GPU a/0-1", "way"),
    ]  # fmt: skip


def test_a_slow_uplink_is_slow_for_caches_alone_and_the_slowest_counts(tmp_path):
    rows = """\
- {at: 1s, what: slow-link, where: link node a/0, factor: 2, repair: 10s}
- {at: 3s, what: flap, where: link node a/0, factor: 8, burst: 1s, every: 4s, repair: 6s}
"""
    found = broken(apart(8, world=4), rows, tmp_path)
    assert {one.replica for one in found.faults} == {"scale-out, 400 Gb/s per GPU a/0"}
    assert [(one.at_s, one.factor) for one in found.faults] == [(1.0, 2.0), (3.0, 8.0), (4.0, 2.0), (7.0, 8.0), (8.0, 2.0), (11.0, 1.0)]  # fmt: skip


def test_a_slow_uplink_slows_the_steps_of_who_exchanges_over_it(tmp_path):
    found = broken(apart(2, world=16), "- {at: 1s, what: slow-link, where: link node a/1, factor: 3, repair: 10s}", tmp_path)  # fmt: skip
    assert [(one.what, one.factor) for one in found.faults if one.replica == "prefill-0"] == [("speed", 2.0), ("speed", 1.0)]  # fmt: skip
    assert not any(one.what == "link" for one in found.faults)


def test_a_leafs_uplink_is_found_by_its_cards(tmp_path):
    leaves = Network(leaf_cards=32)  # as many as a rack is taken to have
    row = "- {at: 1s, what: slow-link, where: link rack a/1, factor: 2}"
    found = broken(apart(8, world=4), row, tmp_path, leaves)
    assert [one.replica for one in found.faults] == ["scale-out, 400 Gb/s per GPU, spine a/1"]
    assert {one.what for one in broken(apart(8, world=4), row, tmp_path).faults} == {"link"}


def test_links_of_other_groups_than_the_fabrics_are_no_shared_ways(tmp_path):
    plan = apart(8, world=4)
    found = ways_of(plan, *fabric_of(plan))
    assert found is not None
    placed = placement(plan, node_cards=4)
    assert found.at(read_spot("link node a/2", placed, Domains())) is None
    assert found.at(read_spot("node a/2", placed, Domains())) is None
    assert found.at(read_spot("link node a/1", placement(plan), Domains())) == 1


def test_a_cards_own_port_is_no_shared_way(tmp_path):
    found = broken(apart(8, world=4), "- {at: 1s, what: slow-link, where: link card a/9, factor: 2}", tmp_path)  # fmt: skip
    assert {(one.replica, one.what) for one in found.faults} == {("prefill-2", "speed"), ("prefill-2", "link")}  # fmt: skip


def test_a_way_may_be_broken_by_its_name(tmp_path):
    path = tmp_path / "faults.yaml"
    path.write_text('- {at_s: 1, replica: "way 1", what: way, factor: .inf}')
    placed = placement(apart(2))
    assert read_faults(path, placed, ways=("way 0", "way 1"))[1] == [Fault(at_s=1.0, replica="way 1", what="way", factor=math.inf)]  # fmt: skip
    with pytest.raises(FileError, match=r"no way called 'way 1'; nearest: way 2, way 0"):
        read_faults(path, placed, ways=("way 0", "way 2"))
    with pytest.raises(FileError, match=r"nearest: none, as nothing hands caches on"):
        read_faults(path, placed)
