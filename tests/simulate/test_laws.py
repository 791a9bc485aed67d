"""Queueing laws on the compiled driver: what is known of queues holds of simulated replicas, within honest intervals.

A replica with one sequence whose steps all take `STEP_S` is a server: a request of one prompt token and n tokens of answer takes n steps. One whose step
takes `STEP_S` for every sequence in it shares itself out evenly.

    Erlang C      A. K. Erlang 1917; wait = C(c, a) / (c / s - rate)
    M/G/1         Pollaczek and Khinchine; wait = rate * E[s^2] / (2 (1 - rate * E[s]))
    M/G/1-PS      stay = E[s] / (1 - rate * E[s]), whatever the distribution
    Little        mean in the system = rate * mean stay
    utilisation   busy share = rate * E[s] / c

Any textbook has them: L. Kleinrock, Queueing Systems, vol. 1, 1975; M. Harchol-Balter, Performance Modeling and Design of Computer Systems, 2013.
Means are held against them by batch means (`interval`), so that their correlation widens the interval as it should.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import ReplicaUp
from polypod.record import Measure
from polypod.simulate import Arrival, Scenario
from polypod.simulate.arriving import Block
from polypod.simulate.compiled import Session, play_compiled
from polypod.simulate.native.layout import ARRIVAL, NONE
from polypod.simulate.series import Watch

STEP_S = 1e-3
MEAN_TOKENS = 500.0
MEAN_S = MEAN_TOKENS * STEP_S
REQUESTS = 150_000
BATCHES = 32
T_999 = 3.633
"""Student's t, 31 degrees of freedom, two-sided 99.9 %."""

ONE_AT_A_TIME = StepTime(tokens=(0, 1000), seconds=(STEP_S, STEP_S), kv_token_s=0.0, pair_s=0.0)
SHARED = StepTime(tokens=(1, 10_000), seconds=(STEP_S, 10_000 * STEP_S), kv_token_s=0.0, pair_s=0.0)


def replicas(
    count: int, step: StepTime = ONE_AT_A_TIME, sequences: int = 1
) -> tuple[ReplicaUp, ...]:
    return tuple(
        ReplicaUp(
            at_s=0.0, replica=f"r{n}", epoch=1, model="m", pool="p", role="both", step_time=step, context_tokens=10**8,
            kv_capacity_tokens=10**9, max_sequences=sequences, max_step_tokens=10_000,
        )
        for n in range(count)
    )  # fmt: skip


NO_LIMITS = PolicySettings(
    services=(ServiceSettings(model="m", context_tokens=10**8),), queue_requests=10**9, queue_wait_s=1e9
)  # fmt: skip


class Given:
    """Arrivals that are there: when, and how long their answers are."""

    def __init__(self, at_s: Any, output_tokens: Any) -> None:
        self._rows = np.zeros(len(at_s), dtype=ARRIVAL)
        self._rows["at_s"], self._rows["output_tokens"] = at_s, output_tokens
        self._rows["patience_s"], self._rows["max_output_tokens"] = np.inf, NONE
        self._rows["input_tokens"] = 1

    def block(self, models: Any) -> Any:
        return Block(rows=self._rows, hashes=np.zeros(0, dtype=np.int64), is_last=True)

    def asked(self, request: int) -> Arrival:
        msg = f"no line is written of request {request}"
        raise AssertionError(msg)


@dataclass(frozen=True)
class Stays:
    """What came of a run, by request in the order of arrival."""

    arrival_s: Any
    placed_s: Any
    end_s: Any
    busy_s: float  # over all replicas
    last_s: float

    @property
    def wait_s(self) -> Any:
        return self.placed_s - self.arrival_s

    @property
    def stay_s(self) -> Any:
        return self.end_s - self.arrival_s


def served(ups: tuple[ReplicaUp, ...], at_s: Any, output_tokens: Any) -> Stays:
    session = Session(Scenario(replicas=ups, settings=NO_LIMITS, trace=()), Given(at_s, output_tokens), share=0.0)  # fmt: skip
    ended = np.concatenate([turn.outcomes for turn in session.turns()])
    ended = ended[np.argsort(ended["request"])]
    busy_s = sum(one.value for one in session.totals() if one.name == "busy_s")
    assert len(ended) == len(at_s)
    assert not ended["status"].any()
    return Stays(
        arrival_s=ended["arrival_s"], placed_s=ended["placed_s"], end_s=ended["end_s"], busy_s=busy_s,
        last_s=float(ended["end_s"].max()),
    )  # fmt: skip


