"""Collectives on a fabric: ASTRA-sim's formulas, our own cost model, NCCL's and DeepEP's times, every flow by itself, and what sharing a link costs."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.catalog.load import load_accelerator
from polypod.catalog.topology import loose_tiers
from polypod.cost.calibration import for_chip
from polypod.cost.chip import rank_of
from polypod.cost.collective import Link, collective_time, measured_time
from polypod.errors import InputError
from polypod.plan.place import parse_fleet
from polypod.plan.spec import Plan, Pool, Service
from polypod.simulate import collectives as module
from polypod.simulate.collectives import (
    Algorithm,
    Collective,
    Pattern,
    contention,
    exchanges,
    play_collectives,
    rounds_of,
)
from polypod.simulate.fabric import Fabric, FabricPart, FabricTier, Network, fabric, fabric_of
from polypod.simulate.flows import Flows
from polypod.validate.shipped import read_shipped_points
from polypod.workload.layout import Layout
from polypod.workload.precision import Precision

PATTERNS: tuple[Pattern, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
ALGORITHMS: tuple[Algorithm, ...] = ("ring", "halving-doubling", "direct", "hierarchical")
SIZES = (64, 128, 512, 1024, 2048, 4096, 8192)
BUFFER = 256 * 2.0**20


def tiers(*rows: tuple[int | None, float, float], blocking: float = 1.0) -> tuple[FabricTier, ...]:
    """(ranks, bytes/s, s) of each tier; the last one blocks."""
    return tuple(
        FabricTier(name=f"t{n}", ranks=ranks, bytes_per_s=width, latency_s=latency_s, blocking_ratio=blocking if n == len(rows) - 1 else 1.0)
        for n, (ranks, width, latency_s) in enumerate(rows)
    )  # fmt: skip


def made(ranks: int, *rows: tuple[int | None, float, float], blocking: float = 1.0) -> Fabric:
    return fabric([FabricPart(name="a", ranks=ranks, tiers=tiers(*rows, blocking=blocking))])


def exchange(pattern: Pattern, algorithm: Algorithm, ranks: Sequence[int], buffer_bytes: float = BUFFER, **more: float) -> Collective:  # fmt: skip
    return Collective(pattern=pattern, algorithm=algorithm, ranks=tuple(ranks), buffer_bytes=buffer_bytes, **more)  # fmt: skip


def alone_s(where: Fabric, pattern: Pattern, algorithm: Algorithm, ranks: int) -> float:
    return play_collectives(where, [exchange(pattern, algorithm, range(ranks))])[0]


# ---- ASTRA-sim: a message takes hops * latency + size / bandwidth, a round the longest of its messages.
# Rounds and sizes: astra-sim/system/collective/{Ring,HalvingDoubling,AllToAll}.cc; delays: congestion_unaware/basic-topology/BasicTopology.cpp of
# https://github.com/astra-sim/astra-network-analytical at 599a047 (both MIT).


@pytest.mark.parametrize("size", SIZES)
def test_a_ring_takes_as_long_as_in_astra_sim(size: int) -> None:
    switch = made(size, (None, 50e9, 2 * 500e-9))
    round_s = 2 * 500e-9 + BUFFER / size / 50e9
    assert alone_s(switch, "all_reduce", "ring", size) == pytest.approx(2 * (size - 1) * round_s)
    assert alone_s(switch, "all_gather", "ring", size) == pytest.approx((size - 1) * round_s)


@pytest.mark.parametrize("size", SIZES)
def test_halving_and_doubling_take_as_long_as_in_astra_sim(size: int) -> None:
    switch = made(size, (None, 50e9, 2 * 500e-9))
    half_s = sum(2 * 500e-9 + BUFFER / 2**k / 50e9 for k in range(1, size.bit_length()))
    assert alone_s(switch, "all_reduce", "halving-doubling", size) == pytest.approx(2 * half_s)
    assert alone_s(switch, "reduce_scatter", "halving-doubling", size) == pytest.approx(half_s)


@pytest.mark.parametrize("size", SIZES)
def test_a_direct_exchange_takes_as_long_as_on_astra_sims_full_mesh(size: int) -> None:
    mesh = made(size, (None, (size - 1) * 50e9, 500e-9))  # a link of 50 GB/s to each
    round_s = 500e-9 + BUFFER / size / 50e9
    assert alone_s(mesh, "all_reduce", "direct", size) == pytest.approx(2 * round_s)
    assert alone_s(mesh, "all_to_all", "direct", size) == pytest.approx(round_s)


@pytest.mark.parametrize("size", SIZES)
def test_a_hierarchical_ring_takes_as_long_as_over_astra_sims_two_dimensions(size: int) -> None:
    both = made(size, (8, 400e9, 2 * 100e-9), (None, 50e9, 2 * 500e-9))
    outer = size // 8
    inside_s = 7 * (200e-9 + BUFFER / 8 / 400e9)
    between_s = (outer - 1) * (1000e-9 + BUFFER / 8 / outer / 50e9)
    assert alone_s(both, "all_reduce", "hierarchical", size) == pytest.approx(2 * (inside_s + between_s))  # fmt: skip


@pytest.mark.parametrize(
    ("width", "latency_s", "ends_ns"),
    [(50.0, 2 * 500e-9, 20_531), (50.0, 1 * 500e-9, 20_031), (50.0, 3 * 500e-9, 21_031), (200.0, 50e-9, 4_932), (100.0, 500e-9, 10_265), (50.0, 4000e-9, 23_531)],
)  # fmt: skip
def test_a_message_takes_as_long_as_astra_sims_own_tests_say(
    width: float, latency_s: float, ends_ns: int
) -> None:
    """test/test_congestion_unaware.cpp: 1 MiB over switch, mesh, ring and three dimensions; its GB are 2^30 bytes."""
    where = made(2, (None, width * 2**30, latency_s))
    flows = Flows(where)
    flows.start(0.0, 0, where.path(0, 1), 2.0**20, where.latency_s(0, 1))
    assert int(flows.advance(1.0)[0].at_s * 1e9) == ends_ns


# ---- the cost model


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("ranks", "shares"), [(8, False), (64, False), (256, False), (256, True)])
def test_with_nobody_else_an_exchange_takes_what_the_cost_model_says(
    pattern: Pattern, ranks: int, shares: bool
) -> None:
    """Transfer alone: the cost model counts one hop a tier, a ring n - 1 rounds."""
    rows = [(2, 300e9), (16, 196e9), (256, 100e9)]
    links = [Link(ranks=size, bytes_per_s=width, latency_s=0.0, shares_port=shares and size == 256) for size, width in rows]  # fmt: skip
    parts = tuple(FabricTier(name=str(one.ranks), ranks=one.ranks, bytes_per_s=one.bytes_per_s, latency_s=0.0, shares_port=one.shares_port) for one in links)  # fmt: skip
    if shares and pattern == "all_to_all":
        parts = (*parts[:2], FabricTier(name="256", ranks=256, bytes_per_s=196e9, latency_s=0.0, shares_port=True))  # fmt: skip
        links[2] = Link(ranks=256, bytes_per_s=196e9, latency_s=0.0, shares_port=True)
    where = fabric([FabricPart(name="a", ranks=256, tiers=parts)])
    algorithm: Algorithm = "direct" if pattern == "all_to_all" else "hierarchical"
    expected = collective_time(pattern, BUFFER, ranks=ranks, links=links)
    if shares and pattern != "all_to_all":
        return  # a shared port has one width in a fabric
    assert alone_s(where, pattern, algorithm, ranks) == pytest.approx(float(expected.transfer_s))


@pytest.mark.parametrize("chip", ["nvidia-h100-sxm", "nvidia-b200-hgx", "nvidia-a100-80g-sxm"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("buffer_bytes", [2.0**14, 2.0**20, 2.0**28])
def test_on_measured_links_an_exchange_takes_what_nccl_does(
    chip: str, pattern: Pattern, buffer_bytes: float
) -> None:
    """The fitted bandwidth is the port's (an all-reduce crosses it twice), launch and ramp are told: the rest agrees with the fit of NCCL's curve."""
    rank = rank_of(load_accelerator(chip), loose_tiers(chip), for_chip(chip))
    curve = rank.measured(pattern, 8, "likely")
    assert curve is not None
    passes = 2 if pattern == "all_reduce" else 1
    where = made(8, (8, passes * curve.bytes_per_s, 0.0))
    told_s = curve.launch_s + curve.ramp_s * math.sqrt(buffer_bytes / 65536)
    algorithm: Algorithm = "direct" if pattern == "all_to_all" else "ring"
    ours_s = play_collectives(where, [exchange(pattern, algorithm, range(8), buffer_bytes, launch_s=told_s)])[0]  # fmt: skip
    measured_s = float(measured_time(pattern, buffer_bytes, ranks=8, curves=[curve]).total_s)
    assert ours_s >= measured_s * (1 - 1e-9)  # nothing overlaps
    assert ours_s <= measured_s * 2 ** (1 - 1 / curve.overlap) * (
        1 + 1e-9
    )  # a sum of two beside their power sum
    if curve.overlap < 1.1:
        assert ours_s == pytest.approx(measured_s, rel=0.08)


# ---- exchanges of experts: DeepEP

TOKEN_BYTES = {"dispatch": 7168 + 7168 / 128 * 4, "combine": 2 * 7168}
"""8 bits with a scale of 4 bytes for each 128; 16 bits."""

TOP_K, NODE = 8, 8


def copies(kernels: str) -> float:
    """Of a token: one to each of its experts; the normal kernels send one to a rank, however many of them are there."""
    return TOP_K if kernels == "ll" else NODE * (1 - (1 - 1 / NODE) ** TOP_K)


def experts_s(where: Fabric, ranks: int, buffer_bytes: float, launch_s: float = 0.0) -> float:
    return play_collectives(where, [exchange("all_to_all", "direct", range(ranks), buffer_bytes, launch_s=launch_s)])[0]  # fmt: skip


@pytest.mark.parametrize(("which", "most_short"), [("dispatch", 0.08), ("combine", 0.17)])
def test_among_up_to_256_ranks_experts_are_exchanged_in_the_time_that_deepep_publishes(
    which: str, most_short: float
) -> None:
    """H800 at 160 GB/s in the node and 50 between nodes, both as DeepEP says. Launching is what the figure of 8 ranks has beyond its bytes; the other five know
    nothing measured. All come out short, the more the more ranks, since no network gives all of its width."""
    found = [one for one in read_shipped_points() if one.id.startswith(f"deepep-h800-{which}-ep")]
    published_s = {int(one.id.rpartition("ep")[2]): one.value for one in found}
    assert sorted(published_s) == [8, 16, 32, 64, 128, 256]
    where = made(256, (NODE, 160e9, 0.0), (None, 50e9, 0.0))
    buffer_bytes = 128 * TOP_K * TOKEN_BYTES[which]
    launch_s = published_s.pop(8) - experts_s(where, 8, buffer_bytes)
    assert 30e-6 < launch_s < 40e-6
    for ranks, measured_s in published_s.items():
        assert -most_short < experts_s(where, ranks, buffer_bytes, launch_s) / measured_s - 1 < 0


@pytest.mark.parametrize("chip", ["nvidia-h100-sxm", "nvidia-b200-hgx"])
@pytest.mark.parametrize(("kernels", "rel"), [("ll", 0.11), ("normal", 0.21)])
@pytest.mark.parametrize("which", ["dispatch", "combine"])
def test_among_the_ranks_of_a_node_experts_are_exchanged_as_measured(
    chip: str, kernels: str, rel: float, which: str
) -> None:
    """Of each table the first row tells what launching takes and the last how wide a port is; those between follow."""
    path = Path(__file__).parents[1] / "data" / "deepep" / "eight.csv"
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["chip"], row["kernels"], row["exchange"]) == (chip, kernels, which)]  # fmt: skip
    measured_s = {int(row["tokens"]): 1e-6 * float(row["us"]) for row in rows}
    one, most = min(measured_s), max(measured_s)
    token_bytes = copies(kernels) * TOKEN_BYTES[which]
    sent_bytes = (most - one) * token_bytes * (NODE - 1) / NODE
    where = made(NODE, (NODE, sent_bytes / (measured_s[most] - measured_s[one]), 0.0))
    launch_s = measured_s[one] - experts_s(where, NODE, one * token_bytes)
    assert len(measured_s) >= 9
    for tokens, its_s in measured_s.items():
        assert experts_s(where, NODE, tokens * token_bytes, launch_s) == pytest.approx(
            its_s, rel=rel
        )


# ---- every flow by itself


def one_by_one(  # noqa: C901
    where: Fabric, several: Sequence[Collective], factors: dict[int, float]
) -> list[float]:
    """Each flow played alone in `Flows`, no classes: (collective, round, flow) by number."""
    flows, end_s = Flows(where), [0.0] * len(several)
    for link, factor in factors.items():
        flows.set_factor(0.0, link, factor)
    plans = [rounds_of(where, one) for one in several]
    queue = [[(rounds[step.round], step.size_bytes) for step in steps for _ in range(step.repeats)] for rounds, steps in plans]  # fmt: skip
    wake_s = [one.start_s + one.launch_s for one in several]
    waiting = [0] * len(several)
    owner: dict[int, int] = {}
    while True:
        next_s = min([s for s, rows in zip(wake_s, queue, strict=True) if rows and s < math.inf], default=math.inf)  # fmt: skip
        to_s = min(next_s, flows.next_s)
        if to_s == math.inf:
            return end_s
        for done in flows.advance(to_s):
            who = owner[done.flow]
            waiting[who] -= 1
            if not waiting[who]:
                wake_s[who] = end_s[who] = done.at_s
        for who, rows in enumerate(queue):
            if rows and not waiting[who] and wake_s[who] <= to_s:
                flow, size = rows.pop(0)
                wake_s[who] = math.inf
                assert flow.b_F is not None
                for a, b in zip(flow.a_F.tolist(), flow.b_F.tolist(), strict=True):
                    number = len(owner)
                    owner[number] = who
                    waiting[who] += 1
                    flows.start(to_s, number, where.path(a, b), size, where.latency_s(a, b))


TREE = fabric([FabricPart(name="a", ranks=32, tiers=(
    FabricTier(name="node", ranks=4, bytes_per_s=90.0, latency_s=0.01),
    FabricTier(name="leaf", ranks=16, bytes_per_s=20.0, latency_s=0.02),
    FabricTier(name="spine", ranks=None, bytes_per_s=20.0, latency_s=0.05, shares_port=True, blocking_ratio=3.0),
))])  # fmt: skip


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_classes_of_flows_take_as_long_as_all_flows_by_themselves(data: st.DataObject) -> None:
    several = []
    for _ in range(data.draw(st.integers(1, 3))):
        size = data.draw(st.sampled_from([2, 4, 8]))
        first, stride = data.draw(st.integers(0, 4)), data.draw(st.sampled_from([1, 2, 3]))
        ranks = range(first, first + size * stride, stride)
        algorithm = data.draw(st.sampled_from(["ring", "halving-doubling", "direct"]))
        several.append(exchange(data.draw(st.sampled_from(PATTERNS)), algorithm, ranks, data.draw(st.sampled_from([64.0, 400.0])), start_s=data.draw(st.sampled_from([0.0, 0.3]))))  # fmt: skip
    factors = dict.fromkeys(data.draw(st.lists(st.integers(0, TREE.links - 3), max_size=3)), 0.5)

    assert play_collectives(TREE, several, factors) == pytest.approx(one_by_one(TREE, several, factors), rel=1e-6)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_hierarchical_rounds_are_played_as_their_flows_are(pattern: Pattern) -> None:
    several = [exchange(pattern, "hierarchical", range(16), 320.0), exchange(pattern, "hierarchical", range(8, 24), 320.0, start_s=0.1)]  # fmt: skip
    assert play_collectives(TREE, several) == pytest.approx(one_by_one(TREE, several, {}), rel=1e-6)


@pytest.mark.parametrize("algorithm", ["direct", "hierarchical"])
def test_bundles_of_a_direct_exchange_are_its_pairs(algorithm: Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    several = [exchange("all_to_all", algorithm, range(32), 320.0), exchange("all_reduce", "direct", range(0, 32, 2), 640.0)]  # fmt: skip
    pairs = play_collectives(TREE, several)
    monkeypatch.setattr(module, "_PAIRS", 0)
    assert play_collectives(TREE, several) == pytest.approx(pairs)


def test_an_uneven_exchange_of_many_is_played_pair_by_pair() -> None:
    uneven = [*range(16), *range(16, 32, 2), *range(25, 32, 2)]  # 16 in one leaf, 12 in another
    where = fabric([FabricPart(name="a", ranks=64, tiers=TREE.parts[0].tiers)])
    many = exchange("all_to_all", "direct", [*uneven, *range(32, 45)], 410.0)
    rounds, _ = rounds_of(where, many)
    assert len(rounds[0].a_F) == 41 * 40
    assert rounds[0].b_F is not None
    assert play_collectives(where, [many]) == pytest.approx(one_by_one(where, [many], {}), rel=1e-6)


def test_a_repeated_round_is_skipped_only_where_everybody_repeats() -> None:
    """Two rings of unequal rounds come together now and then; jumping over what repeats must not change when they end."""
    several = [exchange("all_reduce", "ring", range(8), 640.0), exchange("all_reduce", "ring", range(8), 160.0), exchange("all_gather", "ring", range(8, 16), 80.0, start_s=7.0)]  # fmt: skip
    assert play_collectives(TREE, several) == pytest.approx(one_by_one(TREE, several, {}), rel=1e-6)


def test_what_all_repeat_is_told_from_what_comes_after_it() -> None:
    """At 7 s both begin a round again, but the one is in its next step: 4 rounds of 2 s, where 7 of 1 s were."""
    where = made(48, (8, 100.0, 0.0), (None, 10.0, 0.0))
    several = [exchange("reduce_scatter", "hierarchical", range(40), 800.0), exchange("all_gather", "ring", range(40, 48), 5600.0)]  # fmt: skip
    assert play_collectives(where, several) == pytest.approx([15.0, 49.0])


def test_a_round_waits_for_the_last_to_arrive_not_for_the_last_to_leave() -> None:
    where = made(16, (8, 1.0, 0.0), (None, 100.0, 50.0))
    far = exchange(
        "all_gather", "ring", [0, 1, 8], 30.0
    )  # 10 s next door; 0.1 s and 50 s of way to the other node
    assert play_collectives(where, [far]) == pytest.approx([2 * 50.1])


def test_an_all_to_all_on_a_ring_sends_on_what_is_for_others() -> None:
    where = made(4, (None, 100.0, 0.0))
    assert alone_s(where, "all_to_all", "ring", 4) == pytest.approx((3 + 2 + 1) * BUFFER / 4 / 100)


# ---- sharing


def test_rings_on_the_same_ports_take_turns() -> None:
    where = made(16, (None, 100.0, 0.0))
    one = exchange("all_reduce", "ring", range(16), 1600.0)
    assert contention(where, [one]) == [1.0]
    assert contention(where, [one, one, one]) == pytest.approx([3.0, 3.0, 3.0])


def test_replicas_that_share_no_link_do_not_slow_each_other() -> None:
    where = made(64, (8, 100.0, 0.0), (None, 10.0, 0.0))
    inside = [exchange("all_reduce", "ring", range(n, n + 8), 800.0) for n in range(0, 64, 8)]
    assert contention(where, inside) == [1.0] * 8


@pytest.mark.parametrize("blocking", [1.0, 2.0, 4.0])
def test_replicas_across_a_blocking_tier_are_slowed_by_its_factor(blocking: float) -> None:
    """Eight replicas, rank n of every node each: alone one has a port, together a node's way is so many times narrower."""
    where = made(64, (8, 100.0, 0.0), (None, 10.0, 0.0), blocking=blocking)
    across = [exchange("all_to_all", "direct", range(n, 64, 8), 640.0) for n in range(8)]
    assert contention(where, across) == pytest.approx([blocking] * 8)


