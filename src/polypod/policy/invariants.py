"""What must hold between events, whatever happened."""

import math

from polypod.policy.health import Health, Replica
from polypod.policy.placement import Placement
from polypod.policy.requests import Place, Tracked
from polypod.policy.router import slots_of


def check_policy(
    live: dict[int, Tracked], health: Health, placement: Placement, now_s: float
) -> None:
    """Raise `AssertionError` where the books do not agree."""
    for request, tracked in live.items():
        _check_request(request, tracked, health, placement)
    waiting = sum(len(service.queue) for service in placement.services.values())
    aboard = sum(len(replica.requests) for replica in health.replicas.values())
    twice = sum(tracked.phase == "transfer" for tracked in live.values())
    assert waiting + aboard - twice == len(live), f"{waiting} wait, {aboard} run, {len(live)} live"
    for replica in health.replicas.values():
        _check_replica(replica, health)
    for service in placement.services.values():
        _check_queue(list(service.queue), placement, now_s)
        _check_queue(list(service.held), placement, now_s)
        for tracked in service.moving:
            assert tracked.kv_deadline_s > now_s, f"{tracked}: its cache is overdue"


def _check_request(request: int, tracked: Tracked, health: Health, placement: Placement) -> None:
    service = placement.services[tracked.model]
    waits = tracked in service.queue
    assert tracked.request == request
    assert waits == (tracked.place is None), f"{tracked} waits and runs, or neither"
    assert (tracked in service.held) == (tracked.phase == "held"), f"{tracked}: its cache"
    assert (tracked.source is None) == (tracked.phase != "transfer"), f"{tracked}: two places"
    assert (tracked in service.moving) == (tracked.phase == "transfer"), f"{tracked}: its way"
    assert not tracked.is_streaming or tracked.phase in ("whole", "decode"), f"{tracked} streams"
    assert not (waits and tracked.is_streaming), f"{tracked} waits after its first token"
    continues = tracked.arrived.continuation != "off"
    assert continues or not tracked.continued, f"{tracked} goes on, and may not"
    assert tracked.continued or not tracked.sent_tokens, f"{tracked}: whose tokens"
    for place in tracked.places:
        replica = health.current(place.replica, place.epoch)
        assert replica is not None, f"{tracked} runs on a replica that is not up"
        assert replica.requests.get(request) is tracked, f"{replica.name} does not have {tracked}"
        assert replica.up.role == _role_there(tracked, place), f"{replica.name} has {tracked}"


def _role_there(tracked: Tracked, place: Place) -> str:
    if tracked.phase == "whole":
        return "both"
    return "decode" if place is tracked.place and tracked.phase in ("transfer", "decode") else "prefill"  # fmt: skip


def _check_replica(replica: Replica, health: Health) -> None:
    if not replica.is_up:
        assert not replica.requests, f"{replica.name} is down and runs {list(replica.requests)}"
        return
    table, row = replica.table, replica.row
    loads, prompts, held, moving = [], [], 0, 0
    for tracked in replica.requests.values():
        (load,) = (place.load for place in tracked.places if place.replica == replica.name)
        loads.append(load)
        is_held = tracked.phase in ("held", "transfer") and replica.up.role == "prefill"
        held += is_held
        moving += tracked.phase == "transfer"
        if load.is_streamed and not tracked.is_streaming and tracked.phase not in ("held", "transfer"):  # fmt: skip
            prompts.append(load)
    kv_tokens = sum(load.kv_tokens for load in loads)
    assert table.at(row) is replica.up, f"row {row} is not {replica.name}'s"
    assert table.in_flight_R[row] == len(loads) - held <= slots_of(replica.up), replica.name
    assert (table.held_R[row], table.moving_R[row]) == (held, moving), f"{replica.name}: caches"
    assert table.prompts_R[row] == len(prompts), f"{replica.name}: prompts"
    prompts_s = sum(load.prompt_s for load in prompts)
    assert math.isclose(table.prompts_s_R[row], prompts_s, rel_tol=1e-6, abs_tol=1e-9)
    assert math.isclose(table.kv_tokens_R[row], kv_tokens, rel_tol=1e-6, abs_tol=1e-3)
    if replica.up.role != "both" and len(loads) > 1:
        assert kv_tokens <= replica.up.kv_capacity_tokens + 1e-3, f"{replica.name}: too much cache"


def _check_queue(waiting: list[Tracked], placement: Placement, now_s: float) -> None:
    assert waiting == sorted(waiting, key=lambda tracked: tracked.turn), "the queue is out of turn"
    for tracked in waiting:
        assert tracked.deadline_s > now_s, f"{tracked} waits past its deadline"
    if waiting:
        assert not placement.has_room_for(waiting[0], now_s), f"{waiting[0]} waits beside room"
