"""Users who wait for their answers, played by a driver of a few lines."""

import heapq

import numpy as np
import pytest

from polypod.errors import InputError
from polypod.workload.traffic_lengths import Lognormal
from polypod.workload.traffic_loop import ClosedLoop, closed_loop
from polypod.workload.traffic_make import Stream, Synthetic, Turns

CHAT = Stream(model="chat", rate_per_s=1.0, input_tokens=1000, output_tokens=200)


def loop(users: int, think_s: float = 0.0, **over: object) -> ClosedLoop:
    known: dict[str, object] = {"streams": (CHAT,), "requests": 1000, "lengths": Lognormal()}
    return closed_loop(users, Synthetic(**(known | over)), think_s)  # type: ignore[arg-type]


def play(described: ClosedLoop, token_s: float) -> list[tuple[float, float]]:
    """When each request was sent and ended, on as many servers as it takes, each `token_s` a token of the answer."""
    took_s = described.trace.output_tokens * token_s
    running = [(float(took_s[n]), 0.0) for n in range(described.num_first)]
    heapq.heapify(running)
    sent, log = described.num_first, []
    while running:
        ended_s, began_s = heapq.heappop(running)
        log.append((began_s, ended_s))
        at_s = described.next_s(sent, ended_s)
        if at_s is not None:
            heapq.heappush(running, (at_s + float(took_s[sent]), at_s))
            sent += 1
    return log


def test_so_many_are_in_flight_until_the_last_ones() -> None:
    log = play(loop(8), 0.01)
    sent_s, ended_s = (np.sort(times_s) for times_s in zip(*log, strict=True))
    moments_s = np.unique(sent_s)
    in_flight = np.searchsorted(sent_s, moments_s, "right") - np.searchsorted(ended_s, moments_s, "right")  # fmt: skip

    assert len(log) == 1000
    assert set(in_flight.tolist()) == {8}


def test_the_time_of_a_round_is_littles_law() -> None:
    """Users = rate * (answer + think)."""
    log = play(loop(16, think_s=3.0), 0.01)
    answers_s = np.mean([end - begin for begin, end in log])
    sent_s = np.sort([begin for begin, _ in log])
    rate_per_s = 900 / (sent_s[949] - sent_s[49])

    assert rate_per_s * (answers_s + 3.0) == pytest.approx(16, rel=0.1)


def test_lengths_are_in_the_order_of_sending_and_of_the_seed() -> None:
    assert np.array_equal(loop(4).trace.input_tokens, loop(64).trace.input_tokens)
    assert np.array_equal(loop(4, think_s=1.0).think_s, loop(4, think_s=1.0).think_s)
    assert not np.array_equal(loop(4).trace.input_tokens, loop(4, seed=1).trace.input_tokens)


def test_nothing_is_sent_after_the_end() -> None:
    log = play(loop(8, duration_s=50.0), 0.01)

    assert max(begin for begin, _ in log) < 50
    assert max(end for _, end in log) > 50


def test_more_users_than_requests_send_what_there_is() -> None:
    described = loop(50, requests=20)

    assert described.num_first == 20
    assert described.next_s(20, 1.0) is None


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"users": 0}, r"users=0 send nothing"),
        ({"requests": None, "duration_s": 5.0}, r"say at most how many with requests"),
        ({"turns": Turns()}, r"a closed loop has no conversations"),
        ({"think_s": -1.0}, r"mean_think_s=-1 is no time to think"),
    ],
)
def test_a_loop_that_cannot_be_is_refused(over: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        loop(**({"users": 4} | over))  # type: ignore[arg-type]