def test_a_small_exchange_beside_a_large_one_is_slowed_while_both_go_on() -> None:
    where = made(8, (None, 100.0, 0.0))
    large, small = exchange("all_gather", "ring", range(8), 8000.0), exchange("all_gather", "ring", range(8), 8.0)  # fmt: skip
    once = play_collectives(where, [large, small])
    assert once[1] == pytest.approx(2 * 7 * 1.0 / 100)
    assert once[0] == pytest.approx(7 * 1001.0 / 100)
    assert contention(where, [large, small]) == pytest.approx([2.0, 2.0])


def test_a_degraded_link_slows_every_exchange_over_it_and_a_dead_one_stops_it() -> None:
    where = made(8, (None, 100.0, 0.0))
    one = exchange("all_gather", "ring", range(8), 800.0)
    other = exchange("all_gather", "ring", range(4), 800.0)
    out, _ = where.port(6, "t0")
    assert contention(where, [one], {out: 0.25}) == pytest.approx([4.0])
    assert play_collectives(where, [one, other], {out: 0.0})[0] == math.inf
    assert contention(where, [one], {out: 0.0}) == [math.inf]
    assert math.isfinite(play_collectives(where, [other], {out: 0.0})[0])


def test_a_launch_comes_before_the_rounds_and_a_start_before_the_launch() -> None:
    where = made(8, (None, 100.0, 0.0))
    late = exchange("all_gather", "ring", range(8), 800.0, start_s=3.0, launch_s=0.5)
    assert play_collectives(where, [late]) == pytest.approx([3.5 + 7.0])
    assert contention(where, [late, late]) == pytest.approx([14.5 / 7.5] * 2)


