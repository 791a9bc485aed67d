"""Links and flows: paths by the nearest common tier, laws of max-min fairness, and compiled flows that are the plain ones to the last bit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.errors import InputError
from polypod.plan.place import parse_fleet
from polypod.plan.spec import Plan, Pool, Service
from polypod.simulate.fabric import (
    NO_LINK,
    Fabric,
    FabricPart,
    FabricTier,
    Network,
    fabric,
    fabric_of,
    handover,
)
from polypod.simulate.flows import Demand, Flows, errors, play_flows
from polypod.workload.layout import Layout
from polypod.workload.precision import Precision

PAIR = FabricTier(name="pair", ranks=2, bytes_per_s=200.0, latency_s=0.001)
NODE = FabricTier(name="node", ranks=8, bytes_per_s=100.0, latency_s=0.01)
LEAF = FabricTier(name="leaf", ranks=32, bytes_per_s=10.0, latency_s=0.02)
SPINE = FabricTier(name="spine", ranks=None, bytes_per_s=10.0, latency_s=0.05, shares_port=True, blocking_ratio=4.0)  # fmt: skip
TREE = fabric([FabricPart(name="a", ranks=128, tiers=(PAIR, NODE, LEAF, SPINE))])
STAR = fabric([FabricPart(name="a", ranks=8, tiers=(FabricTier(name="switch", ranks=None, bytes_per_s=100.0, latency_s=0.0),))])  # fmt: skip


def capacities(made: Fabric, a: int, b: int) -> list[float]:
    return [float(made.capacity_bytes_per_s_L[link]) for link in made.path(a, b)]


# ---- paths


def test_two_ranks_meet_in_the_nearest_tier_that_has_both() -> None:
    assert capacities(TREE, 0, 1) == [200, 200]
    assert capacities(TREE, 0, 7) == [100, 200, 200, 100]  # ports, and the pairs' ways
    assert capacities(TREE, 0, 31) == [10, 80, 80, 10]  # ports of the network, and the nodes' ways
    assert capacities(TREE, 0, 32) == [10, 80, 80, 80, 80, 10]  # leaves of 32 ports at 4 : 1
    assert [TREE.latency_s(0, b) for b in (1, 2, 31, 127)] == [0.001, 0.01, 0.02, 0.05]


def test_a_path_and_the_path_back_have_no_link_in_common() -> None:
    for b in (1, 7, 31, 32, 127):
        assert not set(TREE.path(0, b)) & set(TREE.path(b, 0))


def test_flows_of_one_rank_to_two_tiers_share_a_port_only_where_the_tiers_do() -> None:
    assert TREE.path(0, 31)[0] == TREE.path(0, 32)[0]
    assert TREE.path(0, 1)[0] != TREE.path(0, 7)[0] != TREE.path(0, 31)[0]


def test_ranks_of_one_node_leave_by_one_way_and_of_two_by_two() -> None:
    assert TREE.path(0, 40)[1:5] == TREE.path(7, 41)[1:5]
    assert TREE.path(0, 40)[1] != TREE.path(8, 40)[1]
    assert TREE.path(0, 40)[2] == TREE.path(8, 40)[2]  # of one leaf
    assert TREE.path(0, 40)[4] == TREE.path(64, 44)[4]  # down into one node


def test_a_group_that_is_not_full_has_a_narrower_way() -> None:
    made = fabric([FabricPart(name="a", ranks=44, tiers=(PAIR, NODE, LEAF, SPINE))])
    assert capacities(made, 0, 43) == [
        10,
        80,
        80,
        30,
        40,
        10,
    ]  # leaves of 32 and 12, the last node has 4


def test_every_link_is_on_some_path_or_leads_between_parts() -> None:
    used = {link for a in range(128) for step in (1, 2, 8, 32) for link in TREE.path(a, a ^ step)}
    assert used == set(range(TREE.links - 2))


@given(st.data())
def test_many_paths_at_once_are_the_paths_one_by_one(data: st.DataObject) -> None:
    pairs = data.draw(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 127)).filter(lambda ab: ab[0] != ab[1]), min_size=1, max_size=20))  # fmt: skip
    a, b = np.array(pairs).T
    path_FW, latency_s = TREE.paths(a, b)
    for row, one_s, (x, y) in zip(path_FW, latency_s, pairs, strict=True):
        assert sorted(row[row != NO_LINK].tolist()) == sorted(TREE.path(x, y))
        assert one_s == TREE.latency_s(x, y)


def test_paths_of_ranks_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match=r"there is no rank 128: the fabric has 128"):
        TREE.path(0, 128)
    with pytest.raises(InputError, match=r"rank 3 sends to itself"):
        TREE.path(3, 3)
    with pytest.raises(InputError, match=r"rank 3 sends to itself"):
        TREE.paths(np.array([0, 3]), np.array([1, 3]))
    with pytest.raises(InputError, match=r"some of these pairs are not of 'a', whose ranks are 0 to 127"):  # fmt: skip
        TREE.paths(np.array([0]), np.array([128]))


def test_parts_of_a_fleet_meet_in_their_networks_and_the_narrower_decides() -> None:
    fast = FabricTier(name="net", ranks=None, bytes_per_s=50.0, latency_s=0.1)
    both = fabric([FabricPart(name="a", ranks=128, tiers=(PAIR, NODE, LEAF, SPINE)), FabricPart(name="b", ranks=4, tiers=(fast,))])  # fmt: skip
    assert capacities(both, 5, 130) == [10, 80, 80, 1280, 200, 50]
    assert capacities(both, 130, 5) == [50, 200, 1280, 80, 80, 10]
    assert not set(both.path(5, 130)) & set(both.path(130, 5))
    assert both.latency_s(5, 130) == 0.1
    assert capacities(both, 129, 130) == [50, 50]


def test_a_part_without_a_network_leads_nowhere() -> None:
    lone = fabric([FabricPart(name="a", ranks=2, tiers=(PAIR,)), FabricPart(name="b", ranks=2, tiers=(PAIR,))])  # fmt: skip
    with pytest.raises(
        InputError, match=r"no network bandwidth is on record between 'a' and other"
    ):
        lone.path(0, 2)
    island = fabric([FabricPart(name="a", ranks=4, tiers=(PAIR,))])
    with pytest.raises(InputError, match=r"no tier of 'a' on record joins ranks 0 and 2"):
        island.path(0, 2)


def test_a_tier_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"tier 'x': bytes_per_s=0"):
        FabricTier(name="x", ranks=2, bytes_per_s=0.0, latency_s=0.0)
    with pytest.raises(InputError, match=r"tier 'pair' joins fewer ranks than 'node' before it"):
        FabricPart(name="a", ranks=8, tiers=(NODE, PAIR))


def test_links_are_found_by_rank_and_tier() -> None:
    assert TREE.port(9, "leaf") == TREE.port(9, "spine") == (TREE.path(9, 31)[0], TREE.path(31, 9)[-1])  # fmt: skip
    assert TREE.way(9, "spine") == (TREE.path(9, 40)[2], TREE.path(40, 9)[3])
    with pytest.raises(InputError, match=r"'a' has no tier 'rack'; it has pair, node, leaf, spine"):
        TREE.port(0, "rack")
    with pytest.raises(InputError, match=r"ranks of 'a' enter 'pair' by their ports alone"):
        TREE.way(0, "pair")


def plan(fleet: str, world: int, replicas: int) -> Plan:
    pool = Pool(role="both", on="a", layout=Layout(tp=world), replicas=replicas, precision=Precision(weights="bf16", kv="bf16"), state="modelled")  # fmt: skip
    return Plan(polypod=1, fleet=parse_fleet(fleet), services=(Service(model="qwen3-8b", pools=(pool,)),))  # fmt: skip


def test_a_plans_fabric_has_the_catalogs_tiers() -> None:
    made, placed = fabric_of(plan("huawei-cm384+nvidia-h200-sxm:16", 16, 4))
    assert placed.first_rank_R.tolist() == [0, 16, 32, 48]
    assert made.ranks == 768 + 16
    assert capacities(made, 0, 1) == [270e9, 270e9]
    assert capacities(made, 0, 15) == [196e9, 392e9, 392e9, 196e9]
    assert made.path(0, 15)[0] == made.path(0, 16)[0]  # one port for node and supernode
    assert made.latency_s(0, 16) == 1.9e-6
    assert min(capacities(made, 0, 770)) == 25e9  # the RDMA plane of a die


def test_a_network_may_have_leaves_that_are_narrower_above_than_below() -> None:
    wide = Network(leaf_cards=32, leaf_blocking_ratio=3.0)
    made, _ = fabric_of(plan("nvidia-h200-sxm:128", 8, 2), wide)
    assert capacities(made, 0, 8) == [50e9, 400e9, 400e9, 50e9]
    assert capacities(made, 0, 32)[2:4] == [pytest.approx(32 * 50e9 / 3)] * 2
    narrow, _ = fabric_of(plan("nvidia-h200-sxm:128", 8, 2), Network(node_blocking_ratio=2.0))
    assert capacities(narrow, 0, 8)[1] == 200e9
    with pytest.raises(InputError, match=r"a leaf of 4 cards is less than 'a' joins before"):
        fabric_of(plan("nvidia-h200-sxm:128", 8, 2), Network(leaf_cards=4))


def test_a_cache_goes_from_every_rank_of_a_replica_evenly_to_another() -> None:
    pools = tuple(Pool(role=role, on="a", layout=Layout(tp=world), replicas=1, precision=Precision(weights="bf16", kv="bf16"), state="modelled", name=role) for role, world in (("prefill", 4), ("decode", 2)))  # fmt: skip
    two = Plan(polypod=1, fleet=parse_fleet("nvidia-h200-sxm:16"), services=(Service(model="qwen3-8b", pools=pools),))  # fmt: skip
    made, placed = fabric_of(two)
    assert handover(placed, 0, 1) == [(0, 4), (1, 4), (2, 5), (3, 5)]
    flows = Flows(made)
    for flow, (a, b) in enumerate(handover(placed, 0, 1)):
        flows.start(0.0, flow, made.path(a, b), 1e9)
    assert rates(flows, 4) == [225e9] * 4  # two into one port


def test_a_million_cards_are_a_few_arrays() -> None:
    made, _ = fabric_of(plan("nvidia-h200-sxm:1000000", 8, 125_000), Network(leaf_cards=256))
    assert made.ranks == 1_000_000
    assert len(made.path(0, 999_999)) == 6
    assert made.capacity_bytes_per_s_L.nbytes < 50e6


# ---- flows


def rates(flows: Flows, count: int) -> list[float]:
    return [flows.rate_bytes_per_s(flow) for flow in range(count)]


def test_a_flow_alone_has_its_narrowest_link_and_arrives_its_latency_later() -> None:
    flows = Flows(TREE)
    flows.start(1.0, 7, TREE.path(0, 40), 30.0, TREE.latency_s(0, 40))

    assert flows.rate_bytes_per_s(7) == 10.0
    assert flows.next_s == 4.0  # its links are free then
    assert flows.advance(4.04) == []
    assert flows.next_s == pytest.approx(4.05)
    assert [done.flow for done in flows.advance(5.0)] == [7]
    assert flows.next_s == math.inf


def test_what_one_flow_cannot_take_goes_to_the_others() -> None:
    """Bertsekas and Gallager's example: a long flow over two links, one of them shared by two more."""
    line = fabric([FabricPart(name="a", ranks=8, tiers=(FabricTier(name="s", ranks=None, bytes_per_s=1.0, latency_s=0.0),))])  # fmt: skip
    flows = Flows(line)
    for flow, (a, b) in enumerate([(0, 1), (0, 2), (0, 3), (4, 3)]):
        flows.start(0.0, flow, line.path(a, b), 10.0)

    assert rates(flows, 4) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3])
    near = Flows(line, "equal", 0.0)
    for flow, (a, b) in enumerate([(0, 1), (0, 2), (0, 3), (4, 3)]):
        near.start(0.0, flow, line.path(a, b), 10.0)
    assert rates(near, 4) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 2])  # wasteful, and said to be