def poisson(rng: np.random.Generator, rate_per_s: float, count: int = REQUESTS) -> Any:
    return np.cumsum(rng.exponential(1 / rate_per_s, count))


def geometric(rng: np.random.Generator, count: int) -> Any:
    """As near to exponential as whole tokens are."""
    return rng.geometric(1 / MEAN_TOKENS, count)


SERVICES = {
    "deterministic": lambda rng, count: np.full(count, int(MEAN_TOKENS)),
    "uniform": lambda rng, count: rng.integers(1, 2 * int(MEAN_TOKENS), count),
    "exponential": geometric,
    "two kinds": lambda rng, count: np.where(rng.random(count) < 0.9, 250, 2750),
    "lognormal": lambda rng, count: np.ceil(rng.lognormal(math.log(300), 1.0, count)).astype(int),
}


def interval(values: Any) -> tuple[float, float]:
    """The mean and half of its 99.9 % interval, from the means of batches, the first of them left out while the queue fills."""
    batches = np.array_split(values, BATCHES + 1)[1:]
    means = np.array([batch.mean() for batch in batches])
    return float(means.mean()), float(T_999 * means.std(ddof=1) / math.sqrt(BATCHES))


def assert_mean(values: Any, expected: float, most_half: float = 0.2) -> None:
    """The law lies in the interval, and the interval is narrow enough to say something."""
    mean, half = interval(values)
    assert half < most_half * expected, f"{mean} +- {half} says little of {expected}"
    assert abs(mean - expected) <= half + 0.004 * expected, f"{mean} +- {half}, not {expected}"


def erlang_c(servers: int, load: float) -> float:
    """The share of requests that wait, of M/M/c with `load` Erlang.

    >>> round(erlang_c(1, 0.7), 12)
    0.7
    """
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def pollaczek_khinchine_s(rate_per_s: float, service_s: Any) -> float:
    """The mean wait of M/G/1, from the moments of these services.

    Half a second each, one a second: 0.25 / (2 * 0.5).

    >>> pollaczek_khinchine_s(1.0, np.array([0.5, 0.5]))
    0.25
    """
    mean_s, square = float(service_s.mean()), float((service_s**2).mean())
    return rate_per_s * square / (2 * (1 - rate_per_s * mean_s))


def moments(kind: str) -> Any:
    """Services enough for their moments to be those of the distribution."""
    return STEP_S * SERVICES[kind](np.random.default_rng(99), 4_000_000)


# ---- against closed forms


@pytest.mark.parametrize(("servers", "use"), [(1, 0.5), (1, 0.8), (2, 0.7), (5, 0.8), (16, 0.9)])
def test_waits_of_equal_servers_are_those_of_erlang(servers, use):
    rng = np.random.default_rng(servers)
    rate_per_s, count = use * servers / MEAN_S, REQUESTS * (1 if servers < 5 else 4)
    stays = served(replicas(servers), poisson(rng, rate_per_s, count), geometric(rng, count))
    share = erlang_c(servers, use * servers)

    assert_mean(stays.wait_s, share / (servers / MEAN_S - rate_per_s))
    assert_mean(stays.wait_s > 1e-9, share)


@pytest.mark.parametrize("kind", sorted(SERVICES))
def test_waits_of_one_server_are_those_of_pollaczek_and_khinchine(kind):
    rng = np.random.default_rng(3)
    rate_per_s = 0.7 / float(moments(kind).mean())
    stays = served(replicas(1), poisson(rng, rate_per_s), SERVICES[kind](rng, REQUESTS))

    assert_mean(stays.wait_s, pollaczek_khinchine_s(rate_per_s, moments(kind)))


@pytest.mark.parametrize("kind", ["deterministic", "exponential", "two kinds"])
def test_a_replica_whose_step_grows_with_its_batch_is_shared_evenly_whatever_the_lengths(kind):
    """Processor sharing: the mean stay depends on the mean length alone."""
    rng = np.random.default_rng(4)
    rate_per_s = 0.6 / MEAN_S
    stays = served(replicas(1, SHARED, sequences=5000), poisson(rng, rate_per_s, 60_000), SERVICES[kind](rng, 60_000))  # fmt: skip
    mean_s, half_s = interval(stays.stay_s)

    # a request joins at a step's boundary, on average within half a step of the batch
    assert mean_s == pytest.approx(MEAN_S / 0.4, abs=half_s, rel=0.01)
    assert half_s < 0.1 * mean_s


# ---- in every run