def test_between_two_exchanges_a_launch_leaves_the_links_to_others() -> None:
    where = made(8, (None, 100.0, 0.0))
    large, small = exchange("all_gather", "ring", range(8), 8000.0), exchange("all_gather", "ring", range(8), 8.0, launch_s=0.07)  # fmt: skip
    assert contention(where, [large, small])[0] == pytest.approx(
        1.5, rel=0.01
    )  # half of it for 0.14 s, all of it for 0.07 s


def test_one_rank_talks_to_nobody() -> None:
    where = made(8, (None, 100.0, 0.0))
    assert play_collectives(where, [exchange("all_reduce", "ring", [3], start_s=1.0)]) == [1.0]
    assert contention(where, [exchange("all_reduce", "direct", [3])]) == [1.0]
    assert play_collectives(where, []) == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_rank_gets_all_it_lacks(pattern: Pattern, algorithm: Algorithm) -> None:
    """A rank of n sends at least (n - 1) / n of the buffer in a pass, and as much as every other."""
    where = made(64, (8, 100.0, 0.0), (None, 100.0, 0.0))
    rounds, steps = rounds_of(where, exchange(pattern, algorithm, range(64), 64.0))
    sent = np.zeros(64)
    for step in steps:
        flow = rounds[step.round]
        weight = 1 if flow.weight_F is None else flow.weight_F
        np.add.at(sent, flow.a_F, weight * step.size_bytes * step.repeats)
    assert sent.min() == sent.max()
    least = 126.0 if pattern == "all_reduce" else 63.0
    if pattern != "all_to_all" or algorithm == "direct":
        assert sent[0] == pytest.approx(least)
    else:
        assert sent[0] > least  # what others are sent on


