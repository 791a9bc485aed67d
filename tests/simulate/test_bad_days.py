"""Random fleets under what breaks in them, on the compiled driver: its records tell of lives that are legal, fair, and end once."""

import json
from typing import Any

import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.plan.spec import Layout, Plan, Pool, Precision, Service, Source
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import ReplicaUp, RequestArrived, Role
from polypod.policy.lifecycle import Validator
from polypod.record import Line, Measure, Step
from polypod.simulate import Arrival, Scenario, replay
from polypod.simulate.arriving import Listed
from polypod.simulate.compiled import Session, play_compiled
from polypod.simulate.fault_files import read_faults
from polypod.simulate.faults import resolve
from polypod.simulate.native.layout import ENDED_GONE, ENDED_WELL
from polypod.simulate.seats import Recovery, seat
from polypod.simulate.series import Watch
from tests.faults.oracle import Oracle

STEP = StepTime(tokens=(1, 1000), seconds=(0.01, 0.07), kv_token_s=1e-7, pair_s=1e-9)
REPLICAS = 8
SEEDS = range(12)


def seated() -> Any:
    """Eight replicas on eight cards each: two nodes a rack, a card a rank."""
    pool = Pool(
        role="both", on="a", layout=Layout(tp=8), replicas=REPLICAS, max_sequences=64, state="modelled", name="p",
        precision=Precision(weights="bf16", kv="bf16"),
    )  # fmt: skip
    service = Service(model="meta-llama/Llama-3.1-8B", pools=(pool,))
    plan = Plan(polypod=1, fleet={"a": Source(accelerator="nvidia-h100-sxm", count=64)}, services=(service,))  # fmt: skip
    return seat(plan, Recovery(detect_s=1.5, failover_s=0.5, restart_s=1.0, storage_bytes_per_s=1e12))  # fmt: skip


def broken(rng: np.random.Generator) -> dict[str, Any]:
    """A row of a fault file."""
    what = str(rng.choice(["crash", "crash", "hang", "slow", "slow-link", "flap"]))
    on = f"{rng.choice(['card', 'node', 'rack'])} a/" if what != "flap" else "card a/"
    place = on + str(int(rng.integers(2 if on.startswith("rack") else 8)))
    row: dict[str, Any] = {"at": f"{rng.uniform(0, 15):.2f}s", "what": what, "repair": f"{rng.uniform(0.5, 6):.1f}s"}  # fmt: skip
    if what in ("slow-link", "flap"):
        row |= {"where": f"link {place}", "factor": 4.0}
        row |= {"burst": "0.5s", "every": "1.5s"} if what == "flap" else {}
    else:
        row |= {"where": place} | ({"factor": 3.0} if what == "slow" else {})
    return row


def scenario(seed: int, path: Any) -> Scenario:
    rng = np.random.default_rng(seed)
    rows = [broken(rng) for _ in range(int(rng.integers(1, 7)))]
    path.write_text(json.dumps(rows))
    seats = seated()
    found, played = read_faults(path, seats.placed)
    resolved = resolve(seats, found, lambda part, pool, spot: 0.4)
    roles: tuple[Role, ...] = ("both",) if rng.random() < 0.5 else ("prefill", "decode", "both")
    ups = tuple(
        ReplicaUp(
            at_s=0.0, replica=name, epoch=1, model="m", pool="p", role=roles[n % len(roles)], step_time=STEP.scaled(1 + n % 2),
            context_tokens=2000, kv_capacity_tokens=4000, max_sequences=int(rng.choice([1, 4])), max_step_tokens=512,
            kv_token_bytes=1e5, kv_link_bytes_per_s=1e9,
        )
        for n, name in enumerate(seats.names)
    )  # fmt: skip
    at_s = np.cumsum(rng.exponential(1 / float(rng.choice([5, 20])), 250)).tolist()
    trace = tuple(
        Arrival(
            at_s=at, model="m", input_tokens=int(rng.integers(1, 1500)), output_tokens=int(rng.integers(1, 120)),
            max_output_tokens=None if rng.random() < 0.5 else int(rng.integers(1, 200)), priority=int(rng.choice([0, 0, 1])),
            patience_s=None if rng.random() < 0.9 else float(rng.exponential(4.0)),
        )
        for at in at_s
    )  # fmt: skip
    settings = PolicySettings(
        services=(ServiceSettings(model="m", context_tokens=2000),), queue_wait_s=float(rng.choice([2.0, 30.0])),
        queue_requests=int(rng.choice([10, 1000])), max_attempts=int(rng.integers(1, 4)), quarantine_deaths=int(rng.integers(1, 4)),
    )  # fmt: skip
    return Scenario(
        replicas=ups, settings=settings, trace=trace, seed=seed, faults=(*played, *resolved.faults), notes=resolved.notes,
        watch=Watch(interval_s=0.25),
    )  # fmt: skip