@pytest.mark.parametrize(("servers", "kind"), [(1, "lognormal"), (3, "two kinds"), (8, "uniform")])
def test_a_server_is_busy_for_what_it_serves_and_no_longer(servers, kind):
    rng = np.random.default_rng(servers)
    at_s, tokens = poisson(rng, 0.8 * servers / MEAN_S, 20_000), SERVICES[kind](rng, 20_000)
    stays = served(replicas(servers), at_s, tokens)

    assert stays.busy_s == pytest.approx(STEP_S * tokens.sum(), rel=1e-9)
    assert stays.busy_s <= servers * stays.last_s


@pytest.mark.parametrize(("servers", "kind"), [(1, "lognormal"), (4, "two kinds"), (9, "exponential")])  # fmt: skip
def test_nobody_waits_beside_an_idle_server_and_nobody_overtakes(servers, kind):
    """The waits of first come first served, by Kiefer and Wolfowitz: each goes to the server that is free first."""
    rng = np.random.default_rng(servers)
    at_s, tokens = poisson(rng, 0.9 * servers / MEAN_S, 20_000), SERVICES[kind](rng, 20_000)
    stays = served(replicas(servers), at_s, tokens)
    free_s, expected = np.zeros(servers), []
    for arrival_s, service_s in zip(at_s, STEP_S * tokens, strict=True):
        first = int(free_s.argmin())
        began_s = max(float(free_s[first]), float(arrival_s))
        expected.append(began_s)
        free_s[first] = began_s + service_s

    assert stays.placed_s == pytest.approx(np.array(expected), rel=1e-9, abs=1e-6)


def in_system(arrival_s: Any, end_s: Any, at_s: Any) -> Any:
    """Requests that have come and not gone, at each moment; a request counts from its arrival on, and not at its end."""
    came = np.searchsorted(np.sort(arrival_s), at_s, side="right")
    gone = np.searchsorted(np.sort(end_s), at_s, side="right")
    return came - gone


@pytest.mark.parametrize(("servers", "sequences"), [(1, 1), (3, 1), (2, 4)])
def test_what_the_series_show_is_the_rate_times_the_stay(servers, sequences):
    """Little: queue and engines as sampled, against outcomes; and each sample against who is there."""
    rng = np.random.default_rng(5)
    count, rate_per_s = 3000, 0.7 * servers / MEAN_S
    at_s, tokens = poisson(rng, rate_per_s, count), geometric(rng, count)
    trace = tuple(
        Arrival(at_s=float(at), model="m", input_tokens=1, output_tokens=int(n))
        for at, n in zip(at_s, tokens, strict=True)
    )
    ups = replicas(servers, sequences=sequences)
    run = play_compiled(Scenario(replicas=ups, settings=NO_LIMITS, trace=trace, watch=Watch(interval_s=0.0931)))  # fmt: skip
    stays = served(ups, at_s, tokens)
    there: dict[float, float] = {}
    for line in run.lines:
        if isinstance(line, Measure) and line.name in ("running", "waiting", "queue"):
            there[line.at_s] = there.get(line.at_s, 0.0) + line.value
    sampled_s = np.array(sorted(there))
    seen = np.array([there[at] for at in sampled_s.tolist()])

    assert seen[:-1].tolist() == in_system(stays.arrival_s, stays.end_s, sampled_s)[:-1].tolist()
    assert seen.mean() == pytest.approx(stays.stay_s.sum() / stays.last_s, rel=0.01)


# ---- more is never less


def test_more_servers_never_let_fewer_answers_come_in_time():
    rng = np.random.default_rng(6)
    at_s, tokens = poisson(rng, 0.8 * 2 / MEAN_S, 20_000), geometric(rng, 20_000)
    runs = [served(replicas(count), at_s, tokens) for count in range(2, 8)]
    in_time = [int((run.wait_s < 0.5 * MEAN_S).sum()) for run in runs]

    assert in_time == sorted(in_time)
    assert in_time[-1] > in_time[0]
    for fewer, more in pairwise(runs):  # and nobody begins later
        assert (more.placed_s <= fewer.placed_s + 1e-6).all()


@pytest.mark.parametrize("scale", [0.99, 0.5])
def test_a_faster_server_never_ends_anything_later(scale):
    rng = np.random.default_rng(7)
    at_s, tokens = poisson(rng, 0.9 / MEAN_S, 20_000), SERVICES["lognormal"](rng, 20_000)
    slow = served(replicas(1), at_s, tokens)
    fast = served(replicas(1, ONE_AT_A_TIME.scaled(scale)), at_s, tokens)

    assert (fast.end_s <= slow.end_s + 1e-6).all()
    assert fast.busy_s == pytest.approx(scale * slow.busy_s, rel=1e-9)