def test_a_flow_that_ends_leaves_its_share_to_the_rest() -> None:
    flows = Flows(STAR)
    flows.start(0.0, 1, STAR.path(0, 1), 100.0)
    flows.start(0.0, 2, STAR.path(0, 2), 200.0)

    assert flows.advance(10.0) == [(2.0, 1), (3.0, 2)]


def test_a_degraded_link_slows_a_dead_one_stalls_and_a_whole_one_goes_on() -> None:
    flows = Flows(STAR)
    path = STAR.path(0, 1)
    flows.start(0.0, 1, path, 100.0)
    flows.set_factor(0.5, path[0], 0.5)
    assert flows.rate_bytes_per_s(1) == 50.0
    flows.set_factor(1.0, path[1], 0.0)
    assert (flows.rate_bytes_per_s(1), flows.next_s) == (0.0, math.inf)
    assert flows.advance(100.0) == []
    flows.set_factor(100.0, path[1], 1.0)
    assert flows.advance(200.0) == [(100.5, 1)]


def test_a_cancelled_flow_is_never_reported() -> None:
    flows = Flows(STAR)
    flows.start(0.0, 1, STAR.path(0, 1), 100.0)
    flows.start(0.0, 2, STAR.path(0, 2), 100.0)
    flows.cancel(1.0, 1)
    assert flows.advance(10.0) == [(1.5, 2)]


