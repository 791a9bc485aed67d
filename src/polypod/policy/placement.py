"""Who goes where, and whose turn it is: the queues and the replicas, brought together.

The queue's bound holds for newcomers that find no room; a retry is never turned away for it, since it was let in once.
"""

import math
from typing import Final

import numpy as np

from polypod.policy import pairing
from polypod.policy.actions import Decode, Dispatch, Prefill, TransferKv
from polypod.policy.admission import Service
from polypod.policy.events import ReplicaUp, Role
from polypod.policy.fairness import Shares
from polypod.policy.health import ROLES, Health, Replica
from polypod.policy.pairing import Rows
from polypod.policy.requests import Ask, Load, Place, Tracked
from polypod.policy.router import Choice, ReplicaTable
from polypod.policy.sessions import Sessions
from polypod.policy.settings import PolicySettings

MASK: Final = 2**64 - 1


def pick(seed: int, request: int, attempt: int, count: int) -> int:
    """One of `count`, as good as at random, the same for the same numbers (splitmix64's finish; Steele, Lea, Flood 2014).

    >>> [pick(7, request, 0, 4) for request in range(8)]
    [1, 1, 0, 3, 1, 0, 1, 1]
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + request * 0xBF58476D1CE4E5B9 + attempt + 1) & MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return (mixed ^ (mixed >> 31)) % count


class Placement:
    """Gives waiting requests their places, and takes them back."""

    def __init__(self, settings: PolicySettings, health: Health, seed: int) -> None:
        self._seed = seed
        self._health = health
        self.services: dict[str, Service] = {}
        self._of: dict[str, dict[Role, ReplicaTable]] = {}
        self.told(settings)
        self._sessions = Sessions(most=settings.session_entries)
        self._stay_fraction = settings.session_stay_fraction

    def told(self, settings: PolicySettings) -> None:
        """Other settings hold, which `health` was told before. A model that is not among them is leaving.

        What waits, caches on their way among it, does so for as long as it was told at first.
        """
        self._kv_wait_s = settings.kv_wait_s
        for service in self.services.values():
            service.is_leaving = True
        for one in settings.services:
            known = self.services.get(one.model)
            shares = None if known is None else known.shares
            if settings.turns == "arrival":
                shares = None
            elif shares is None:
                shares = Shares(settings.tenant_weights)
            else:
                shares.weigh(settings.tenant_weights)
            if known is None:
                self.services[one.model] = Service(one, shares=shares)
                self._of[one.model] = {role: self._health.tables[one.model, role] for role in ROLES}
            else:
                known.told(one, shares)

    @property
    def has_waiting(self) -> bool:
        """Whether anybody waits, for whatever model."""
        for service in self.services.values():  # noqa: SIM110 - asked of every event, and `any` takes longer
            if service.has_waiting:
                return True
        return False

    def models(self) -> list[str]:
        """Those that take requests."""
        return [model for model, service in self.services.items() if not service.is_leaving]

    def forget_model(self, model: str) -> None:
        """Nothing of it waits or runs, and nothing will."""
        del self.services[model], self._of[model]

    def wait(self, tracked: Tracked) -> None:
        self.services[tracked.model].queue.add(tracked)

    def withdraw(self, tracked: Tracked) -> bool:
        """Take the request out of its queue; false when it does not wait."""
        service = self.services[tracked.model]
        for queue in (service.queue, service.held):
            if tracked in queue:
                queue.remove(tracked)
                return True
        return False

    # ---- whole requests, and prompts

    def serve(self, service: Service, now_s: float) -> list[Dispatch | Prefill]:
        """Place those who wait, in turn, for as long as there is room.

        One that the free replicas cannot take (it is pinned, long, or was let down by them) does not hold up those behind it. A
        prefill replica whose cache has no room for one that may go there is not given to those behind it.
        """
        starts: list[Dispatch | Prefill] = []
        if not service.queue.turns:
            return starts
        prefill = self._of[service.settings.model]["prefill"]
        closed_R = np.zeros_like(prefill.up_R) if prefill.most_limit_tokens else prefill.up_R
        if not self._has_slot(service, closed_R, now_s):
            return starts
        refused: Ask | None = None  # there is no room for it, wherever it may go
        for tracked in service.queue:
            ask = self._ask(tracked)
            if refused is not None and _asks_as_much(ask, refused, prefill):
                continue
            start = self.place(tracked, ask, now_s, closed_R)
            if start is not None:
                service.queue.remove(tracked)
                service.placed(tracked)
                starts.append(start)
            else:
                refused = ask if _may_go_anywhere(tracked) else refused
                if prefill.most_limit_tokens:
                    closed_R |= self._prompt_rows(tracked, ask)
            if not service.queue.turns or not self._has_slot(service, closed_R, now_s):
                break
        return starts

    def place(
        self, tracked: Tracked, ask: Ask, now_s: float, closed_R: Rows
    ) -> Dispatch | Prefill | None:
        """Send the request to where it would finish first, on one replica or a pair; ties fall by the seed. None without room."""
        tables = self._of[tracked.model]
        table = tables["both"]
        among_R = None if _may_go_anywhere(tracked) else self._allowed(tracked, ask, table)
        whole = table.best(ask, among_R, now_s)
        pair = self._best_pair(tracked, ask, closed_R, now_s)
        if pair is not None and len(whole.rows):
            by_pair_s = self._pair_s(tracked, ask, pair, now_s)
            pair = pair if by_pair_s < pairing.finish_s(whole, ask) else None
        if pair is not None:
            return self._start_prompt(tracked, ask, pair, now_s)
        return self._start_whole(tracked, ask, whole, now_s) if len(whole.rows) else None

    def first_token_s(self, tracked: Tracked, now_s: float) -> float:
        """When the first token of a newcomer is expected, where it would go now; 0 where there is no room, or it goes to a pair.

        Of an idle replica the cost model is believed where measurement said worse: that may be over, and only a request can tell.
        """
        ask, table = self._ask(tracked), self._of[tracked.model]["both"]
        choice = table.best(ask, self._allowed(tracked, ask, table), now_s)
        if not len(choice.rows):
            return 0.0
        row = int(choice.rows[0])
        expected_s = float(choice.first_s_R[row])
        if table.in_flight_R[row]:
            return expected_s
        return expected_s / max(float(table.prompt_factor_R[row]), 1.0)

    def wait_s(self, tracked: Tracked, _: float) -> float:
        """How long one that waits is expected to wait."""
        tables = self._of[tracked.model]
        running = sum(int((table.in_flight_R * table.up_R).sum()) for table in tables.values())
        return self.services[tracked.model].wait_s(tracked, running)

    def _start_whole(self, tracked: Tracked, ask: Ask, choice: Choice, now_s: float) -> Dispatch:
        table = self._of[tracked.model]["both"]
        row = self._stay(tracked, ask, choice, now_s)
        row = self._pick(tracked, choice) if row is None else row
        load = table.dispatched(row, ask, choice, now_s)
        tracked.attempt += 1
        tracked.placed_s = now_s
        tracked.place = self._take(tracked, table.at(row), load)
        if tracked.arrived.session is not None:
            self._sessions.went(tracked.arrived.session, tracked.place.replica)
        return Dispatch(
            request=tracked.request,
            attempt=tracked.attempt,
            replica=tracked.place.replica,
            epoch=tracked.place.epoch,
            predicted_first_token_s=load.first_token_s,
            predicted_token_s=load.token_s,
            continues_after_tokens=tracked.sent_tokens,
        )

    def _stay(self, tracked: Tracked, ask: Ask, choice: Choice, now_s: float) -> int | None:
        """The row of the replica that had the session before, while it is hardly worse than the best; else None."""
        session = tracked.arrived.session
        name = None if session is None else self._sessions.last(session)
        there = None if name is None else self._health.replicas.get(name)
        table = self._of[tracked.model]["both"]
        if there is None or not there.is_up or there.table is not table:
            return None
        row = there.row
        if not (table.takes(row, ask, now_s) and self._may_go_to(row, tracked, ask, table)):
            return None
        best_s, there_s = (
            float(choice.first_s_R[at] + ask.output_tokens * choice.token_s_R[at])
            for at in (choice.rows[0], row)
        )
        return row if there_s <= (1 + self._stay_fraction) * best_s else None

    def _may_go_to(self, row: int, tracked: Tracked, ask: Ask, table: ReplicaTable) -> bool:
        return _may_go_anywhere(tracked) or bool(self._allowed(tracked, ask, table)[row])

    def _start_prompt(self, tracked: Tracked, ask: Ask, choice: Choice, now_s: float) -> Prefill:
        table = self._of[tracked.model]["prefill"]
        row = self._pick(tracked, choice)
        load = table.dispatched(row, pairing.prompt_of(ask), choice, now_s)
        tracked.attempt += 1
        tracked.phase = "prefill"
        tracked.placed_s = now_s
        tracked.place = self._take(tracked, table.at(row), load)
        return Prefill(
            request=tracked.request,
            attempt=tracked.attempt,
            replica=tracked.place.replica,
            epoch=tracked.place.epoch,
        )

    def _best_pair(self, tracked: Tracked, ask: Ask, closed_R: Rows, now_s: float) -> Choice | None:
        """Where the prompt's end would come first, among prefill replicas with room; None without one."""
        table = self._of[tracked.model]["prefill"]
        if not table.most_limit_tokens:  # none is up
            return None
        prompt = pairing.prompt_of(ask)
        among_R = self._prompt_rows(tracked, ask) & pairing.with_room(table, prompt)
        choice = table.best(prompt, among_R & ~closed_R, now_s)
        return choice if len(choice.rows) else None

    def _prompt_rows(self, tracked: Tracked, ask: Ask) -> Rows:
        """Prefill rows that may take the prompt and hand its cache to a decode replica that may take it."""
        tables = self._of[tracked.model]
        able_R = self._allowed(tracked, ask, tables["decode"])
        may_R = self._allowed(tracked, pairing.prompt_of(ask), tables["prefill"])
        return may_R & pairing.senders(tables["prefill"], tables["decode"], able_R)

    def _pair_s(self, tracked: Tracked, ask: Ask, pair: Choice, now_s: float) -> float:
        """When a request ends that is decoded apart, those who hold a cache already shared out over all that decode."""
        tables = self._of[tracked.model]
        row = int(pair.rows[0])
        able_R = self._allowed(tracked, ask, tables["decode"])
        able_R &= pairing.takers(tables["decode"], int(tables["prefill"].to_pools_R[row]))
        cache = pairing.Cache.on(tables["prefill"], row, ask.input_tokens)
        choice = pairing.decode_choice(tables["decode"], ask, able_R, cache, now_s)
        queued = len(self.services[tracked.model].held)
        slots = int((tables["decode"].slots_R * tables["decode"].up_R).sum())
        alone_s = float(pair.first_s_R[row]) + pairing.finish_s(choice, ask)
        answer_s = ask.output_tokens * float(choice.token_s_R[int(choice.rows[0])])
        return alone_s + queued / slots * answer_s

    # ---- caches of computed prompts

    def hold(self, tracked: Tracked, kv_tokens: int, now_s: float) -> None:
        """The prompt is computed; its cache waits for a decode replica."""
        assert tracked.place is not None
        pairing.held(self._of[tracked.model]["prefill"], tracked.place.load, now_s)
        tracked.phase = "held"
        tracked.kv_tokens = kv_tokens
        self.services[tracked.model].held.add(tracked)

    def hand_over(self, service: Service, now_s: float) -> list[TransferKv]:
        """Send caches on, in turn: a decode replica without room for one that may go there is not given to those behind it."""
        transfers: list[TransferKv] = []
        if not service.held:
            return transfers
        table = self._of[service.settings.model]["decode"]
        closed_R = np.zeros_like(table.up_R)
        for tracked in service.held:
            if not table.has_room(now_s) or not (table.up_R & ~closed_R).any():
                break
            ask = self._ask(tracked)
            able_R = self._decode_rows(tracked, ask)
            choice = self._best_decode(tracked, ask, able_R & ~closed_R, now_s)
            if len(choice.rows):
                service.held.remove(tracked)
                transfers.append(self._transfer(tracked, ask, choice))
                tracked.kv_wait_s = self._kv_wait_s
                tracked.kv_deadline_s = now_s + tracked.kv_wait_s
                service.moving.add(tracked)
            else:
                closed_R |= able_R
        return transfers

    def _decode_rows(self, tracked: Tracked, ask: Ask) -> Rows:
        """Decode rows that may take the request from where its cache is."""
        tables = self._of[tracked.model]
        assert tracked.place is not None
        to_pools = int(tables["prefill"].to_pools_R[tracked.place.load.row])
        able_R = self._allowed(tracked, ask, tables["decode"])
        return able_R & pairing.takers(tables["decode"], to_pools)

    def _best_decode(self, tracked: Tracked, ask: Ask, among_R: Rows, now_s: float) -> Choice:
        tables = self._of[tracked.model]
        assert tracked.place is not None
        cache = pairing.Cache.on(tables["prefill"], tracked.place.load.row, tracked.kv_tokens)
        table = tables["decode"]
        open_R = among_R & pairing.with_room(table, ask) & table.open(now_s)
        return pairing.decode_choice(table, ask, open_R, cache, now_s)

    def _transfer(self, tracked: Tracked, ask: Ask, choice: Choice) -> TransferKv:
        tables = self._of[tracked.model]
        row = self._pick(tracked, choice)
        load = pairing.reserved(tables["decode"], row, ask, choice)
        source = tracked.place
        assert source is not None
        tables["prefill"].moving_R[source.load.row] += 1
        tables["decode"].moving_R[row] += 1
        tracked.phase, tracked.source = "transfer", source
        tracked.place = self._take(tracked, tables["decode"].at(row), load)
        return TransferKv(
            request=tracked.request,
            attempt=tracked.attempt,
            replica=tracked.place.replica,
            epoch=tracked.place.epoch,
            source=source.replica,
            source_epoch=source.epoch,
        )

    def arrived(self, tracked: Tracked, now_s: float) -> Decode:
        """The cache is where it is decoded, and its source is rid of it."""
        tables = self._of[tracked.model]
        assert tracked.place is not None
        self._end_transfer(tracked)
        pairing.begun(tables["decode"], tracked.place.load, now_s)
        tracked.phase = "decode"
        return Decode(
            request=tracked.request,
            attempt=tracked.attempt,
            replica=tracked.place.replica,
            epoch=tracked.place.epoch,
        )

    def _end_transfer(self, tracked: Tracked) -> None:
        tables = self._of[tracked.model]
        source, place = tracked.source, tracked.place
        assert source is not None
        assert place is not None
        tables["prefill"].moving_R[source.load.row] -= 1
        tables["decode"].moving_R[place.load.row] -= 1
        pairing.released(tables["prefill"], source.load)
        del self._health.replicas[source.replica].requests[tracked.request]
        tracked.source = None
        moving = self.services[tracked.model].moving
        if tracked in moving:
            moving.remove(tracked)

    # ---- what both have in common

    def leave(self, tracked: Tracked, now_s: float) -> Replica:
        """Take the request off all its replicas; returned is the one its words come from."""
        if tracked.phase == "transfer":
            self._end_transfer(tracked)
        place = tracked.place
        assert place is not None, f"request {tracked.request} runs nowhere"
        replica = self._health.replicas[place.replica]
        table = replica.table
        if tracked.phase == "held":
            self.withdraw(tracked)
            pairing.released(table, place.load)
        else:
            if not tracked.is_streaming and tracked.phase != "transfer":
                table.prompt_given_up(place.load, now_s)
            table.left(place.load)
        tracked.place, tracked.phase = None, "whole"
        del replica.requests[tracked.request]
        return replica

    def next_change_s(self, now_s: float) -> float:
        """When time alone will change something for those who wait; infinite when it will not."""
        times = [math.inf]
        for model, service in self.services.items():
            if not service.has_waiting:
                continue
            tables = self._of[model]
            if service.queue:
                times += [service.queue.next_deadline_s(), tables["both"].next_unblock_s(now_s)]
                times += [tables["prefill"].next_unblock_s(now_s)]
            if service.held:
                times += [service.held.next_deadline_s(), tables["decode"].next_unblock_s(now_s)]
            if service.moving:
                times.append(service.moving.next_deadline_s())
        return min(times)

    def has_room_for(self, tracked: Tracked, now_s: float) -> bool:
        """Whether a replica could take the request now, or its cache."""
        ask, tables = self._ask(tracked), self._of[tracked.model]
        if tracked.phase == "held":
            able_R = self._decode_rows(tracked, ask)
            return len(self._best_decode(tracked, ask, able_R, now_s).rows) > 0
        whole = tables["both"].best(ask, self._allowed(tracked, ask, tables["both"]), now_s)
        closed_R = np.zeros_like(tables["prefill"].up_R)
        return bool(len(whole.rows)) or self._best_pair(tracked, ask, closed_R, now_s) is not None

    def _has_slot(self, service: Service, closed_R: Rows, now_s: float) -> bool:
        tables = self._of[service.settings.model]
        prefill = tables["prefill"]
        if prefill.most_limit_tokens and (prefill.open(now_s) & ~closed_R).any():
            return True
        return tables["both"].has_room(now_s)

    def _pick(self, tracked: Tracked, choice: Choice) -> int:
        rows = choice.rows
        if len(rows) == 1:
            return int(rows[0])
        return int(rows[pick(self._seed, tracked.request, tracked.attempt, len(rows))])

    def _take(self, tracked: Tracked, up: ReplicaUp, load: Load) -> Place:
        self._health.replicas[up.replica].requests[tracked.request] = tracked
        return Place(replica=up.replica, epoch=up.epoch, load=load)

    def _ask(self, tracked: Tracked) -> Ask:
        tables = self._of[tracked.model]
        apart = min(tables["prefill"].most_limit_tokens, tables["decode"].most_limit_tokens)
        most_tokens = max(tables["both"].most_limit_tokens, apart)
        return self.services[tracked.model].ask(tracked.arrived, most_tokens, tracked.sent_tokens)

    def _allowed(self, tracked: Tracked, ask: Ask, table: ReplicaTable) -> Rows:
        """Rows that may take the request: its pin if it has one; else not where it failed, if there is any other."""
        fits_R = self._fitting(tracked, ask, table)
        pin = tracked.arrived.only_replica
        pinned = None if pin is None else self._health.replicas[pin]
        if pinned is not None and not self._is_beside(pinned, table):
            only_R = np.zeros_like(fits_R)
            if pinned.is_up and pinned.table is table:
                only_R[pinned.row] = fits_R[pinned.row]
            return only_R
        if not tracked.failures:
            return fits_R
        for failures in (tracked.failures, tracked.failures[-1:]):
            others_R = fits_R.copy()
            for failure in failures:
                there = self._health.current(failure.replica, failure.epoch)
                if there is not None and there.table is table:
                    others_R[there.row] = False
            if others_R.any():
                return others_R
        return fits_R

    def could_continue(self, tracked: Tracked) -> bool:
        """Whether any replica that has been up, the lost one's next start included, can go on with the request's answer."""
        pin = tracked.arrived.only_replica
        return any(
            replica.up.model == tracked.model
            and replica.up.role == "both"
            and pin in (None, replica.name)
            and _continues(replica.up, tracked)
            for replica in self._health.replicas.values()
        )

    def _fitting(self, tracked: Tracked, ask: Ask, table: ReplicaTable) -> Rows:
        """Rows whose context takes it; of an answer that goes on, whole replicas that can go on with it."""
        fits_R = table.fits(ask)
        if tracked.continued:
            is_whole = table is self._of[tracked.model]["both"]
            for row, up in enumerate(table.up):
                fits_R[row] &= is_whole and up is not None and _continues(up, tracked)
        return fits_R

    def _is_beside(self, pinned: Replica, table: ReplicaTable) -> bool:
        """Whether the table is of those that serve the other phase of what the pinned replica serves."""
        other: Role = "decode" if pinned.up.role == "prefill" else "prefill"
        is_apart = pinned.up.role != "both"
        return is_apart and self._health.tables[pinned.up.model, other] is table


def _continues(up: ReplicaUp, tracked: Tracked) -> bool:
    """Whether the replica goes on as the request wants it; exactly only within one build."""
    if tracked.arrived.continuation == "exact":
        return up.continues == "exact" and up.build == tracked.build
    return up.continues != "off"


def _may_go_anywhere(tracked: Tracked) -> bool:
    """Whether any replica with room may have it: it is not pinned, was let down nowhere, and begins its answer."""
    return tracked.arrived.only_replica is None and not tracked.failures and not tracked.continued


def _asks_as_much(ask: Ask, refused: Ask, prefill: ReplicaTable) -> bool:
    """Whether a request has no room where the other one had none; prefill replicas hold the prompt alone."""
    is_prompt_as_long = ask.input_tokens >= refused.input_tokens or not prefill.most_limit_tokens
    return is_prompt_as_long and ask.need_tokens >= refused.need_tokens