def test_replicas_of_a_plan_are_slowed_by_their_leaves() -> None:
    pool = Pool(role="both", on="a", layout=Layout(tp=64), replicas=4, precision=Precision(weights="bf16", kv="bf16"), state="modelled")  # fmt: skip
    plan = Plan(polypod=1, fleet=parse_fleet("nvidia-h200-sxm:256"), services=(Service(model="qwen3-8b", pools=(pool,)),))  # fmt: skip
    wide, placed = fabric_of(plan, Network(leaf_cards=64, leaf_blocking_ratio=4.0))
    assert contention(wide, exchanges(placed, "all_to_all", "direct", 1e9)) == [1.0] * 4
    narrow, _ = fabric_of(plan, Network(leaf_cards=32, leaf_blocking_ratio=4.0))
    assert contention(narrow, exchanges(placed, "all_to_all", "direct", 1e9)) == [1.0] * 4  # its own, and alone as slow  # fmt: skip
    spread = [exchange("all_to_all", "direct", range(n, 256, 4), 1e9) for n in range(4)]
    factor = contention(wide, spread)
    assert factor == pytest.approx([factor[0]] * 4)
    assert 1.0 < factor[0] < 4.0


def test_a_thousand_replicas_alike_are_one() -> None:
    where = made(8192, (8, 400e9, 1e-6), (64, 50e9, 5e-6), (None, 50e9, 5e-6), blocking=2.0)
    several = [exchange("all_reduce", "hierarchical", range(n, n + 64)) for n in range(0, 8192, 64)]
    network, players = module._players(where, several, {})
    assert len(players) == 1
    assert network.count_JK.shape[1] == 2
    assert contention(where, several) == [1.0] * 128


