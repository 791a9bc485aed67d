"""A story played: the live policy, real engine emulations, and between them a driver and a network that do what a bad day does.

The driver is what `serve` is to the policy: it carries out actions, loses patience with attempts (`serve.attempt`), drops an attempt at a retry, a
rejection or a cancellation (`serve.exchange`), and starts replicas again under the next epoch (`serve.supervise`). What crosses the network may be
lost, told twice, late and out of order; what the driver says of its own (arrivals, alarms, lost patience, clients that leave) is not. A
cancellation is a closed connection: it is late at worst. All chance is a hash of the story's seed and what it is about, so that
a shorter story goes on as the long one did.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from polypod.engine import EngineLimits, Progress, ReplicaEmulation
from polypod.engine.prefix import PrefixCache
from polypod.engine.replica import PLAIN
from polypod.policy import Policy
from polypod.policy.actions import (
    AnyAction,
    Cancel,
    Decode,
    Dispatch,
    Prefill,
    Reject,
    Retry,
    TransferKv,
    WakeAt,
)
from polypod.policy.events import (
    AnyEvent,
    ClientGone,
    FailureKind,
    FirstToken,
    KvArrived,
    KvLost,
    LoadReported,
    PrefillFinished,
    ReplicaBusy,
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFailed,
    RequestFinished,
    StepObserved,
    Woke,
)
from polypod.policy.lifecycle import Validator
from tests.faults.oracle import Oracle, hold
from tests.faults.story import BLOCK_TOKENS, CALM_S, Asked, Story, Trouble, another

MASK = 2**64 - 1
BEAT_S = 1.5
"""How often the supervisor looks whether the policy knows what is up."""
DETECT_S = 0.4
RESTART_S = 1.0
TRIES = 40
"""Of the calm: attempts and waits that a request may still need, and all that is left of a clock that went back."""

Start = Dispatch | Prefill | Decode


@dataclass(slots=True, eq=False)
class Site:
    """One start of a replica, as it is in truth."""

    up: ReplicaUp
    emulation: ReplicaEmulation
    is_alive: bool = True
    hangs: bool = False
    due_s: float = float("inf")
    tickets: dict[int, Start] = field(default_factory=dict)
    of_request: dict[tuple[int, int], int] = field(default_factory=dict)  # by request and attempt
    refused: set[tuple[int, int]] = field(default_factory=set)  # seen, or cancelled before
    last_ticket: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came of a story."""

    events: int
    outcomes: dict[int, str]
    log: tuple[tuple[AnyEvent, list[AnyAction]], ...]


def play(story: Story) -> Played:
    """Play the story to its end. Raises `AssertionError` at the first law that does not hold."""
    world = World(story)
    world.run()
    return Played(events=len(world.log), outcomes=world.oracle.outcomes, log=tuple(world.log))