def test_what_cannot_be_is_refused() -> None:
    flows = Flows(STAR)
    flows.start(0.0, 1, STAR.path(0, 1), 100.0)
    with pytest.raises(InputError, match=r"flow 1 is under way already"):
        flows.start(0.0, 1, STAR.path(0, 2), 100.0)
    with pytest.raises(InputError, match=r"flow 2 has 2 links and 0 bytes"):
        flows.start(0.0, 2, STAR.path(0, 2), 0.0)
    with pytest.raises(InputError, match=r"a change at 2 s, but .* one ends at 1 s"):
        flows.start(2.0, 2, STAR.path(0, 2), 1.0)
    with pytest.raises(InputError, match=r"link 0 of \d+ at 2 of its capacity"):
        flows.set_factor(0.0, 0, 2.0)
    with pytest.raises(InputError, match=r"flow 9 is not under way"):
        flows.cancel(0.0, 9)


PAIRS = st.lists(st.tuples(st.integers(0, 127), st.integers(0, 127)).filter(lambda ab: ab[0] != ab[1]), min_size=1, max_size=25)  # fmt: skip


def started(pairs: list[tuple[int, int]], sharing: str = "max-min") -> Flows:
    flows = Flows(TREE, sharing, 0.0)  # type: ignore[arg-type]
    for flow, (a, b) in enumerate(pairs):
        flows.start(0.0, flow, TREE.path(a, b), 1000.0)
    return flows