def check_lives(lines: tuple[Line, ...], settings: PolicySettings) -> Oracle:
    """Put a whole record through the lifecycle table and the oracle's books; all its requests must have ended."""
    validator, oracle = Validator(), Oracle(settings)
    for line in lines:
        if isinstance(line, Step):
            validator.feed(line.event, line.actions)
            oracle.feed(line.event, line.actions)
    assert not validator.open
    assert not oracle.live
    assert validator.ended == len(oracle.outcomes)
    return oracle


def check_little(lines: tuple[Line, ...]) -> float:
    """Little's law of a whole record: the mean number in the system, from its steps, is their rate times their mean stay.

    `L` integrates how many are open over time, as the lifecycle table has it; `W` is every request's own end less its own arrival. They agree where every
    request ends once, at its own time, and no step goes back in time. Returns L.
    """
    validator, area, last_s, began_s = Validator(), 0.0, 0.0, {}
    stays_s: dict[int, float] = {}
    for line in lines:
        if not isinstance(line, Step):
            continue
        at_s = line.event.at_s
        assert at_s >= last_s
        area += len(validator.open) * (at_s - last_s)
        last_s = at_s
        validator.feed(line.event, line.actions)
        if isinstance(line.event, RequestArrived):
            began_s[line.event.request] = at_s
        for request in began_s.keys() - stays_s.keys() - validator.open.keys():
            stays_s[request] = at_s - began_s[request]
    rate_per_s, mean_s = len(stays_s) / last_s, sum(stays_s.values()) / len(stays_s)
    assert stays_s.keys() == began_s.keys()
    assert area / last_s == pytest.approx(rate_per_s * mean_s, rel=1e-9)
    return area / last_s


def outcomes_of(one: Scenario) -> Any:
    session = Session(one, Listed(one.trace), share=0.0)
    return np.concatenate([turn.outcomes for turn in session.turns()])


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_breaks_every_life_is_legal_fair_and_ends_once(seed, tmp_path):
    one = scenario(seed, tmp_path / "faults.json")
    lines = play_compiled(one).lines
    oracle = check_lives(lines, one.settings)

    assert replay(lines) is None
    assert check_little(lines) > 0
    assert len(oracle.outcomes) == len(one.trace)
    ended = outcomes_of(one)
    by_request = {
        int(row["request"]): "finished" if row["status"] == ENDED_WELL else "gone" if row["status"] == ENDED_GONE else "rejected"
        for row in ended
    }  # fmt: skip
    assert len(ended) == len(by_request) == len(one.trace)
    assert by_request == {
        request: how if how in ("finished", "gone") else "rejected" for request, how in oracle.outcomes.items()
    }  # fmt: skip
    assert (ended["end_s"] >= ended["arrival_s"]).all()
    series = [line for line in lines if isinstance(line, Measure) and line.name.startswith("kv_")]
    caches = [line.value for line in series if line.name == "kv_tokens"]
    rooms = [line.value for line in series if line.name == "kv_capacity_tokens"]
    assert len(caches) == len(rooms) > 10
    assert all(0 <= cache <= room for cache, room in zip(caches, rooms, strict=True))


def test_the_days_are_bad(tmp_path):
    """Replicas go down with requests aboard, and requests end in many ways."""
    ends: set[str] = set()
    for seed in SEEDS:
        one = scenario(seed, tmp_path / "faults.json")
        ends |= set(check_lives(play_compiled(one).lines, one.settings).outcomes.values())

    assert ends >= {"finished", "gone", "queue_timeout", "queue_full", "replica_lost", "quarantined"}  # fmt: skip
