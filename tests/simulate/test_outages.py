"""Failures become outages: by hand on a small pod, and compiled as plain."""

import numpy as np
import pytest
from numpy.typing import NDArray

from polypod.simulate.outages import Breaks, Help, Outages, Seats, compiled, reach, walk

H = 3600.0


def seats(cards_each: int, count: int, *, load_s: float = 0.0, apart: bool = False) -> Seats:
    """Replicas next to each other."""
    first = np.arange(count) * cards_each
    return Seats(first, first + cards_each, np.full(count, apart), np.full(count, load_s))


def breaks(seated: Seats, rows: list[dict[str, float]]) -> Breaks:
    """Rows of at, cards (first, end), repair, and what differs."""

    def column(name: str, otherwise: float, kind: type) -> NDArray:
        return np.array([row.get(name, otherwise) for row in rows], dtype=kind)

    first, end = column("first", 0, np.int64), column("end", 1, np.int64)
    begin_F, end_F = reach(seated, first, end)
    return Breaks(
        column("at", 0.0, np.float64), column("notice", 0.0, np.float64), column("repair", H, np.float64),
        begin_F, end_F, first, end, column("part", True, np.bool_), column("link", False, np.bool_),
        column("shared", False, np.bool_),
    )  # fmt: skip


def told(found: Outages) -> list[tuple[int, float, float]]:
    return list(zip(found.replica_N.tolist(), found.start_s_N.tolist(), found.end_s_N.tolist(), strict=True))  # fmt: skip


FOUR_OF_TWO = seats(2, 4)  # cards 0-7, four to a node


def test_a_card_takes_its_replica_a_node_all_replicas_on_it_and_nothing_else():
    card, node = {"at": 10.0, "first": 3, "end": 4}, {"at": 2 * H, "first": 4, "end": 8}
    found = walk(breaks(FOUR_OF_TWO, [card, node]), FOUR_OF_TWO, Help(0, 0, 0.0))

    assert told(found) == [(1, 10.0, 10.0 + H), (2, 2 * H, 3 * H), (3, 2 * H, 3 * H)]
    assert found.repaired_s_F.tolist() == [10.0 + H, 3 * H]


def test_what_is_down_does_not_break_further_but_can_stay_down_longer():
    rows = [{"at": 0.0, "first": 0}, {"at": 60.0, "first": 1, "end": 2, "repair": 9 * H}, {"at": 120.0, "end": 4, "repair": 5 * H}]  # fmt: skip
    found = walk(breaks(FOUR_OF_TWO, rows), FOUR_OF_TWO, Help(0, 0, 0.0))

    late = 120.0 + 5 * H
    assert told(found) == [(0, 0.0, H), (0, H, late), (1, 120.0, late)]
    assert np.isnan(found.repaired_s_F).tolist() == [False, True, False]


def test_a_spare_stands_in_after_failover_and_loading_and_the_repaired_card_is_the_next_spare():
    seated = seats(2, 4, load_s=7.0)
    rows = [{"at": 0.0}, {"at": 100.0, "first": 2, "end": 3}, {"at": 2 * H, "first": 4, "end": 5}]
    found = walk(breaks(seated, rows), seated, Help(1, 0, 30.0))

    assert told(found) == [(0, 0.0, 37.0), (1, 100.0, H + 37.0), (2, 2 * H, 2 * H + 37.0)]
    assert found.by_spare_N.tolist() == [True, True, True]


def test_spares_that_are_too_few_for_what_a_replica_lost_stay_where_they_are():
    rows = [{"at": 0.0, "end": 2}, {"at": 5.0, "first": 2, "end": 3}]
    found = walk(breaks(FOUR_OF_TWO, rows), FOUR_OF_TWO, Help(1, 0, 30.0))

    assert told(found) == [(0, 0.0, H), (1, 5.0, 35.0)]


def test_a_crew_repairs_one_after_another_and_restarts_need_none():
    rows = [{"at": 0.0}, {"at": 1.0, "first": 2, "end": 3}, {"at": 2.0, "first": 4, "end": 5, "part": False}]  # fmt: skip
    found = walk(breaks(FOUR_OF_TWO, rows), FOUR_OF_TWO, Help(0, 1, 0.0))

    assert told(found) == [(0, 0.0, H), (1, 1.0, 2 * H), (2, 2.0, 2.0 + H)]