class World:
    def __init__(self, story: Story) -> None:
        self.story = story
        self.now_s = 0.0
        self.log: list[tuple[AnyEvent, list[AnyAction]]] = []
        self.policy = Policy(story.settings, seed=story.seed)
        self.validator = Validator()
        self.oracle = Oracle(story.settings)
        self._asked = {one.number: one for one in story.requests}
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._entries = 0
        self._offset_s = 100.0  # of the driver's clock
        self._sites: dict[str, Site] = {}
        self._ups = {up.replica: up for up in story.ups}  # the latest start of each, told or not
        self._going: dict[int, AnyAction] = {}  # what the driver waits for
        self._places: dict[int, list[tuple[str, int]]] = {}  # where it sent something of a request
        self._sent_tokens: dict[int, int] = {}  # that clients have from attempts that broke off
        self._counts = {"in prefill": 0, "in transfer": 0, "after first": 0}
        self._words = 0
        self._bound_s = 0.0
        self._probes = 0

    def run(self) -> None:
        story = self.story
        for up in story.ups:
            self._start(up)
        for asked in story.requests:
            self._at(asked.at_s, self._arrive, asked)
        for trouble in story.troubles:
            if trouble.what not in self._counts:
                self._at(trouble.at_s, self._strike, trouble)
        self._at(BEAT_S, self._beat)
        self._at(CALM_S, self._calm)
        while self._agenda:
            self.now_s, _, do, what = heapq.heappop(self._agenda)
            do(*what)
            hold(self.now_s < CALM_S or not self.oracle.live or self.now_s < self._bound_s, f"still open {self.now_s - CALM_S} s after the last fault: {self.oracle.live}")  # fmt: skip
        self._check_end()

    # ---- time and chance

    def clock_s(self) -> float:
        return self.now_s + self._offset_s

    @property
    def is_calm(self) -> bool:
        return self.now_s >= CALM_S

    def _at(self, at_s: float, do: Callable[..., None], *what: Any) -> None:
        self._entries += 1
        heapq.heappush(self._agenda, (at_s, self._entries, do, what))

    def _roll(self, *about: int) -> float:
        """As good as at random from 0 to 1, the same for the same numbers."""
        mixed = hash((self.story.seed, *about)) & MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
        return ((mixed ^ (mixed >> 31)) >> 11) / 2**53

    def _happens(self, share: float, *about: int) -> bool:
        return not self.is_calm and self._roll(*about) < share

    def _late_s(self, *about: int) -> float:
        weather = self.story.weather
        if self._happens(weather.late, 1, *about):
            return weather.late_s * self._roll(2, *about)
        return 0.002 * self._roll(3, *about)

    # ---- words to the policy

    def tell(self, event: AnyEvent) -> None:
        """The policy is told; its answer is checked, and carried out."""
        actions = self.policy.handle(event)
        self.log.append((event, actions))
        self.validator.feed(event, actions)
        self.policy.check()
        self.oracle.feed(event, actions)
        for action in actions:
            self._carry_out(action)
        if isinstance(event, RequestFinished | ClientGone) and event.request not in self.oracle.live:  # fmt: skip
            self._drop(event.request)

    def _say(self, event: AnyEvent, after_s: float = 0.0) -> None:
        """A word that crosses the network."""
        self._words += 1
        about = (10, _code(event), self._number_of(event), self._words)
        copies = 0 if self._happens(self.story.weather.lost, 4, *about) else 1
        copies += copies * self._happens(self.story.weather.twice, 5, *about)
        for copy in range(copies):
            self._at(self.now_s + after_s + self._late_s(6, copy, *about), self._hear, event)

    def _hear(self, event: AnyEvent) -> None:
        if isinstance(event, FirstToken) and self.oracle.is_current(event):
            self._count("after first", event.replica)
        self.tell(event)

    def _number_of(self, event: AnyEvent) -> int:
        return int(getattr(event, "request", 0))

    def _of(self, start: Any) -> dict[str, Any]:
        """The fields of a word about an attempt."""
        return {
            "at_s": self.clock_s(), "request": start.request, "attempt": start.attempt,
            "replica": start.replica, "epoch": start.epoch,
        }  # fmt: skip

    # ---- clients

    def _arrive(self, asked: Asked) -> None:
        event = RequestArrived(
            at_s=self.clock_s(), request=asked.number, model=asked.model, input_tokens=asked.input_tokens,
            input_is_exact=asked.input_is_exact, max_output_tokens=asked.max_output_tokens, is_streamed=asked.is_streamed,
            tenant=asked.tenant, priority=asked.priority, prefix_hashes=asked.prefix_hashes, only_replica=asked.only_replica,
            continuation=asked.continuation, session=asked.session,
        )  # fmt: skip
        self.tell(event)
        if asked.number in self.oracle.live and self._happens(0.1, 7, asked.number):
            self.tell(event)
        if asked.patience_s is not None:
            self._at(self.now_s + asked.patience_s, self._leave, asked.number)

    def _leave(self, request: int) -> None:
        if request in self.oracle.live or self._happens(0.3, 8, request):
            self.tell(ClientGone(at_s=self.clock_s(), request=request))

    # ---- what the driver does

    def _carry_out(self, action: AnyAction) -> None:
        match action:
            case Dispatch() | Prefill() | Decode() | TransferKv():
                self._going[action.request] = action
                if isinstance(action, Dispatch):
                    self._sent_tokens[action.request] = action.continues_after_tokens
                self._places.setdefault(action.request, []).append((action.replica, action.epoch))
                self._send(action)
                self._watch(action)
            case Cancel():
                self._hang_up(action.request, action.attempt, (action.replica, action.epoch))
                self._going.pop(action.request, None)
            case Retry():
                self._drop(action.request)
            case Reject():
                is_told = action.code in ("quarantined", "queue_timeout", "no_replica")
                self._drop(action.request, hangs_up=not is_told or action.code == "quarantined")
            case WakeAt():
                self._set_alarm(action.at_s)
            case _:
                hold(is_so=False, law=f"{action} is none that this driver knows")

    def _send(self, action: Start | TransferKv) -> None:
        about = (11, _code(action), action.request, action.attempt)
        copies = 0 if self._happens(self.story.weather.lost, 4, *about) else 1
        copies += copies * self._happens(self.story.weather.twice, 5, *about)
        do = self._begin_transfer if isinstance(action, TransferKv) else self._begin
        for copy in range(copies):
            self._at(self.now_s + self._late_s(6, copy, *about), do, action)

    def _watch(self, action: Start | TransferKv) -> None:
        patience = self.story.patience
        limit_s = patience.cache_s if isinstance(action, TransferKv) else patience.answer_s
        self._at(self.now_s + limit_s, self._lose_patience, action)

    def _lose_patience(self, action: Start | TransferKv) -> None:
        if self._going.get(action.request) is not action:
            return
        life = self.oracle.live.get(action.request)
        if life is None or life.phase == "held":
            return
        if isinstance(action, TransferKv):
            self.tell(KvLost(**self._of(action)))
        else:
            sent = self._sent_now(action.request, action.attempt)
            self.tell(RequestFailed(**self._of(action), kind="timeout", detail="silence", sent_tokens=sent))  # fmt: skip

    def _sent_now(self, request: int, attempt: int) -> int:
        """Tokens of the answer that the client has, as the driver counts them."""
        before, life = self._sent_tokens.get(request, 0), self.oracle.live.get(request)
        if life is None or not life.streams or life.attempt != attempt:
            return before
        most = self._asked[request].output_tokens - before
        return before + int(max(most, 1) * self._roll(32, request, attempt))

    def _drop(self, request: int, *, hangs_up: bool = True) -> None:
        """Stop all there is of a request's attempt."""
        going = self._going.pop(request, None)
        places = self._places.pop(request, [])
        if hangs_up and going is not None:
            for start in places:
                self._hang_up(request, int(getattr(going, "attempt", 0)), start)

    def _hang_up(self, request: int, attempt: int, start: tuple[str, int]) -> None:
        after_s = self._late_s(9, request, attempt, start[1])
        self._at(self.now_s + after_s, self._stop, request, attempt, start)

    def _set_alarm(self, at_s: float) -> None:
        """A timer rings a moment late, or a little early."""
        early_s = 0.9e-3 if self._roll(12, int(at_s * 1e6)) < 0.2 else -1e-6
        delay_s = max(at_s - self.clock_s() - early_s, 1e-4)
        self._at(self.now_s + delay_s, self._ring, at_s, early_s)

    def _ring(self, at_s: float, early_s: float) -> None:
        if self.clock_s() < at_s - max(early_s, 0.0) - 1e-9:
            self._set_alarm(at_s)  # the clock went back
            return
        if self.oracle.live or self.now_s < CALM_S:
            self.tell(Woke(at_s=self.clock_s()))

    # ---- engines

    def _site(self, start: tuple[str, int]) -> Site | None:
        site = self._sites.get(start[0])
        return site if site is not None and site.is_alive and site.up.epoch == start[1] else None

    def _begin(self, action: Start) -> None:
        site = self._site((action.replica, action.epoch))
        if site is None:
            self._fail(action, "refused")
            return
        key = (action.request, action.attempt)
        if key in site.refused:
            return
        site.refused.add(key)
        if not self._turned_away(action):
            self._submit(site, action)
            self._count("in prefill", action.replica)
            self._sometimes_break(site, action)

    def _turned_away(self, action: Start) -> bool:
        """Whether the engine answers that it is full, that the request is bad, or that it is itself."""
        weather, about = self.story.weather, (action.request, action.attempt, _code(action))
        if self._happens(weather.busy, 20, *about):
            after_s = (None, 0.0, 0.7)[int(3 * self._roll(21, *about))]
            sent = self._sent_now(action.request, action.attempt)
            self._say(ReplicaBusy(**self._of(action), retry_after_s=after_s, sent_tokens=sent))
        elif self._happens(weather.client, 22, *about):
            self._fail(action, "client", 400)
        elif self._happens(weather.engine, 23, *about):
            self._fail(action, "engine", 500)
        else:
            return False
        return True

    def _fail(self, action: Any, kind: FailureKind, status: int | None = None) -> None:
        sent = self._sent_now(action.request, action.attempt)
        self._say(RequestFailed(**self._of(action), kind=kind, status=status, sent_tokens=sent))

    def _submit(self, site: Site, action: Start) -> None:
        asked, emulation = self._asked[action.request], site.emulation
        self._advance(site)
        site.last_ticket += 1
        ticket = site.last_ticket
        sent = action.continues_after_tokens if isinstance(action, Dispatch) else 0
        prompt: dict[str, Any] = {"request": ticket, "prompt_tokens": asked.input_tokens + sent}
        answer = max(_answer_tokens(asked, site.up) - sent, 1)
        try:
            if isinstance(action, Prefill):
                emulation.prefill(self.now_s, **prompt, hashes=asked.prefix_hashes)
            elif isinstance(action, Dispatch):
                emulation.submit(self.now_s, **prompt, output_tokens=answer, hashes=asked.prefix_hashes)  # fmt: skip
            else:
                emulation.decode(self.now_s, **prompt, output_tokens=answer)
        except ValueError:
            self._fail(action, "client", 400)
            return
        site.tickets[ticket] = action
        site.of_request[action.request, action.attempt] = ticket
        self._look(site)

    def _sometimes_break(self, site: Site, action: Start) -> None:
        about = (action.request, action.attempt, _code(action))
        if self._happens(self.story.weather.broken, 24, *about):
            self._at(self.now_s + self._roll(25, *about), self._break, site, action)

    def _break(self, site: Site, action: Start) -> None:
        """A connection breaks; the engine sees to it a little later."""
        if site.is_alive and (action.request, action.attempt) in site.of_request:
            self._fail(action, "lost")
            self._hang_up(action.request, action.attempt, (action.replica, action.epoch))

    def _stop(self, request: int, attempt: int, start: tuple[str, int]) -> None:
        site = self._site(start)
        if site is None:
            return
        site.refused.add((request, attempt))
        ticket = site.of_request.pop((request, attempt), None)
        if ticket is not None:
            self._advance(site)
            site.tickets.pop(ticket, None)
            site.emulation.cancel(self.now_s, ticket)
            self._look(site)

    def _look(self, site: Site) -> None:
        """Look at it again when its batch changes; and whether its books are right now."""
        self._check_engine(site)
        next_s = site.emulation.next_s
        if next_s < site.due_s:
            site.due_s = next_s
            self._at(max(next_s, self.now_s), self._turn, site)

    def _turn(self, site: Site) -> None:
        if site.is_alive and site.due_s <= self.now_s:
            site.due_s = float("inf")
            self._advance(site)
            self._look(site)

    def _advance(self, site: Site) -> None:
        for progress in site.emulation.advance(self.now_s):
            action = site.tickets.get(progress.request)
            if action is not None:
                self._report(site, progress, action)

    def _report(self, site: Site, progress: Progress, action: Start) -> None:
        of, asked = self._of(action), self._asked[action.request]
        if progress.kind == "prefilled":
            self._say(PrefillFinished(**of, kv_tokens=asked.input_tokens))
        elif progress.kind == "first":
            if asked.is_streamed:
                self._say(FirstToken(**of))
        else:
            del site.tickets[progress.request]
            site.of_request.pop((action.request, action.attempt), None)
            sent = action.continues_after_tokens if isinstance(action, Dispatch) else 0
            answer = max(_answer_tokens(asked, site.up), sent + 1)
            self._say(RequestFinished(**of, input_tokens=asked.input_tokens, output_tokens=answer))
        self._gossip(site, action)

    def _gossip(self, site: Site, action: Start) -> None:
        about = (action.request, action.attempt, self._words)
        if self._happens(0.1, 26, *about):
            of = {"at_s": self.clock_s(), "replica": site.up.replica, "epoch": site.up.epoch}
            tokens = int(200 * self._roll(27, *about))
            self._say(StepObserved(**of, prompt_tokens=tokens * (tokens % 2), sequences=tokens % 4, kv_tokens=tokens, step_s=tokens / 5000))  # fmt: skip
            self._say(LoadReported(**of, gateway="gh"[tokens % 2], running=tokens % 3, queued_prompt_tokens=tokens))  # fmt: skip

    # ---- caches on their way

    def _begin_transfer(self, action: TransferKv) -> None:
        source = self._site((action.source, action.source_epoch))
        key = (action.request, action.attempt)
        if source is None or key not in source.of_request:
            self._say(KvLost(**self._of(action)))
            return
        self._count("in transfer", action.source if self._roll(30, action.request) < 0.5 else action.replica)  # fmt: skip
        self._at(self.now_s + 0.3 * self._roll(31, *key), self._end_transfer, action)

    def _end_transfer(self, action: TransferKv) -> None:
        source = self._site((action.source, action.source_epoch))
        if source is not None and (action.request, action.attempt) not in source.of_request:
            return  # it was cancelled, or has arrived before
        if source is None or self._site((action.replica, action.epoch)) is None:
            self._say(KvLost(**self._of(action)))
            return
        self._stop(action.request, action.attempt, (action.source, action.source_epoch))
        self._say(KvArrived(**self._of(action)))

    # ---- replicas come and go

    def _start(self, up: ReplicaUp) -> None:
        limits = EngineLimits(
            max_sequences=up.max_sequences, max_step_tokens=up.max_step_tokens,
            kv_capacity_tokens=up.kv_capacity_tokens, behaviour=up.engine or PLAIN,
        )  # fmt: skip
        ranks = up.step_time.data_ranks
        prefix = PrefixCache(block_tokens=BLOCK_TOKENS, ranks=ranks) if self.story.has_prefixes else None  # fmt: skip
        self._ups[up.replica] = up
        self._sites[up.replica] = Site(up, ReplicaEmulation(up.step_time, limits, prefix=prefix))
        self._tell_up(up)

    def _tell_up(self, up: ReplicaUp) -> None:
        self._say(msgspec.structs.replace(up, at_s=self.clock_s()))

    def _kill(self, site: Site, reason: str) -> None:
        if not site.is_alive:
            return
        self._advance(site)
        site.is_alive = False
        for action in list(site.tickets.values()):
            if not self._happens(self.story.weather.silent, 40, action.request, action.attempt):
                self._fail(action, "lost")
        site.tickets.clear()
        self._at(self.now_s + DETECT_S * self._roll(41, self._entries), self._notice, site, reason)

    def _notice(self, site: Site, reason: str) -> None:
        up = site.up
        self._say(ReplicaDown(at_s=self.clock_s(), replica=up.replica, epoch=up.epoch, reason=reason, sent_tokens=self._sent_there(up)))  # fmt: skip
        after_s = RESTART_S * (0.1 + self._roll(42, self._entries))
        self._at(self.now_s + after_s, self._restart, up.replica, up.epoch + 1)

    def _sent_there(self, up: ReplicaUp) -> tuple[tuple[int, int], ...]:
        start = (up.replica, up.epoch)
        return tuple(
            (request, self._sent_now(request, life.attempt))
            for request, life in self.oracle.live.items()
            if start in life.places and life.streams
        )

    def _restart(self, name: str, epoch: int) -> None:
        if self._ups[name].epoch >= epoch:
            return
        up = another(self._ups[name], self._roll(43, epoch))
        self._start(msgspec.structs.replace(up, epoch=epoch))

    def _beat(self) -> None:
        """The supervisor tells again what the policy has not understood."""
        for name, site in self._sites.items():
            known = self.oracle.up.get(name)
            if site.is_alive and self.oracle.epochs.get(name, 0) < site.up.epoch:
                self._tell_up(site.up)
            elif known is not None and not (site.is_alive and site.up.epoch == known.up.epoch):
                self._say(ReplicaDown(at_s=self.clock_s(), replica=name, epoch=known.up.epoch, reason="looked again"))  # fmt: skip
        if not self.is_calm or self.oracle.live:
            self._at(self.now_s + BEAT_S, self._beat)

    # ---- what goes wrong

    def _named(self, number: int) -> Site:
        names = list(self._ups)
        return self._sites[names[number % len(names)]]

    def _count(self, moment: Literal["in prefill", "in transfer", "after first"], replica: str) -> None:  # fmt: skip
        """The n-th moment of a kind may be the worst one."""
        self._counts[moment] += 1
        for trouble in self.story.troubles:
            if trouble.what == moment and trouble.nth == self._counts[moment] and not self.is_calm:
                self._at(self.now_s + 0.15 * trouble.extent**2, self._kill, self._sites[replica], moment)  # fmt: skip

    def _strike(self, trouble: Trouble) -> None:
        _TROUBLES[trouble.what](self, trouble, self._named(trouble.replica))

    def _hang(self, trouble: Trouble, site: Site) -> None:
        if not site.is_alive:
            return
        self._advance(site)
        site.emulation.hang()
        site.hangs = True
        if not self._happens(self.story.weather.unnoticed, 44, trouble.number):
            self._at(self.now_s + 3 * trouble.extent, self._kill, site, "it hangs")

    def _kill_one(self, trouble: Trouble, site: Site) -> None:
        self._kill(site, trouble.what)

    def _kill_two(self, trouble: Trouble, site: Site) -> None:
        self._kill(site, trouble.what)
        self._kill(self._named(trouble.replica + 1), trouble.what)

    def _kill_again(self, trouble: Trouble, site: Site) -> None:
        """Dead, and dead again as soon as it is back: its start may be heard of after its end, or never."""
        self._kill(site, trouble.what)
        for again in range(3):
            self._at(self.now_s + (again + trouble.extent) * RESTART_S, self._kill_latest, site.up.replica)  # fmt: skip

    def _kill_latest(self, name: str) -> None:
        self._kill(self._sites[name], "again")

    def _slow(self, trouble: Trouble, site: Site) -> None:
        if site.is_alive and not site.hangs:
            self._advance(site)
            site.emulation.speed(self.now_s, 1 + 20 * trouble.extent)
            self._look(site)

    def _flap(self, trouble: Trouble, site: Site) -> None:
        """Said to be down and up again, with nothing wrong."""
        up = site.up
        self._say(ReplicaDown(at_s=self.clock_s(), replica=up.replica, epoch=up.epoch, reason="flap"))  # fmt: skip
        self._kill(site, "flap")

    def _turn_clock(self, trouble: Trouble, site: Site) -> None:
        self._offset_s += 80 * (trouble.extent - 0.3) if trouble.extent > 0.3 else -8 * trouble.extent  # fmt: skip

    def _old_up(self, trouble: Trouble, site: Site) -> None:
        old = max(site.up.epoch - int(3 * trouble.extent), 1)
        self._say(msgspec.structs.replace(site.up, at_s=self.clock_s(), epoch=old))

    def _old_down(self, trouble: Trouble, site: Site) -> None:
        self._say(ReplicaDown(at_s=self.clock_s(), replica=site.up.replica, epoch=site.up.epoch - 1, reason="old"))  # fmt: skip

    def _flood(self, trouble: Trouble, site: Site) -> None:
        """Every word of late is said again."""
        for event, _ in self.log[-10:]:
            if not isinstance(event, RequestArrived | Woke):
                self._say(event, trouble.extent)

    def _calm(self) -> None:
        """Nothing breaks any more; what hangs is started again, what is slow is fast."""
        for site in self._sites.values():
            if site.hangs:
                self._kill(site, "it hangs")
            elif site.is_alive:
                self._advance(site)
                site.emulation.speed(self.now_s, 1.0)
                self._look(site)
        settings, patience = self.story.settings, self.story.patience
        attempt_s = 2 * settings.queue_wait_s + 2 * patience.answer_s + patience.cache_s
        behind_s = max(self.oracle.now_s - self.clock_s(), 0.0)
        late_s = self.story.weather.late_s + DETECT_S + RESTART_S + BEAT_S
        self._bound_s = (
            CALM_S
            + behind_s
            + late_s
            + (settings.max_attempts + settings.max_continuations) * attempt_s
        )

    # ---- what must be so

    def _check_engine(self, site: Site) -> None:
        """No more cache and no more sequences than there are."""
        emulation, ranks = site.emulation, site.up.step_time.data_ranks
        capacity, shared, idle = site.up.kv_capacity_tokens, 0, 0
        if emulation.prefix is not None:
            shared = sum(emulation.prefix.shared_tokens(rank) for rank in range(ranks))
            idle = sum(emulation.prefix.idle_tokens(rank) for rank in range(ranks))
        used = emulation.kv_tokens - shared
        hold(0 <= used <= capacity, f"{site.up.replica} has {used} tokens cached, and room for {capacity}")  # fmt: skip
        hold(used + idle <= capacity or not emulation.running, f"{site.up.replica} keeps {idle} beside {used} of {capacity}")  # fmt: skip
        slots = max(site.up.max_sequences // ranks, 1) * ranks
        hold(emulation.running <= slots, f"{site.up.replica} runs {emulation.running} of {slots}")

    def _check_end(self) -> None:
        hold(not self.oracle.live, f"never ended: {self.oracle.live}")
        hold(not self.validator.open, f"never ended: {self.validator.open}")
        hold(len(self.oracle.outcomes) == len(self.story.requests), "some were never heard of")
        hold(self.validator.ended == len(self.story.requests), "some ended without an end")
        hold(not any(self.policy.queues().values()), f"still queued: {self.policy.queues()}")
        for site in self._sites.values():
            left = (site.emulation.running, site.emulation.waiting, site.emulation.kv_tokens)
            hold(not site.is_alive or left == (0, 0, 0), f"{site.up.replica} still has {left} of nobody")  # fmt: skip
        self._check_it_serves()

    def _check_it_serves(self) -> None:
        """When all is over, and long enough, the fleet takes as much as it did on its first day."""
        self._offset_s += 100.0 + max(self.oracle.now_s - self.clock_s(), 0.0)
        for service in self.story.settings.services:
            up = [place for place in self.oracle.up.values() if place.up.model == service.model]
            hold(len(up) == sum(one.model == service.model for one in self.story.ups), f"{up} are up")  # fmt: skip
            for place in up:
                if place.up.role == "both" and self.story.settings.queue_requests:
                    self._fill(service.model, place.up.replica)

    def _fill(self, model: str, replica: str) -> None:
        """One request is taken at once, where other gateways say that they have nothing there."""
        of = {"at_s": self.clock_s(), "replica": replica, "epoch": self.oracle.up[replica].up.epoch}
        for gateway in "gh":
            self.policy.handle(
                LoadReported(**of, gateway=gateway, running=0, queued_prompt_tokens=0)
            )
        self._probes += 1
        request = 10_000 + self._probes
        event = RequestArrived(at_s=self.clock_s(), request=request, model=model, input_tokens=1, max_output_tokens=1, only_replica=replica)  # fmt: skip
        actions = self.policy.handle(event)
        is_taken = any(isinstance(action, Dispatch) for action in actions) or self._is_too_slow(model, replica)  # fmt: skip
        hold(is_taken, f"{replica} is idle, and takes nothing: {actions}")
        self.policy.handle(ClientGone(at_s=self.clock_s(), request=request))

    def _is_too_slow(self, model: str, replica: str) -> bool:
        """Whether the cost model itself says that the model's promise cannot be kept there, and is asked."""
        settings = self.story.settings
        limits_s = [one.first_token_limit_s for one in settings.services if one.model == model]
        own_s = self.oracle.up[replica].up.step_time.curve_s(1)
        return settings.admission == "slo" and own_s > (limits_s[0] or math.inf)


_TROUBLES: dict[str, Callable[[World, Trouble, Site], None]] = {
    "kill": World._kill_one,
    "kill two": World._kill_two,
    "while restarting": World._kill_again,
    "hang": World._hang,
    "slow": World._slow,
    "flap": World._flap,
    "clock": World._turn_clock,
    "old up": World._old_up,
    "old down": World._old_down,
    "flood": World._flood,
}


def _code(word: AnyEvent | AnyAction) -> int:
    return _CODES[type(word)]


_CODES = {
    kind: number
    for number, kind in enumerate(
        (
            FirstToken, RequestFinished, RequestFailed, ReplicaBusy, PrefillFinished, KvArrived, KvLost, ReplicaUp, ReplicaDown,
            StepObserved, LoadReported, ClientGone, Dispatch, Prefill, TransferKv, Decode,
        )
    )
}  # fmt: skip


def _answer_tokens(asked: Asked, up: ReplicaUp) -> int:
    context = min(up.context_tokens, up.kv_capacity_tokens // up.step_time.data_ranks)
    cuts = [asked.output_tokens, context - asked.input_tokens]
    cuts += [] if asked.max_output_tokens is None else [asked.max_output_tokens]
    return max(min(cuts), 1)


def replays(story: Story, log: Sequence[tuple[AnyEvent, list[AnyAction]]]) -> bool:
    """Whether a fresh policy gives the same answers."""
    fresh = Policy(story.settings, seed=story.seed)
    return all(fresh.handle(event) == actions for event, actions in log)
