"""What must hold between events, whatever happened."""

import math

from polypod.policy.health import Health, Replica
from polypod.policy.placement import Placement
from polypod.policy.requests import Tracked
from polypod.policy.router import slots_of


def check_policy(
    live: dict[int, Tracked], health: Health, placement: Placement, now_s: float
) -> None:
    """Raise `AssertionError` where the books do not agree."""
    for request, tracked in live.items():
        _check_request(request, tracked, health, placement)
    waiting = sum(len(service.queue) for service in placement.services.values())
    aboard = sum(len(replica.requests) for replica in health.replicas.values())
    assert waiting + aboard == len(live), f"{waiting} wait, {aboard} run, {len(live)} live"
    for replica in health.replicas.values():
        _check_replica(replica, health)
    for service in placement.services.values():
        _check_queue(list(service.queue), placement, now_s)


def _check_request(request: int, tracked: Tracked, health: Health, placement: Placement) -> None:
    waits = tracked in placement.services[tracked.model].queue
    assert tracked.request == request
    assert waits == (tracked.place is None), f"{tracked} waits and runs, or neither"
    assert not (waits and tracked.is_streaming), f"{tracked} waits after its first token"
    if tracked.place is not None:
        replica = health.current(tracked.place.replica, tracked.place.epoch)
        assert replica is not None, f"{tracked} runs on a replica that is not up"
        assert replica.requests.get(request) is tracked, f"{replica.name} does not have {tracked}"


def _check_replica(replica: Replica, health: Health) -> None:
    if not replica.is_up:
        assert not replica.requests, f"{replica.name} is down and runs {list(replica.requests)}"
        return
    table, row = health.tables[replica.up.model], replica.row
    aboard = list(replica.requests.values())
    prompts = [
        one.place.load
        for one in aboard
        if one.place and not one.is_streaming and one.place.load.is_streamed
    ]
    kv_tokens = sum(one.place.load.kv_tokens for one in aboard if one.place)
    assert table.at(row) is replica.up, f"row {row} is not {replica.name}'s"
    assert table.in_flight_R[row] == len(aboard) <= slots_of(replica.up), replica.name
    assert table.prompts_R[row] == len(prompts), f"{replica.name}: prompts"
    prompts_s = sum(load.prompt_s for load in prompts)
    assert math.isclose(table.prompts_s_R[row], prompts_s, rel_tol=1e-6, abs_tol=1e-9)
    assert math.isclose(table.kv_tokens_R[row], kv_tokens, rel_tol=1e-6, abs_tol=1e-3)


def _check_queue(waiting: list[Tracked], placement: Placement, now_s: float) -> None:
    assert waiting == sorted(waiting, key=lambda tracked: tracked.turn), "the queue is out of turn"
    for tracked in waiting:
        assert tracked.deadline_s > now_s, f"{tracked} waits past its deadline"
    if waiting:
        assert not placement.has_room_for(waiting[0], now_s), f"{waiting[0]} waits beside room"
