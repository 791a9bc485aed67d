"""Laws that hold under any driver: one that fails, repeats itself, is late, loses replicas and caches, and changes its models and limits."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polypod.cost.steptime import StepTime
from polypod.errors import InputError
from polypod.policy import Policy, PolicySettings, ServiceSettings
from polypod.policy.actions import (
    AnyAction,
    Decode,
    Dispatch,
    Prefill,
    Reject,
    TransferKv,
    WakeAt,
)
from polypod.policy.events import (
    AnyEvent,
    ClientGone,
    FirstToken,
    KvArrived,
    KvLost,
    LoadReported,
    PrefillFinished,
    ReplicaBusy,
    ReplicaDown,
    ReplicaRetiring,
    ReplicaUp,
    RequestArrived,
    RequestFailed,
    RequestFinished,
    SettingsChanged,
    StepObserved,
    Woke,
)
from polypod.policy.lifecycle import Validator

STEP = StepTime(tokens=(1, 1000), seconds=(0.01, 0.11), kv_token_s=1e-7, pair_s=1e-9)
MODELS = ("m", "n", "unknown")
REPLICAS = ("a", "b", "c", "d")
KINDS = ("refused", "lost", "timeout", "engine", "client")
TOGETHER = ("both", "both", "both")
ROLES = (
    TOGETHER,
    ("prefill", "decode", "decode"),
    ("prefill", "prefill", "decode"),
    ("both", "prefill", "decode"),
)
"""Of replicas a, b and c, of the first model; the second has d."""

Start = Dispatch | Prefill | TransferKv | Decode
GOES_ON = ("running", "streaming", "prefilling", "prefilled", "transferring")


@dataclass
class Driver:
    """Does whatever it is told, as far as a driver can: numbers choose among what there is."""

    settings: PolicySettings
    seed: int = 0
    at: float = 0.0
    requests: int = 0
    log: list[tuple[AnyEvent, list[AnyAction]]] = field(default_factory=list)
    roles: tuple[str, str, str] = TOGETHER
    running: dict[int, Start] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    alarms: list[float] = field(default_factory=list)
    rejected: list[Reject] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy = Policy(self.settings, seed=self.seed)
        self.validator = Validator()
        self.models = {service.model for service in self.settings.services}

    def tell(self, event: AnyEvent) -> None:
        try:
            actions = self.policy.handle(event)
        except InputError:  # a replica of a model that left; it changes nothing
            assert isinstance(event, ReplicaUp)
            assert event.model not in self.models
            self.policy.check()
            return
        if isinstance(event, SettingsChanged):
            self.models = {service.model for service in event.settings.services}
        self.log.append((event, actions))
        self.validator.feed(event, actions)
        self.policy.check()
        for action in actions:
            if isinstance(action, Start):
                self.running[action.request] = action
            elif isinstance(action, WakeAt):
                self.alarms.append(action.at_s)
            elif isinstance(action, Reject):
                self.rejected.append(action)
        states = self.validator.open
        self.running = {
            request: start
            for request, start in self.running.items()
            if states.get(request) in GOES_ON
        }

    # ---- what can happen

    def arrive(self, n: int, size: int) -> None:
        self.requests += 1
        self.tell(
            RequestArrived(
                at_s=self.at,
                request=self.requests,
                model=MODELS[n % 7 % 3] if n % 7 != 2 or n % 5 == 0 else "m",
                input_tokens=1 + size % 1200,
                input_is_exact=size % 3 > 0,
                max_output_tokens=None if size % 4 == 0 else size % 200,
                is_streamed=n % 2 == 0,
                priority=n % 3 - 1,
                only_replica=(*REPLICAS, "z")[n % 5] if size % 5 == 0 else None,
                continuation=("off", "text", "exact")[size % 3],
                session=n % 4 if size % 2 else None,
                tenant="ab"[size % 2],
            )
        )

    def _attempt(self, n: int, size: int) -> dict[str, Any] | None:
        if not self.running:
            return None
        chosen = list(self.running.values())[n % len(self.running)]
        wrong = size % 11 == 0  # now and then about another attempt or start
        return {
            "at_s": self.at,
            "request": chosen.request,
            "attempt": chosen.attempt + wrong,
            "replica": chosen.replica,
            "epoch": chosen.epoch - (size % 13 == 0),
        }

    def first(self, n: int, size: int) -> None:
        if about := self._attempt(n, size):
            self.tell(FirstToken(**about))

    def finish(self, n: int, size: int) -> None:
        if about := self._attempt(n, size):
            self.tell(RequestFinished(**about, output_tokens=size % 100))

    def fail(self, n: int, size: int) -> None:
        if about := self._attempt(n, size):
            self.tell(RequestFailed(**about, kind=KINDS[size % 5], sent_tokens=size % 60))

    def busy(self, n: int, size: int) -> None:
        if about := self._attempt(n, size):
            pause_s = (None, 0.0, 2.5)[size % 3]
            self.tell(ReplicaBusy(**about, retry_after_s=pause_s, sent_tokens=size % 60))

    def moved(self, n: int, size: int) -> None:
        if about := self._attempt(n, size):
            of: list[AnyEvent] = [
                PrefillFinished(**about, kv_tokens=9),
                KvArrived(**about),
                KvLost(**about),
            ]
            self.tell(of[size % 3])

    def gone(self, n: int, size: int) -> None:
        self.tell(ClientGone(at_s=self.at, request=n % (self.requests + 2)))

    def up(self, n: int, size: int) -> None:
        name = REPLICAS[n % 4]
        self.epochs[name] = self.epochs.get(name, 0) + 1
        self.tell(
            ReplicaUp(
                at_s=self.at,
                replica=name,
                epoch=self.epochs[name],
                model=MODELS[n % 4 // 3],
                pool="p",
                role=(*self.roles, "both")[n % 4],
                step_time=STEP.scaled(1 + n % 2),
                context_tokens=(2000, 600)[size % 4 == 0],
                kv_capacity_tokens=5000,
                max_sequences=1 + size % 3,
                max_step_tokens=256,
                kv_token_bytes=1000.0,
                kv_link_bytes_per_s=(0.0, 1e6)[size % 2],
                kv_link_latency_s=1e-3,
                kv_pools=("p",) if size % 3 == 0 else (),
                continues=("off", "text", "exact", "exact")[size % 4],
                build="xy"[n % 2],
            )
        )

    def down(self, n: int, size: int) -> None:
        name = REPLICAS[n % 4]
        epoch = self.epochs.get(name, 0) - (size % 7 == 0)
        others = [(other, self.epochs.get(other, 0)) for other in REPLICAS if other != name]
        also = tuple(others[: max(0, size % 5 - 2)])  # mostly nobody
        gone = {name, *(other for other, _ in also)}
        there = [one.request for one in self.running.values() if one.replica in gone]
        sent = tuple((request, size % 60) for request in there)
        self.tell(
            ReplicaDown(
                at_s=self.at,
                replica=name,
                epoch=epoch,
                reason="x",
                sent_tokens=sent,
                back_in_s=(None, 0.3, 7.0)[size % 3],
                also=also,
            )
        )

    def retire(self, n: int, size: int) -> None:
        name = REPLICAS[n % 4]
        epoch = self.epochs.get(name, 0) - (size % 7 == 0)
        self.tell(ReplicaRetiring(at_s=self.at, replica=name, epoch=epoch))

    def told(self, n: int, size: int) -> None:
        """Other models, and other limits of theirs and of all."""
        models = (("m", "n"), ("m",), ("n", "m"), ("n",))[n % 4]
        services = tuple(
            ServiceSettings(model=model, context_tokens=(1000, 250)[size % 3 == 0])
            for model in models
        )
        settings = msgspec.structs.replace(
            self.settings,
            services=services,
            queue_requests=size % 6,
            turns=("arrival", "tenants")[size % 2],
            tenant_weights={"a": 1.0 + n % 3},
            admission=("queue", "slo")[n % 2],
            kv_wait_s=(0.2, 5.0)[size % 5 == 0],
        )
        self.tell(SettingsChanged(at_s=self.at, settings=settings))

    def again(self, n: int, size: int) -> None:
        """Say something a second time; a request number is never used twice."""
        if self.log:
            event, _ = self.log[-1 - n % len(self.log)]
            if not isinstance(event, RequestArrived) or event.request in self.validator.open:
                self.tell(msgspec.structs.replace(event, at_s=self.at))

    def measure(self, n: int, size: int) -> None:
        name = REPLICAS[n % 4]
        epoch = self.epochs.get(name, 0)
        seen = StepObserved(
            at_s=self.at, replica=name, epoch=epoch, prompt_tokens=size % 3 * 50,
            sequences=size % 5, kv_tokens=size, step_s=size / 1000,
        )  # fmt: skip
        told = LoadReported(
            at_s=self.at, replica=name, epoch=epoch, gateway="gh"[n % 2],
            running=size % 9, queued_prompt_tokens=size,
        )  # fmt: skip
        self.tell(seen if n % 3 else told)

    def later(self, n: int, size: int) -> None:
        self.at += size / 100
        self.ring()

    def ring(self) -> None:
        while self.alarms and min(self.alarms) <= self.at:
            self.alarms.remove(min(self.alarms))
            self.tell(Woke(at_s=self.at))

    def come_to_rest(self) -> None:
        """Every replica answers all it has, and every alarm rings, until no request is open."""
        while self.validator.open:
            states = self.validator.open
            able = [one for one in self.running.values() if states[one.request] != "prefilled"]
            if able:
                self.go_on(able[0], states[able[0].request])
            else:
                self.at = min(self.alarms)
                self.ring()

    def go_on(self, chosen: Start, state: str) -> None:
        """What comes next of a request that goes well."""
        about: dict[str, Any] = {
            "at_s": self.at, "request": chosen.request, "attempt": chosen.attempt,
            "replica": chosen.replica, "epoch": chosen.epoch,
        }  # fmt: skip
        if state == "prefilling":
            self.tell(PrefillFinished(**about, kv_tokens=100))
        elif state == "transferring":
            self.tell(KvArrived(**about))
        else:
            self.tell(RequestFinished(**about, output_tokens=5))

    def step(self, n: int, size: int) -> None:
        """One that is not held goes on."""
        states = self.validator.open
        able = [one for one in self.running.values() if states[one.request] != "prefilled"]
        if able:
            chosen = able[n % len(able)]
            self.go_on(chosen, states[chosen.request])


ALL = ("arrive", "first", "finish", "fail", "busy", "moved", "gone", "up", "down", "again", "measure", "later", "step", "retire", "told")  # fmt: skip


def deeds(*weighted: str) -> Any:
    one = st.tuples(st.sampled_from(weighted), st.integers(0, 1000), st.integers(0, 1000))
    return st.lists(one, min_size=20, max_size=120)


ANY_SETTINGS = st.builds(
    PolicySettings,
    services=st.just(
        tuple(
            ServiceSettings(model=m, context_tokens=1000, first_token_limit_s=limit_s)
            for m, limit_s in (("m", None), ("n", 0.3))
        )
    ),
    queue_requests=st.integers(0, 5),
    queue_wait_s=st.sampled_from((0.5, 10.0)),
    max_attempts=st.integers(1, 4),
    retry_budget_fraction=st.sampled_from((0.0, 0.5)),
    retry_budget_floor=st.integers(0, 3),
    quarantine_deaths=st.integers(1, 3),
    breaker_failures=st.integers(1, 3),
    breaker_open_s=st.sampled_from((0.5, 5.0)),
    busy_pause_s=st.sampled_from((0.0, 1.0)),
    max_continuations=st.integers(0, 3),
    turns=st.sampled_from(("arrival", "tenants")),
    admission=st.sampled_from(("queue", "slo")),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ANY_SETTINGS,
    deeds(*ALL, "arrive", "arrive", "up", "finish", "step"),
    st.integers(0, 3),
    st.sampled_from(ROLES),
)
def test_every_request_ends_once_whatever_happens(
    limits: Any, story: Any, seed: int, roles: Any
) -> None:
    driver = Driver(limits, seed, roles=roles)
    for name in (0, 1, 2, 3):
        driver.up(name, 1)
    for deed, n, size in story:
        getattr(driver, deed)(n, size)
    driver.come_to_rest()

    assert driver.validator.ended == driver.requests
    assert len({action.request for action in driver.rejected}) == len(driver.rejected)
    fresh = Policy(limits, seed=seed)
    assert [fresh.handle(event) for event, _ in driver.log] == [told for _, told in driver.log]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    deeds("arrive", "arrive", "arrive", "lose", "up", "down", "finish", "first", "later", "step"),
    st.sampled_from((TOGETHER, ("both", "prefill", "decode"))),
)
def test_nothing_is_lost_while_one_replica_survives(story: Any, roles: Any) -> None:
    """Replicas b, c and d come, go and drop connections; `a` stays. Only answers that had begun may break off."""
    never = 10**9
    limits = PolicySettings(
        services=(ServiceSettings(model="m", context_tokens=2000),),
        queue_requests=never, queue_wait_s=float(never), max_attempts=never, retry_budget_floor=never,
        quarantine_deaths=never,
    )  # fmt: skip
    driver = Driver(limits, roles=roles)
    driver.up(0, 1)
    streamed: set[int] = set()
    for deed, n, size in story:
        n = n if n % 4 not in (0, 3) else 1  # `a` is left alone, and there is one model
        if deed == "arrive":
            driver.arrive(4 * 7 * 5, 1 + 5 * (size // 5 % 100))
        elif deed == "first":
            driver.first(n, 1)
            streamed |= {r for r, state in driver.validator.open.items() if state == "streaming"}
        elif deed == "lose":
            others = [d for d in driver.running.values() if d.replica != "a"]
            if others:
                lost = others[n % len(others)]
                driver.tell(
                    RequestFailed(
                        at_s=driver.at, request=lost.request, attempt=lost.attempt,
                        replica=lost.replica, epoch=lost.epoch, kind="lost",
                    )
                )  # fmt: skip
        else:
            getattr(driver, deed)(n, 1)
    driver.up(2, 1)  # a cache that is held needs somebody to take it
    driver.come_to_rest()

    assert {action.request for action in driver.rejected} <= streamed
    assert all(action.code == "replica_lost" for action in driver.rejected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ANY_SETTINGS, deeds(*ALL, "step"), st.sampled_from(ROLES))
def test_a_stale_word_is_answered_with_nothing(limits: Any, story: Any, roles: Any) -> None:
    """The same deeds, with words of another attempt or start in between, lead to the same actions."""
    driver, pestered = Driver(limits, roles=roles), Driver(limits, roles=roles)
    for deed, n, size in story:
        getattr(driver, deed)(n, size)
        getattr(pestered, deed)(n, size)
        for dispatch in list(pestered.running.values())[:2]:
            about = {
                "at_s": pestered.at, "request": dispatch.request, "attempt": dispatch.attempt,
                "replica": dispatch.replica, "epoch": dispatch.epoch + 1,
            }  # fmt: skip
            for stale in (
                FirstToken(**about),
                RequestFinished(**about, output_tokens=7),
                RequestFailed(**about, kind="lost"),
                ReplicaBusy(**about),
                PrefillFinished(**about, kv_tokens=7),
                KvArrived(**about),
                KvLost(**about),
                ReplicaDown(
                    at_s=pestered.at, replica=dispatch.replica, epoch=dispatch.epoch - 1, reason="x"
                ),
            ):
                assert pestered.policy.handle(stale) == []
                pestered.validator.feed(stale, [])

    assert pestered.log == driver.log
