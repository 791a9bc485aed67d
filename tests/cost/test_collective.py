"""Collectives: laws, and published numbers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.cost.collective import (
    Link,
    MeasuredLink,
    Pattern,
    collective_time,
    measured_time,
    members_per_tier,
    sent_once,
)

BOARD = Link(ranks=8, bytes_per_s=450e9, latency_s=1e-6)
FABRIC = Link(ranks=None, bytes_per_s=50e9, latency_s=5e-6)
LINKS = [BOARD, FABRIC]
sizes = st.floats(1, 1e10)
ranks_of = st.integers(2, 512)
patterns: st.SearchStrategy[Pattern] = st.sampled_from(
    ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]
)


@given(sizes, ranks_of)
def test_all_reduce_is_reduce_scatter_then_all_gather(size: float, ranks: int) -> None:
    whole = collective_time("all_reduce", size, ranks=ranks, links=LINKS)
    halves = [
        collective_time(p, size, ranks=ranks, links=LINKS) for p in ("reduce_scatter", "all_gather")
    ]
    assert whole.transfer_s == pytest.approx(sum(h.transfer_s for h in halves))
    assert whole.latency_s == pytest.approx(sum(h.latency_s for h in halves))


@given(patterns, sizes)
def test_one_rank_talks_to_nobody(pattern: Pattern, size: float) -> None:
    assert collective_time(pattern, size, ranks=1, links=LINKS, launch_s=1.0).total_s == 0


@given(patterns, sizes, ranks_of)
def test_a_wider_link_is_never_slower(pattern: Pattern, size: float, ranks: int) -> None:
    wide = [BOARD, Link(ranks=None, bytes_per_s=100e9, latency_s=5e-6)]
    slow, fast = (
        collective_time(pattern, size, ranks=ranks, links=links).total_s for links in (LINKS, wide)
    )
    assert fast <= slow


@given(patterns, sizes)
def test_a_group_that_leaves_the_board_is_never_faster(pattern: Pattern, size: float) -> None:
    inside = collective_time(pattern, size, ranks=8, links=LINKS).total_s
    spread = collective_time(pattern, size, ranks=8, links=LINKS, stride=8).total_s
    assert inside <= spread


def test_a_large_nccl_all_reduce_on_eight_h100_comes_within_a_fifth() -> None:
    # 2^28 halves = 537 MB took 2.04 ms on H200 (aiconfigurator-core 0.12.0, nccl 2.29.2): 461 GB/s of bus bandwidth,
    # above the 450 GB/s port because NVLink SHARP adds in the switch. At 0.75 of the port the ring is slower.
    time = collective_time("all_reduce", 2 * 2**28, ranks=8, links=[BOARD])
    assert float(time.total_s) == pytest.approx(2.04e-3, rel=0.2)


def test_expert_dispatch_on_cloudmatrix_comes_within_its_published_range() -> None:
    # arXiv 2506.12708: 128 tokens a die, 8 experts each, 7.5 KB a token, EP8: 116 us at 71 GB/s
    port = Link(ranks=16, bytes_per_s=71e9, latency_s=1.2e-6)
    time = collective_time("all_to_all", 128 * 8 * 7500, ranks=8, links=[port])
    assert float(time.total_s) == pytest.approx(116e-6, rel=0.25)


def test_an_all_to_all_over_two_tiers_waits_for_the_slower_port() -> None:
    # 16 ranks, 2 boards: 8/16 of the data crosses the fabric, 7/16 the board's links
    time = collective_time("all_to_all", 16e6, ranks=16, links=LINKS)
    assert time.transfer_s == pytest.approx(8e6 / 50e9)
    assert time.latency_s == pytest.approx(6e-6)


def test_tiers_that_leave_by_one_port_add_up() -> None:
    """DeepEP on Ascend dispatches at 107 GB/s a die among 16 of a node and at 102 among 32: two nodes bring no second port."""
    node = Link(ranks=16, bytes_per_s=107e9, latency_s=1e-6)
    far = Link(ranks=768, bytes_per_s=107e9, latency_s=1e-6, shares_port=True)
    time = collective_time("all_to_all", 32e6, ranks=32, links=[node, far])
    assert time.transfer_s == pytest.approx(31e6 / 107e9)
    apart = collective_time(
        "all_to_all", 32e6, ranks=32, links=[node, replace(far, shares_port=False)]
    )
    assert apart.transfer_s == pytest.approx(16e6 / 107e9)
    # a port of its own beyond those two runs beside them
    network = Link(ranks=None, bytes_per_s=1e12, latency_s=1e-6)
    wide = collective_time("all_to_all", 1536e6, ranks=1536, links=[node, far, network])
    assert wide.transfer_s == pytest.approx(767e6 / 107e9)


def test_a_group_larger_than_the_links_is_refused() -> None:
    with pytest.raises(ValueError, match="16 ranks 1 apart do not fit"):
        collective_time("send", 1.0, ranks=16, links=[BOARD])


def test_a_stride_spreads_a_group_over_boards() -> None:
    assert members_per_tier(8, LINKS, stride=2) == [4, 8]
    assert members_per_tier(8, LINKS, stride=16) == [1, 8]


def test_a_send_takes_the_nearest_tier_that_joins_both() -> None:
    near = collective_time("send", 450e6, ranks=2, links=LINKS)
    far = collective_time("send", 450e6, ranks=2, links=LINKS, stride=8)
    assert near.transfer_s == pytest.approx(1e-3)
    assert far.transfer_s == pytest.approx(9e-3)


NCCL = MeasuredLink(launch_s=15e-6, bytes_per_s=240e9, ramp_s=2e-6, overlap=1.5)
OWN = MeasuredLink(launch_s=4e-6, bytes_per_s=150e9, ramp_s=1e-6, overlap=2.0, limit_bytes=2.0**20)


@given(
    st.floats(0, 1e10),
    st.floats(1, 10),
    st.sampled_from([2, 4, 8, 72]),
    st.sampled_from([[NCCL], [OWN, NCCL]]),
)
def test_measured_collectives_never_get_faster_by_being_larger(
    size_bytes: float, times: float, ranks: int, curves: list[MeasuredLink]
) -> None:
    small, large = (
        float(measured_time("all_reduce", one, ranks=ranks, curves=curves).total_s)
        for one in (size_bytes, size_bytes * times)
    )
    assert small <= large * (1 + 1e-12)


def test_an_engines_own_all_reduce_wins_small_messages_and_leaves_large_ones_to_nccl() -> None:
    sizes = np.array([1024.0, 2.0**20, 2.0**28])
    both = measured_time("all_reduce", sizes, ranks=8, curves=[OWN, NCCL]).total_s
    nccl = measured_time("all_reduce", sizes, ranks=8, curves=[NCCL]).total_s
    own = measured_time("all_reduce", sizes[:2], ranks=8, curves=[OWN]).total_s
    assert both[:2] == pytest.approx(own)
    assert np.all(own < nccl[:2])
    assert both[2] == pytest.approx(nccl[2])


def test_a_measured_collective_of_one_rank_takes_nothing() -> None:
    assert measured_time("all_reduce", 1e6, ranks=1, curves=[NCCL]).total_s == 0


def test_a_measured_collective_follows_its_formula() -> None:
    # 1 GiB: 7/8 of it at 240 GB/s is 3.915 ms, the ramp 2 us * 128 is 0.256 ms; their 1.5-norm is 3.958 ms
    time = measured_time("all_gather", 2.0**30, ranks=8, curves=[NCCL])
    assert time.latency_s == 15e-6
    assert float(time.transfer_s) == pytest.approx(
        (3.9147e-3**1.5 + 0.256e-3**1.5) ** (1 / 1.5), rel=1e-3
    )


def test_a_message_past_the_limit_is_left_to_kernels_without_one() -> None:
    own = MeasuredLink(launch_s=1e-6, bytes_per_s=1e9, ramp_s=0.0, overlap=1.0, limit_bytes=65536.0)
    nccl = MeasuredLink(launch_s=20e-6, bytes_per_s=1e9, ramp_s=0.0, overlap=1.0)
    at_s, past_s = (
        float(measured_time("all_reduce", size, ranks=2, curves=[own, nccl]).total_s)
        for size in (65536.0, 65537.0)
    )
    assert at_s == pytest.approx(33.8e-6, rel=0.01)
    assert past_s == pytest.approx(52.8e-6, rel=0.01)


def test_a_token_for_several_ranks_of_a_node_crosses_once():
    """DeepEP's normal kernels: eight experts on four nodes of eight ranks reach 3.6 nodes, and 8 x 3/4 messages become 2.7."""
    node = Link(ranks=8, bytes_per_s=450e9, latency_s=0.0)
    fabric = Link(ranks=None, bytes_per_s=50e9, latency_s=0.0)
    each, once = (
        collective_time("all_to_all", 1e9, ranks=32, links=[node, fabric], copies=copies).transfer_s
        for copies in (1.0, 8.0)
    )
    assert each == pytest.approx(1e9 * 24 / 32 / 50e9)
    assert once / each == pytest.approx(4 * (1 - 0.75**8) / 8)


def test_within_a_node_every_copy_is_sent():
    node = Link(ranks=8, bytes_per_s=450e9, latency_s=0.0)
    each, once = (
        collective_time("all_to_all", 1e9, ranks=8, links=[node], copies=copies).transfer_s
        for copies in (1.0, 8.0)
    )
    assert each == once


@pytest.mark.parametrize("nodes", [2, 4, 16, 64])
def test_more_copies_share_a_crossing_the_more(nodes: int):
    shares = [float(sent_once(copies, nodes)) for copies in (1, 2, 4, 8)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(1.0)
    assert all(share * copies <= nodes for share, copies in zip(shares, (1, 2, 4, 8), strict=True))
