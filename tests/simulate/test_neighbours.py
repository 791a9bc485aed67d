"""What neighbours' exchanges cost: against a pod worked by hand, and laws."""

import msgspec
import pytest

from polypod.cost.deployment import Precision
from polypod.errors import InputError
from polypod.plan.place import parse_fleet
from polypod.plan.spec import Plan, Pool, Service, Traffic
from polypod.simulate.exchange_share import batch_of, deployment_of, exchange_share
from polypod.simulate.fabric import Network, fabric_of
from polypod.simulate.neighbours import slowdowns
from polypod.workload.layout import Layout


def plan(replicas: int, layout: Layout, blocking: float | None = None, model: str = "qwen3-30b-a3b", cards: int = 96) -> Plan:  # fmt: skip
    source = parse_fleet(f"nvidia-h200-sxm:{cards}")["a"]
    pool = Pool(role="both", on="a", layout=layout, replicas=replicas, precision=Precision(weights="bf16", kv="bf16"), state="modelled", max_sequences=64 * layout.dp)  # fmt: skip
    service = Service(model=model, pools=(pool,), traffic=Traffic(input=1000, output=200))
    return Plan(polypod=1, fleet={"a": msgspec.structs.replace(source, blocking_ratio=blocking)}, services=(service,))  # fmt: skip


def share(of: Plan, within: int) -> float:
    """Of the first pool's step, what leaves so many ranks."""
    _, placed = fabric_of(of)
    service = of.services[0]
    place = placed.parts[0].place
    assert place is not None
    deployment = deployment_of(service, service.pools[0], place)
    return exchange_share(deployment, within, *batch_of(service, service.pools[0], ""))


EXPERTS = Layout(dp=32, ep=32)


def slowed(of: Plan, network: Network | None) -> dict[str, float]:
    return slowdowns(of, *fabric_of(of, network))


def test_two_replicas_over_one_leafs_narrow_way_slow_each_other():
    """Leaves of 24, way of 24 * 50 / 2 = 600 GB/s; replicas on ranks 0-31 and 32-63, so that 8 of the first and 16 of the second are in the middle leaf.

    Out of it go 8 * 24 flows of the first and 16 * 16 of the second: 600 / 448 GB/s each. Alone, where nothing blocks, a port of 50 GB/s has 24 flows out of its
    node of eight: (448 / 600) / (24 / 50) = 14 / 9 times as long.
    """
    two = plan(2, EXPERTS)
    found = slowed(two, Network(leaf_cards=24, leaf_blocking_ratio=2.0))
    expected = 1 + share(two, 24) * (14 / 9 - 1)
    assert expected > 1.01
    assert found == pytest.approx({"pool0.0-0": expected, "pool0.0-1": expected}, rel=1e-6)


def test_one_of_them_alone_has_the_way_to_itself():
    """192 flows over 600 GB/s are 3.1 each, and a port has 50 / 24."""
    assert slowed(plan(1, EXPERTS), Network(leaf_cards=24, leaf_blocking_ratio=2.0)) == {}


def test_a_replica_that_leaves_its_own_node_may_fill_its_narrow_way_alone():
    """Rings in two nodes, then between them: 7/4 B at 450 GB/s, and B / 8 at 50, or at 25 where a node's way is half its ports."""
    one = plan(2, Layout(tp=16), model="qwen3-8b")
    inside, between = 2 * 7 / 8 / 450, 2 / 2 / 8 / 50
    factor = (inside + 2 * between) / (inside + between)
    expected = 1 + share(one, 8) * (factor - 1)
    found = slowed(one, Network(node_blocking_ratio=2.0))
    assert found == pytest.approx({"pool0.0-0": expected, "pool0.0-1": expected}, rel=1e-6)


def test_what_the_plan_was_charged_for_slows_nobody():
    layout = Layout(tp=16)
    assert slowed(plan(2, layout, 2.0, "qwen3-8b"), None) == {}
    assert slowed(plan(2, layout, 2.0, "qwen3-8b"), Network(node_blocking_ratio=2.0)) == {}


def test_more_than_was_charged_for_slows_by_the_rest():
    """Priced at 25 GB/s between nodes, and there are 50 / 8 for each of eight at once."""
    one = plan(2, Layout(tp=16), 2.0, "qwen3-8b")
    inside, between = 2 * 7 / 8 / 450, 2 / 2 / 8 / 50
    expected = 1 + share(one, 8) * ((inside + 8 * between) / (inside + 2 * between) - 1)
    found = slowed(one, Network(node_blocking_ratio=8.0))
    assert found == pytest.approx({"pool0.0-0": expected, "pool0.0-1": expected}, rel=1e-6)


def test_replicas_within_a_node_are_not_slowed():
    assert slowed(plan(8, Layout(tp=8), model="qwen3-8b"), Network(node_blocking_ratio=8.0)) == {}


def test_more_blocking_is_never_faster():
    one = plan(2, EXPERTS)
    found = [slowed(one, Network(leaf_cards=24, leaf_blocking_ratio=ratio)).get("pool0.0-0", 1.0) for ratio in (1.0, 1.5, 2.0, 4.0)]  # fmt: skip
    assert found == sorted(found)
    assert found[0] == 1.0 < found[-1]


def test_replicas_that_lie_alike_are_slowed_alike():
    """Every third leaf the pattern begins anew: leaves of 24, replicas of 32, 96 cards."""
    six = slowed(plan(6, EXPERTS, cards=192), Network(leaf_cards=24, leaf_blocking_ratio=2.0))
    three = slowed(plan(3, EXPERTS), Network(leaf_cards=24, leaf_blocking_ratio=2.0))
    assert [six[f"pool0.0-{n}"] for n in range(3)] == [six[f"pool0.0-{n}"] for n in range(3, 6)]
    assert {name: six[name] for name in three} == three


def test_without_traffic_nothing_says_what_is_exchange():
    one = plan(2, Layout(tp=16), model="qwen3-8b")
    mute = msgspec.structs.replace(one, services=(msgspec.structs.replace(one.services[0], traffic=None),))  # fmt: skip
    with pytest.raises(InputError, match=r"has no traffic.* leave --network's blocking ratios out"):
        slowed(mute, Network(node_blocking_ratio=2.0))