def loads(pairs: list[tuple[int, int]], rate_F: list[float]) -> dict[int, float]:
    load: dict[int, float] = {}
    for (a, b), rate in zip(pairs, rate_F, strict=True):
        for link in TREE.path(a, b):
            load[link] = load.get(link, 0.0) + rate
    return load


@given(PAIRS)
def test_no_link_carries_more_than_it_can_by_either_rule(pairs: list[tuple[int, int]]) -> None:
    for sharing in ("max-min", "equal"):
        load = loads(pairs, rates(started(pairs, sharing), len(pairs)))
        for link, carried in load.items():
            assert carried <= TREE.capacity_bytes_per_s_L[link] * (1 + 1e-12)


@given(PAIRS)
def test_every_flow_has_a_full_link_on_which_no_flow_is_faster(pairs: list[tuple[int, int]]) -> None:  # fmt: skip
    """What makes an allocation max-min fair (Bertsekas and Gallager, section 6.5.2)."""
    rate_F = rates(started(pairs), len(pairs))
    load = loads(pairs, rate_F)
    fastest: dict[int, float] = {}
    for (a, b), rate in zip(pairs, rate_F, strict=True):
        for link in TREE.path(a, b):
            fastest[link] = max(fastest.get(link, 0.0), rate)
    for (a, b), rate in zip(pairs, rate_F, strict=True):
        assert any(
            load[link] >= TREE.capacity_bytes_per_s_L[link] * (1 - 1e-12)
            and rate >= fastest[link] * (1 - 1e-12)
            for link in TREE.path(a, b)
        )


@given(PAIRS)
def test_equal_shares_are_never_better_for_the_slowest(pairs: list[tuple[int, int]]) -> None:
    assert min(rates(started(pairs, "equal"), len(pairs))) <= min(rates(started(pairs), len(pairs))) * (1 + 1e-12)  # fmt: skip


@given(st.integers(1, 30))
def test_on_one_bottleneck_a_new_flow_speeds_nobody_up(count: int) -> None:
    pairs = [(0, 64 + n) for n in range(count + 1)]
    before, after = rates(started(pairs[:-1]), count), rates(started(pairs), count)
    assert all(new <= old for new, old in zip(after, before, strict=True))
    assert after == pytest.approx([10.0 / (count + 1)] * count)


