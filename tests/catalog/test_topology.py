from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.catalog.load import listing, load_accelerator, load_pod
from polypod.catalog.topology import Topology, loose_topology, topology
from polypod.errors import InputError

ALL_PODS = [load_pod(entry.id) for entry in listing() if entry.kind == "pod"]
PODS = [pod.id for pod in ALL_PODS if pod.accelerator is not None]
SUPERNODE = topology(load_pod("huawei-cm384"))


@pytest.mark.parametrize("pod", PODS)
def test_tiers_join_more_ranks_and_get_no_faster_outwards(pod: str):
    for near, far in pairwise(topology(load_pod(pod)).links):
        assert near.ranks is not None
        assert far.ranks is None or far.ranks >= near.ranks
        if near.bytes_per_s is not None and far.bytes_per_s is not None:
            assert far.bytes_per_s <= near.bytes_per_s


@pytest.mark.parametrize("pod", PODS)
def test_every_rank_of_a_pod_reaches_every_other(pod: str):
    tiers = topology(load_pod(pod))

    assert 0 <= tiers.spanning(tiers.ranks) < len(tiers.links)


@given(st.integers(1, 96), st.integers(1, 8))
def test_more_ranks_or_a_wider_stride_never_come_nearer(ranks: int, stride: int):
    here = SUPERNODE.spanning(ranks, stride)

    assert SUPERNODE.spanning(min(ranks + 1, 96), stride) >= here
    assert SUPERNODE.spanning(ranks, max(stride - 1, 1)) <= here


@pytest.mark.parametrize(
    ("ranks", "stride", "name"),
    [
        (1, 1, "die pair"),
        (2, 1, "die pair"),
        (3, 1, "node, UB"),
        (16, 1, "node, UB"),
        (8, 2, "node, UB"),
        (17, 1, "supernode, UB"),
        (2, 16, "supernode, UB"),
        (768, 1, "supernode, UB"),
    ],
)
def test_a_group_takes_the_nearest_tier_that_holds_it(ranks: int, stride: int, name: str):
    assert SUPERNODE.links[SUPERNODE.spanning(ranks, stride)].name == name


def test_past_the_rack_of_a_cluster_lies_the_scale_out_fabric():
    cluster = topology(load_pod("sugon-scalex-10k"))

    assert [cluster.spanning(640), cluster.spanning(641)] == [0, 1]
    assert cluster.links[1].bandwidth_kind == "estimated"
    assert (cluster.links[0].latency_s, cluster.links[0].latency_kind) == (None, None)


def test_more_ranks_than_there_are_is_an_error():
    with pytest.raises(InputError, match=r"769 ranks 1 apart span 769, there are 768"):
        SUPERNODE.spanning(769)


@pytest.mark.parametrize(("ranks", "stride"), [(0, 1), (1, 0), (-3, 1)])
def test_a_group_of_no_ranks_is_an_error(ranks: int, stride: int):
    with pytest.raises(InputError, match="at least 1"):
        SUPERNODE.spanning(ranks, stride)


def test_loose_chips_take_the_fabric_of_their_usual_pod():
    loose = loose_topology("h200", 4)

    assert loose.ranks == 4
    assert loose.links == topology(load_pod("nvidia-hgx-h200")).links


def test_chips_without_a_pod_take_their_own_fabric():
    links = loose_topology("nvidia-a800-80g-sxm", 64).links

    assert [(link.name, link.ranks, link.bytes_per_s) for link in links] == [("NVLink3", 8, 200e9)]


@pytest.mark.parametrize(("chip", "bytes_per_s"), [("nvidia-h800-sxm", 50e9), ("nvidia-h20", 25e9)])
def test_the_china_variants_of_hopper_reach_across_nodes(chip: str, bytes_per_s: float):
    # eight and four ports of 400 Gb/s to a server, https://lmsys.org/blog/2025-09-26-sglang-ant-group/
    near, far = loose_topology(chip, 64).links

    assert near.ranks == 8
    assert (far.ranks, far.bytes_per_s) == (None, bytes_per_s)


def test_a_pod_that_says_no_speed_leaves_its_chips_their_own_fabric():
    # the C256 does not say how fast its cards are joined; the card does
    links = loose_topology("mthreads-s5000", 8).links

    assert [(link.ranks, link.bytes_per_s) for link in links] == [(8, 392e9)]


def test_a_package_of_two_dies_shares_its_own_fabric(monkeypatch: pytest.MonkeyPatch):
    twin = msgspec.structs.replace(load_accelerator("nvidia-a800-80g-sxm"), ranks=2)
    monkeypatch.setattr("polypod.catalog.topology.load_accelerator", lambda _: twin)

    tier = loose_topology("nvidia-a800-80g-sxm", 1).links[0]

    assert (tier.ranks, tier.bytes_per_s) == (16, 100e9)


def test_a_fabric_of_unknown_speed_is_still_a_fabric():
    # the number of ports of a P800 is not published
    links = loose_topology("kunlun-p800", 8).links

    assert [(link.ranks, link.bytes_per_s) for link in links] == [(64, None)]


def test_a_pod_of_an_undisclosed_accelerator_cannot_be_planned_on():
    with pytest.raises(
        InputError, match=r"inspur-sd200 is 64 accelerators .* missing: accelerator"
    ):
        topology(load_pod("inspur-sd200"))


def test_one_chip_alone_has_its_dies():
    assert loose_topology("910c", 1).spanning(2) == 0


def test_a_chip_that_no_pod_holds_stands_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("polypod.catalog.topology.accelerators_pod", lambda _: None)

    assert loose_topology("h200", 1).spanning(1) == 0
    with pytest.raises(InputError, match="no pod in the catalog says how nvidia-h200-sxm"):
        loose_topology("h200", 2)


def test_a_fabric_that_ends_before_the_ranks_do_is_an_error():
    short = Topology(ranks=32, links=SUPERNODE.links[:2])

    with pytest.raises(InputError, match="no tier on record joins 32 ranks; the widest joins 16"):
        short.spanning(32)


def test_tiers_out_of_order_are_refused():
    pod = load_pod("huawei-cm384")
    turned = msgspec.structs.replace(pod, tiers=pod.tiers[::-1])

    with pytest.raises(InputError, match="list tiers nearest first"):
        topology(turned)
