"""How a fleet and its traffic are split among gateways."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.errors import InputError
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import ReplicaUp
from polypod.record import FaultNote
from polypod.simulate.gateways import Doors, gateway_of, split
from polypod.simulate.scenario import Fault, Scenario
from polypod.simulate.series import Cap, Draw, Watch
from polypod.workload.traffic import Trace, poisson
from polypod.workload.traffic_rows import join, rechunk
from polypod.workload.traffic_tenants import even

STEP = StepTime(tokens=(1, 64), seconds=(0.01, 0.02), kv_token_s=0.0, pair_s=0.0)


def replica(pool: str, number: int) -> ReplicaUp:
    return ReplicaUp(
        at_s=0.0, replica=f"{pool}-{number}", epoch=1, model="m", pool=pool, role="both", step_time=STEP, context_tokens=9000,
        kv_capacity_tokens=400_000, max_sequences=256, max_step_tokens=2048,
    )  # fmt: skip


@pytest.fixture
def fleet() -> Scenario:
    """7 and 4 replicas."""
    return Scenario(
        replicas=tuple(replica(pool, n) for pool, count in (("a", 7), ("b", 4)) for n in range(count)),
        settings=PolicySettings(services=(ServiceSettings(model="m", context_tokens=9000),)),
        trace=(),
        faults=(Fault(at_s=1.0, replica="a-6", what="down"), Fault(at_s=2.0, replica="b-0", what="down")),
        notes=(
            FaultNote(id=1, at_s=1.0, what="crash", where="rack", replicas=("a-6", "b-3", "b-0")),
            FaultNote(id=2, at_s=2.0, what="crash", where="a spare", replicas=()),
        ),
        slowdowns={"a-0": 2.0},
    )  # fmt: skip


@pytest.fixture
def trace() -> Trace:
    """9,000 requests, half of them of 500 sessions."""
    found = poisson(100.0, 9000, 100, 10, seed=1)
    number = np.arange(9000)
    return replace(found, session=np.where(number % 2, number // 2 % 500, -1))


def test_every_replica_is_behind_one_gateway_neighbours_together_and_as_even_as_can_be(fleet):
    parts = split(fleet, 3)

    names = [[up.replica for up in part.replicas] for part in parts]
    assert sorted(name for part in names for name in part) == sorted(
        up.replica for up in fleet.replicas
    )
    assert names[0] == ["a-0", "a-1", "a-2", "b-0", "b-1"]
    assert names[2] == ["a-5", "a-6", "b-3"]
    for pool, count in (("a", 7), ("b", 4)):
        sizes = [sum(name.startswith(pool) for name in part) for part in names]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == count
    assert [(part.gateway, part.gateways) for part in parts] == [(0, 3), (1, 3), (2, 3)]


def test_what_breaks_goes_with_its_replicas_and_what_hits_none_is_told_once(fleet):
    first, second, third = split(fleet, 3)

    assert [fault.replica for fault in first.faults] == ["b-0"]
    assert [fault.replica for fault in third.faults] == ["a-6"]
    assert [(note.id, note.replicas) for note in first.notes] == [(1, ("b-0",)), (2, ())]
    assert [(note.id, note.replicas) for note in third.notes] == [(1, ("a-6", "b-3"))]
    assert (second.faults, second.notes) == ((), ())
    assert (first.slowdowns, second.slowdowns) == ({"a-0": 2.0}, {})


def test_a_cap_within_a_gateway_stays_whole_and_one_across_is_shared(fleet):
    draws = {pool: Draw(idle_w=1.0, prompt_w=9.0, decode_w=5.0) for pool in ("a", "b")}
    caps = (
        Cap(name="row", replicas=("a-0", "a-1"), limit_w=10.0),
        Cap(name="hall", replicas=("a-2", "a-3", "a-4", "a-5"), limit_w=20.0),
    )
    parts = split(replace(fleet, watch=Watch(interval_s=1.0, draws=draws, caps=caps)), 3)

    found = [[(cap.name, cap.replicas, cap.limit_w) for cap in part.watch.caps] for part in parts]
    assert found[0] == [("row", ("a-0", "a-1"), 10.0), ("hall, gateway 0", ("a-2",), 5.0)]
    assert found[1] == [("hall, gateway 1", ("a-3", "a-4"), 10.0)]
    assert found[2] == [("hall, gateway 2", ("a-5",), 5.0)]


def test_a_pool_smaller_than_the_gateways_is_named(fleet):
    with pytest.raises(InputError, match=r"5 gateways each need a replica of every pool, and b has 4; say 4 gateways at most"):  # fmt: skip
        split(fleet, 5)


def test_every_request_comes_to_one_gateway_in_its_order(trace):
    doors = Doors(iter([trace]), 4, 7, [0, 1, 2, 3])

    parts = [join(list(doors.of(which))) for which in range(4)]

    assert sum(map(len, parts)) == len(trace)
    assert Counter(np.concatenate([part.arrival_s for part in parts]).tolist()) == Counter(trace.arrival_s.tolist())  # fmt: skip
    assert all(np.all(np.diff(part.arrival_s) >= 0) for part in parts)


def test_a_session_stays_with_one_gateway(trace):
    door = gateway_of(trace, 0, 4, 7)
    in_session = trace.session >= 0

    pairs = set(zip(trace.session[in_session].tolist(), door[in_session].tolist(), strict=True))
    assert len(pairs) == 500


def test_gateways_get_about_as_much_each_and_another_seed_parts_otherwise(trace):
    alone = replace(trace, session=np.full(len(trace), -1))
    door = gateway_of(alone, 0, 4, 7)

    counts = np.bincount(door, minlength=4)
    assert abs(counts - 2250).max() < 4 * np.sqrt(9000 * 0.25 * 0.75)  # binomial
    same = np.mean(door == gateway_of(alone, 0, 4, 8))
    assert 0.2 < same < 0.3


def test_a_gateway_says_nothing_of_the_tenant_that_is_drawn_from_the_same_keys(trace):
    alone = replace(trace, session=np.full(len(trace), -1))
    door = gateway_of(alone, 0, 4, 7)
    tenant = even(2 * np.arange(len(trace)), 7) < 0.25

    assert abs(np.mean(door[tenant] == 0) - 0.25) < 0.04


@pytest.mark.parametrize("size", [1, 100, 4096, 9000])
def test_parts_do_not_depend_on_blocks_nor_on_who_else_reads(trace, size):
    whole = join(list(Doors(iter([trace]), 3, 0, [1]).of(1)))
    doors = Doors(rechunk([trace], size), 3, 0, [0, 1, 2])
    list(doors.of(2))

    found = join(list(doors.of(1)))

    assert np.array_equal(found.arrival_s, whole.arrival_s)
    assert np.array_equal(found.session, whole.session)