def demand(seed: int, count: int, made: Fabric = TREE) -> Demand:
    random = np.random.default_rng(seed)
    a = random.integers(0, made.ranks, count)
    b = (a + random.integers(1, made.ranks, count)) % made.ranks
    path_FW, latency_s = made.paths(a, b)
    return Demand(
        at_s_F=random.uniform(0, 20, count), size_bytes_F=random.uniform(1, 100, count), path_FW=path_FW, latency_s_F=latency_s
    )  # fmt: skip


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_all_bytes_arrive_and_no_sooner_than_alone(seed: int) -> None:
    asked = demand(seed, 40)
    for sharing in ("max-min", "equal"):
        end_s = play_flows(Flows(TREE, sharing, 0.0), asked)  # type: ignore[arg-type]
        for flow in range(40):
            path = [link for link in asked.path_FW[flow] if link >= 0]
            alone_s = asked.size_bytes_F[flow] / TREE.capacity_bytes_per_s_L[path].min()
            least_s = asked.at_s_F[flow] + alone_s + asked.latency_s_F[flow]
            assert least_s * (1 - 1e-12) <= end_s[flow] < math.inf


def test_the_error_of_equal_shares_is_known() -> None:
    found = errors(Flows(TREE), Flows(TREE, "equal"), demand(1, 400))
    assert found.least_ratio <= found.p10_ratio <= found.median_ratio <= found.p90_ratio <= found.p99_ratio <= found.most_ratio  # fmt: skip
    assert 1.0 <= found.median_ratio < 1.5  # it wastes, so flows take longer
    same = errors(Flows(TREE), Flows(TREE), demand(1, 50))
    assert (same.least_ratio, same.most_ratio) == (1.0, 1.0)


# ---- compiled


@pytest.mark.parametrize("sharing", ["max-min", "equal"])
@pytest.mark.parametrize("tolerance", [0.0, 1 / 8])
def test_compiled_flows_are_the_plain_ones_to_the_last_bit(sharing: str, tolerance: float) -> None:
    kernels = pytest.importorskip("polypod.simulate.fabric_kernels", exc_type=ImportError)
    plain = Flows(TREE, sharing, tolerance)  # type: ignore[arg-type]
    compiled = kernels.CompiledFlows(TREE, sharing, tolerance)
    random = np.random.default_rng(5)
    under_way: set[int] = set()
    at_s = 0.0
    for flow in range(300):
        at_s += random.exponential(0.08)
        done = plain.advance(at_s)
        assert compiled.advance(at_s) == done
        under_way -= {one.flow for one in done}
        a, b = (int(one) for one in random.choice(128, 2, replace=False))
        size = float(random.integers(1, 100))
        for flows in (plain, compiled):
            flows.start(at_s, flow, TREE.path(a, b), size, TREE.latency_s(a, b))
        under_way.add(flow)
        if flow % 20 == 0:
            link, factor = int(random.integers(TREE.links - 2)), float(random.choice([0.0, 0.3, 1.0]))  # fmt: skip
            for flows in (plain, compiled):
                flows.set_factor(at_s, link, factor)
        if flow % 33 == 0:
            for flows in (plain, compiled):
                flows.cancel(at_s, flow)
            under_way.remove(flow)
        assert compiled.next_s == plain.next_s
        still = [one for one in sorted(under_way) if one in plain._flows]
        assert [compiled.rate_bytes_per_s(one) for one in still] == [plain.rate_bytes_per_s(one) for one in still]  # fmt: skip
    assert compiled.advance(math.inf) == plain.advance(math.inf)


@pytest.mark.parametrize("sharing", ["max-min", "equal"])
def test_a_compiled_loop_ends_as_the_plain_one_does(sharing: str) -> None:
    kernels = pytest.importorskip("polypod.simulate.fabric_kernels", exc_type=ImportError)
    asked = demand(3, 200)
    plain = play_flows(Flows(TREE, sharing), asked)  # type: ignore[arg-type]
    assert kernels.play_compiled(TREE, asked, sharing).tolist() == plain.tolist()


def test_compiled_paths_are_the_plain_ones() -> None:
    kernels = pytest.importorskip("polypod.simulate.fabric_kernels", exc_type=ImportError)
    fast = FabricTier(name="net", ranks=None, bytes_per_s=50.0, latency_s=0.1)
    made = fabric([
        FabricPart(name="a", ranks=64, tiers=(PAIR, NODE, LEAF, SPINE)),
        FabricPart(name="b", ranks=16, tiers=(NODE, fast)),
        FabricPart(name="c", ranks=4, tiers=(PAIR,)),
    ])  # fmt: skip
    room = np.zeros(made.wiring.width, dtype=np.int64)
    for a in range(0, 84, 3):
        for b in range(84):
            length = kernels.path_into(made.wiring, a, b, room)
            try:
                expected = list(made.path(a, b))
            except InputError:
                expected = []
            assert room[:length].tolist() == expected