def test_a_hang_is_repaired_from_when_it_is_noticed():
    found = walk(breaks(FOUR_OF_TWO, [{"at": 0.0, "notice": 600.0}]), FOUR_OF_TWO, Help(0, 0, 0.0))

    assert told(found) == [(0, 0.0, 600.0 + H)]


def test_a_dead_link_stops_only_those_whose_cards_lie_on_both_sides_of_it():
    whole, wide = seats(4, 2), seats(8, 1)
    nic = [{"at": 0.0, "first": 4, "end": 8, "link": True}]

    assert told(walk(breaks(whole, nic), whole, Help(0, 0, 0.0))) == []
    assert told(walk(breaks(wide, nic), wide, Help(0, 0, 0.0))) == [(0, 0.0, H)]


def test_a_dead_link_stops_who_hands_its_caches_on():
    apart = seats(4, 2, apart=True)
    nic = [{"at": 0.0, "first": 4, "end": 8, "link": True}]

    assert told(walk(breaks(apart, nic), apart, Help(0, 0, 0.0))) == [(1, 0.0, H)]


def test_two_replicas_on_one_card_take_one_spare():
    first = np.array([0, 0, 1, 1])
    shared = Seats(first, first + 1, np.zeros(4, bool), np.zeros(4))
    found = walk(breaks(shared, [{"at": 0.0}, {"at": 1.0, "first": 1, "end": 2}]), shared, Help(2, 0, 30.0))  # fmt: skip

    assert told(found) == [(0, 0.0, 30.0), (1, 0.0, 30.0), (2, 1.0, 31.0), (3, 1.0, 31.0)]


def test_what_is_never_repaired_is_back_only_by_a_spare_and_holds_no_crew():
    rows = [{"at": 0.0, "repair": np.inf}, {"at": 1.0, "first": 2, "end": 3, "repair": np.inf}, {"at": 2.0, "first": 4, "end": 5}]  # fmt: skip
    found = walk(breaks(FOUR_OF_TWO, rows), FOUR_OF_TWO, Help(1, 1, 30.0))

    assert told(found) == [(0, 0.0, 30.0), (1, 1.0, np.inf), (2, 2.0, 2.0 + H)]


@pytest.mark.parametrize("seed", range(30))
def test_compiled_as_plain(seed):
    random = np.random.default_rng(seed)
    cards = int(random.integers(1, 5))
    seated = seats(cards, 40, load_s=random.uniform(0, 900), apart=bool(random.integers(2)))
    rows = []
    for at_s in np.sort(random.uniform(0, 300 * H, 400)):
        size = int(random.choice([1, 1, 1, 4, 8, 32]))
        first = int(random.integers(0, cards * 40 // size + 1)) * size
        rows.append({
            "at": at_s, "first": first, "end": first + size, "repair": random.exponential(8 * H),
            "notice": random.choice([0.0, 600.0]), "part": random.integers(2), "link": random.integers(2), "shared": random.integers(2),
        })  # fmt: skip
    asked = breaks(seated, rows)
    help_ = Help(int(random.integers(0, 20)), int(random.integers(0, 3)), random.uniform(0, 600))
    plain, fast = walk(asked, seated, help_), compiled()(asked, seated, help_)

    assert len(plain.replica_N) > 100
    for left, right in zip(plain, fast, strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_link_over_which_caches_wait_stops_only_who_exchanges_over_it():
    """Replicas of 8 cards that hand caches on, nodes of 4: the dead link is of cards 4 to 7, then of all that one replica has."""
    one = seats(8, 2, apart=True)
    part, whole = {"first": 4, "end": 8, "link": 1}, {"at": 9 * H, "first": 8, "end": 16, "link": 1}
    waits = walk(breaks(one, [part | {"shared": 1}, whole | {"shared": 1}]), one, Help(0, 0, 0.0))
    stops = walk(breaks(one, [part, whole]), one, Help(0, 0, 0.0))

    assert waits.replica_N.tolist() == [0]
    assert stops.replica_N.tolist() == [0, 1]