# ---- what cannot be


def test_what_cannot_be_is_refused() -> None:
    where = made(16, (8, 100.0, 0.0))
    with pytest.raises(InputError, match=r"halving and doubling among 6 ranks; take a power of two"):  # fmt: skip
        exchange("all_reduce", "halving-doubling", range(6))
    with pytest.raises(InputError, match=r"among 3 ranks, 2 of them different"):
        exchange("all_reduce", "ring", [0, 1, 1])
    with pytest.raises(InputError, match=r"buffer_bytes=0"):
        exchange("all_reduce", "ring", [0, 1], 0.0)
    with pytest.raises(InputError, match=r"hierarchical among 3 ranks, .* hold 1 to 2"):
        play_collectives(where, [exchange("all_reduce", "hierarchical", [0, 1, 8])])
    for algorithm in ALGORITHMS:
        with pytest.raises(InputError, match=r"no tier of 'a' on record joins ranks"):
            play_collectives(where, [exchange("all_to_all", algorithm, [0, 8])])
    two = fabric([FabricPart(name=name, ranks=2, tiers=tiers((None, 1.0, 0.0))) for name in "ab"])
    with pytest.raises(InputError, match=r"a collective's ranks are of one part of the fleet"):
        play_collectives(two, [exchange("all_to_all", "hierarchical", [0, 2])])
