"""Who makes way for one more: the referee looks through all connections every time."""

import asyncio
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.serve.http import idle
from polypod.serve.http.front import Front, Waits
from polypod.serve.http.idle import LOOK_EVERY_S, Idle
from polypod.serve.http.request import Sizes
from polypod.serve.http.room import Room

IDLE_S, REST_S = 75.0, 1.0


@dataclass(eq=False)
class Connection:
    deadline_s: float
    may_make_way: bool = True
    is_closed: bool = False

    def make_way(self) -> None:
        assert not self.is_closed
        self.may_make_way, self.is_closed = False, True


def resting(since_s: float) -> Connection:
    return Connection(since_s + IDLE_S)


def new_idle() -> Idle:
    return Idle(idle_s=IDLE_S, rest_s=REST_S)


class Counted(list[Connection]):
    """How often they were looked through."""

    looks = 0

    def __iter__(self):
        self.looks += 1
        return super().__iter__()


def longest(connections: list[Connection], now_s: float) -> Connection | None:
    rested = [one for one in connections if one.may_make_way and now_s - (one.deadline_s - IDLE_S) >= REST_S]  # fmt: skip
    return min(rested, key=lambda one: one.deadline_s, default=None)


class Story:
    """Connections ask, rest and come while time goes by; when there is one more, the referee says who has to make way."""

    def __init__(self) -> None:
        self.connections = Counted([resting(0.0)])
        self.idle = new_idle()
        self.now_s = 0.0
        self.looked_s = -1.0

    def _set(self, n: int, deadline_s: float, *, may: bool) -> None:
        one = self.connections[n % len(self.connections)]
        one.deadline_s, one.may_make_way = deadline_s, may

    def asks(self, n: int) -> None:
        self._set(n, (math.inf, self.now_s + 10.0)[n % 2], may=False)

    def rests(self, n: int) -> None:
        self._set(n, self.now_s + IDLE_S, may=True)

    def comes(self, _: int) -> None:
        self.connections.append(resting(self.now_s))

    def time(self, n: int) -> None:
        self.now_s += 0.01 + n * 0.2

    def one_more(self, _: int) -> None:
        expected, before = longest(self.connections, self.now_s), self.connections.looks - 1
        looks = self.connections.looks
        is_one = self.idle.close_one(self.connections, self.now_s)
        if self.connections.looks > looks:
            assert self.now_s - self.looked_s >= LOOK_EVERY_S
            self.looked_s = self.now_s
        if is_one:
            assert [one for one in self.connections if one.is_closed] == [expected]
            self.connections.remove(expected)
            self.comes(0)
        elif expected is not None:
            assert before >= 0
            assert self.now_s - self.looked_s < LOOK_EVERY_S


@given(st.lists(st.tuples(st.sampled_from(("asks", "rests", "comes", "one_more", "time")), st.integers(0, 9)), max_size=80))  # fmt: skip
def test_it_is_the_one_that_was_idle_longest_and_one_is_missed_for_a_while_at_most(steps):
    story = Story()
    for what, n in steps:
        getattr(story, what)(n)


def test_one_look_serves_many_and_none_is_repeated_at_once(monkeypatch):
    monkeypatch.setattr(idle, "MOST_REMEMBERED", 3)
    connections = Counted(resting(float(n)) for n in range(5))
    making = new_idle()

    assert [making.close_one(connections, 10.0) for _ in range(3)] == [True] * 3
    assert (connections.looks, [one.is_closed for one in list.__iter__(connections)]) == (1, [True] * 3 + [False] * 2)  # fmt: skip
    assert not making.close_one(connections, 10.4)  # it looked 0.4 s ago
    assert [making.close_one(connections, 10.5) for _ in range(2)] == [True] * 2
    assert not making.close_one(connections, 11.0)
    assert not making.close_one(connections, 11.1)
    assert connections.looks == 3


def test_one_that_asked_since_it_was_remembered_is_passed_over_also_when_it_rests_again():
    connections = [resting(0.0), resting(1.0), resting(2.0), resting(3.0)]
    making = new_idle()
    making.close_one(connections, 10.0)
    connections[1].deadline_s = 11.0 + IDLE_S
    connections[2].may_make_way = False
    making.close_one(connections, 20.0)

    assert [one.is_closed for one in connections] == [True, False, False, True]


@pytest.mark.parametrize(("now_s", "is_one"), [(5.9, False), (6.0, True)])
def test_one_that_has_just_answered_is_left_to_ask_again(now_s, is_one):
    assert new_idle().close_one([resting(5.0)], now_s) == is_one


class Transport(SimpleNamespace):
    """What a connection is made with, of which nothing is asked here."""

    def __getattr__(self, _: str) -> Any:
        return lambda *_: None


def test_a_client_that_does_not_take_its_answer_or_is_beyond_the_limit_does_not_make_way():
    async def main() -> None:
        app: Any = SimpleNamespace(sizes=Sizes(), room=Room(most_connections=1))
        front = Front(app, Waits(rest_s=60.0))
        first, second = front.connect(), front.connect()
        for one in (first, second):
            one.connection_made(Transport())
        assert (first.may_make_way, second.may_make_way) == (True, False)
        first.pause_writing()
        assert not first.may_make_way
        first.resume_writing()
        assert first.may_make_way
        first.make_way()
        assert (app.room.connections, first.may_make_way) == (1, False)
        for one in (first, second):
            one.connection_lost(None)
            assert not one.may_make_way
        assert app.room.connections == 0
        front.sweeper.stop()

    asyncio.run(main())
