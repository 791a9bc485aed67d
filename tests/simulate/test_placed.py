"""Replicas on cards: every rank once, none across two instances of the tier that holds it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.errors import InputError
from polypod.plan.place import island, parse_fleet
from polypod.plan.search import whole_replicas
from polypod.plan.spec import Plan, Pool, Service, Source
from polypod.simulate.placed import LEVELS, Placed, placement
from polypod.workload.layout import Layout
from polypod.workload.precision import Precision


def plan_on(fleet: str | dict[str, Source], *pools: tuple[str, int, int]) -> Plan:
    """Pools as (part, ranks a replica, replicas)."""
    made = tuple(
        Pool(role="both", on=on, layout=Layout(tp=world), replicas=count, precision=Precision(weights="bf16", kv="bf16"), state="modelled", name=f"p{n}")
        for n, (on, world, count) in enumerate(pools)
    )  # fmt: skip
    sources = parse_fleet(fleet) if isinstance(fleet, str) else fleet
    return Plan(polypod=1, fleet=sources, services=(Service(model="qwen3-8b", pools=made),))


def held(placed: Placed) -> np.ndarray:
    """How often each rank of the fleet is taken."""
    times = np.zeros(placed.ranks, dtype=int)
    for first, count in zip(placed.first_rank_R, placed.ranks_R, strict=True):
        times[first : first + count] += 1
    return times


def test_pools_fill_nodes_in_the_order_of_the_plan() -> None:
    placed = placement(plan_on("nvidia-h200-sxm:24", ("a", 1, 3), ("a", 8, 2), ("a", 2, 2)))

    assert placed.replicas == ("p0-0", "p0-1", "p0-2", "p1-0", "p1-1", "p2-0", "p2-1")
    assert placed.first_card_R.tolist() == [0, 1, 2, 8, 16, 4, 6]
    assert placed.cards_R.tolist() == [1, 1, 1, 8, 8, 2, 2]
    assert placed.notes == ()


def test_two_dies_of_one_package_are_one_card() -> None:
    placed = placement(plan_on("huawei-cm384", ("a", 1, 3), ("a", 16, 1)))

    assert placed.first_rank_R.tolist() == [0, 1, 2, 16]
    assert placed.first_card_R.tolist() == [0, 0, 1, 8]
    assert placed.cards_R.tolist() == [1, 1, 1, 8]
    assert (placed.cards, placed.ranks) == (384, 768)


def test_parts_of_a_fleet_are_numbered_one_after_the_other() -> None:
    plan = plan_on("huawei-cm384:16+nvidia-h200-sxm:16", ("b", 8, 2), ("a", 16, 1))
    placed = placement(plan)

    assert placed.part_R.tolist() == [1, 1, 0]
    assert placed.first_rank_R.tolist() == [32, 40, 0]
    assert placed.first_card_R.tolist() == [16, 24, 0]
    assert placed.instances_C("node").tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8
    assert list(placed.cards_of("node", 2)) == list(range(16, 24))
    assert placed.replicas_on(placed.cards_of("node", 2)).tolist() == [0]
    assert placed.replicas_on(range(15, 17)).tolist() == [0]
    assert placed.replicas_on(range(7, 8)).tolist() == [2]


def test_a_rack_of_640_holds_one_replica_of_512_and_its_rest_takes_smaller_ones() -> None:
    placed = placement(plan_on("sugon-scalex-10k", ("a", 512, 16), ("a", 128, 16)))

    assert placed.first_card_R.tolist() == [640 * n for n in range(16)] + [640 * n + 512 for n in range(16)]  # fmt: skip
    assert placed.notes == ()
    assert (held(placed) == 1).all()
    assert placed.parts[0].size("rack") == 640
    assert placed.replicas_on(placed.cards_of("rack", 3)).tolist() == [3, 19]


def test_replicas_that_must_lie_in_two_racks_are_said_to() -> None:
    placed = placement(plan_on("sugon-scalex-10k", ("a", 512, 17)))

    assert placed.first_card_R[:3].tolist() == [0, 512, 1024]
    assert "17 replicas of 512 ranks" in placed.notes[0]
    assert "$.services[0].pools[0]" in placed.notes[0]


@given(
    st.sampled_from(["nvidia-h200-sxm:64", "huawei-cm384:64", "sugon-scalex640"]),
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 8, 16, 24]), st.integers(1, 6)), min_size=1, max_size=4),
)  # fmt: skip
def test_no_rank_is_taken_twice_and_every_replica_is_inside_its_part(
    fleet: str, pools: list[tuple[int, int]]
) -> None:
    plan = plan_on(fleet, *(("a", world, count) for world, count in pools))
    try:
        placed = placement(plan)
    except InputError as error:
        assert "do not fit" in str(error)  # noqa: PT017
        return
    assert held(placed).max() == 1
    assert held(placed).sum() == sum(world * count for world, count in pools)
    assert placed.first_card_R.min() >= 0
    assert (placed.first_card_R + placed.cards_R).max() <= placed.cards


@given(st.sampled_from(["nvidia-h200-sxm:20", "huawei-cm384", "sugon-scalex-10k", "nvidia-gb200-nvl72"]), st.integers(1, 80))  # fmt: skip
def test_as_many_whole_replicas_fit_as_the_planner_counts(fleet: str, world: int) -> None:
    where = island("a", parse_fleet(fleet)["a"])
    most = whole_replicas(where, world) if world <= where.ranks else 0
    if most:
        assert placement(plan_on(fleet, ("a", world, most))).notes == ()


def test_too_many_replicas_are_refused() -> None:
    with pytest.raises(InputError, match=r"2 replicas of 8 ranks do not fit 'a': of its 16 ranks 8 are taken .* leaves 1; use fewer replicas - at `\$\.services\[0\]\.pools\[1\]\.replicas`"):  # fmt: skip
        placement(plan_on("nvidia-h200-sxm:16", ("a", 8, 1), ("a", 8, 2)))


def test_a_replica_wider_than_its_part_is_refused() -> None:
    with pytest.raises(InputError, match=r"1 replicas of 32 ranks do not fit 'a'"):
        placement(plan_on("nvidia-h200-sxm:16", ("a", 32, 1)))


def test_replicas_of_a_host_share_it() -> None:
    fleet = {"h": Source(host="this", cores=(0, 1)), **parse_fleet("nvidia-h200-sxm:8")}
    placed = placement(plan_on(fleet, ("h", 1, 2), ("a", 8, 1)))

    assert placed.first_card_R.tolist() == [0, 0, 1]
    assert placed.instances_C("island").tolist() == [0] + [1] * 8
    with pytest.raises(InputError, match=r"2 ranks a replica on the host 'h', which is one"):
        placement(plan_on(fleet, ("h", 2, 1)))


def test_a_size_no_tier_says_is_assumed_in_words_or_said() -> None:
    plan = plan_on("huawei-cm384", ("a", 16, 1))
    assumed = placement(plan).parts[0]
    said = placement(plan, node_cards=4, rack_cards=24).parts[0]

    assert [assumed.size(level) for level in LEVELS] == [1, 8, 32, 384]
    assert assumed.assumed == ("a rack of huawei-ascend-910c is taken to have 32 cards, 4 nodes, which no tier in the catalog says",)  # fmt: skip
    assert [said.size(level) for level in LEVELS] == [1, 4, 24, 384]
    assert said.assumed == ()


def test_a_rack_is_the_tier_that_is_called_one() -> None:
    nvl72 = placement(plan_on("nvidia-gb200-nvl72", ("a", 4, 1)))
    atlas = placement(plan_on("huawei-atlas950", ("a", 8, 1)))

    assert [nvl72.parts[0].size(level) for level in LEVELS] == [1, 4, 72, 72]
    assert atlas.parts[0].size("rack") == 64
    assert (atlas.instances_C("rack") == np.arange(8192) // 64).all()


def test_there_is_no_instance_past_the_last() -> None:
    placed = placement(plan_on("nvidia-h200-sxm:12", ("a", 1, 1)))

    assert list(placed.cards_of("node", 1)) == [8, 9, 10, 11]
    with pytest.raises(InputError, match=r"there is no node 2: the fleet has 2, numbered from 0"):
        placed.cards_of("node", 2)
