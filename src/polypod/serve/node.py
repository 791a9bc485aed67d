"""A live node: engines under supervision, one policy, one endpoint, one record.

    async with LiveNode(prepared, listener) as node:      # engines up and warmed up, or EngineError and nothing left
        await node.serve(stop)

Every replica is warmed up before it takes requests, at each of its starts: one request to load its pages, three to measure.
The measured steps are told to the policy as `StepObserved`, so that a log shows what it was corrected by.
"""

import asyncio
import hashlib
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from polypod import __version__
from polypod.cost.cpu import CpuCalibration
from polypod.errors import EngineError, FileError, InputError, RunError
from polypod.plan.spec import Plan, to_yaml, write_plan
from polypod.policy.compiled import functions
from polypod.policy.events import (
    LoadReported,
    ReplicaDown,
    ReplicaRetiring,
    ReplicaUp,
    SettingsChanged,
)
from polypod.policy.node import Policy
from polypod.policy.settings import PolicySettings
from polypod.record import Header, Measure, PlanNote
from polypod.serve import nodes
from polypod.serve.alone import Alone
from polypod.serve.ask import Asked, Asker
from polypod.serve.attempt import Desk
from polypod.serve.door import Door, Keyring, Rules
from polypod.serve.engines import ENGINES, Engine
from polypod.serve.engines.load import EngineLoad
from polypod.serve.engines.openai_url import Remotes
from polypod.serve.gateway import Gateway
from polypod.serve.ghosts import Ghosts
from polypod.serve.handover import Caches, Saved, make_handover_directory, poster
from polypod.serve.http import native
from polypod.serve.launching import Places
from polypod.serve.listen import GRACE_S, serve
from polypod.serve.loop import Driver, Outlets
from polypod.serve.metrics import Metrics
from polypod.serve.prompts import PromptLog
from polypod.serve.recorder import Recorder
from polypod.serve.seats import Prepared, Seat, ghost_seats, remote_seats, seats_of
from polypod.serve.slack import Slack
from polypod.serve.supervise import Down, Supervisor, Up, make_socket_directory
from polypod.serve.upstream import Patience, Upstreams
from polypod.serve.warm_up import WarmUp, ratio, warm_up

__all__ = ["Entry", "LiveNode", "Prepared", "Seat", "WarmUp", "run_folder"]

FORESIGHT_S: Final = 60.0
"""How often a record is told how the predictions do; and once at the end."""

DRAIN_LOOK_S: Final = 0.05
SWEEP_S: Final = 0.5  # a revoked key opens nothing after this long at most
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where it listens, and one way to reach it


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Who may use the node."""

    rules: Rules = field(default_factory=Rules)
    keys: Keyring | None = None
    logs_prompts: bool = False


class LiveNode:
    """Owns everything that runs. `on_change` hears of each warm-up and of each replica lost."""

    def __init__(
        self,
        prepared: Prepared,
        listener: socket.socket,
        on_change: Callable[[WarmUp | Down], None] = lambda _: None,
        *,
        engines: Mapping[str, Engine] = ENGINES,
        entry: Entry | None = None,
    ) -> None:
        _check_names(prepared)
        entry = entry or Entry()
        self._own_token = secrets.token_urlsafe(32)
        self._prompts = PromptLog(prepared.folder / "prompts.jsonl") if entry.logs_prompts else None
        self._door = Door(
            entry.rules,
            entry.keys,
            own_token=self._own_token,
            log_prompt=None if self._prompts is None else self._prompts.write,
        )
        self.prepared = prepared  # what runs now
        self._engines = engines
        self._listener = listener
        self._on_change = on_change
        self._settings = prepared.settings  # as the policy has them
        self._models = [service.model for service in prepared.plan.services]  # that are offered
        self._metrics = Metrics(self._models)
        self._recorder = Recorder(
            prepared.folder / "record.jsonl",
            _header(prepared),
            on_failure=self._metrics.record_failed,
        )
        self.policy = Policy(prepared.settings, compiled=functions())
        self._driver = Driver(self.policy, Outlets(write=self._recorder.write))
        native.prepare()
        self._upstreams = Upstreams(Patience())
        self._caches = Caches()
        self._alone = Alone()
        desk = Desk(
            driver=self._driver,
            upstreams=self._upstreams,
            metrics=self._metrics,
            caches=self._caches,
            alone=self._alone,
        )
        self._gateway = Gateway(
            self._models,
            desk,
            self._door,
            foresight=self.policy.foresight,
            continuation=prepared.plan.policy.continuation,
        )
        self._ghosts = Ghosts(prepared.ghosts, self._driver, on_change)
        self._loading = {up.replica for up in prepared.ups}
        self._loading |= {remote.name for remote in prepared.remotes}
        self._loaded = asyncio.Event()
        self._sockets = make_socket_directory()
        self._registered: Path | None = None
        self.seats: dict[str, Seat] = {}
        for seat in self.seats_of(prepared):
            self._sit(seat)
        replicas = [seat.replica for seat in self.seats.values() if seat.replica is not None]
        replicas += self._ghosts.replicas(self._sockets, prepared.folder)
        self._supervisor = Supervisor(replicas, self._hear)
        watched = [(remote, self._models[0]) for remote in prepared.remotes]
        self._remotes = Remotes(watched, self._hear, self._hear_load)

    @property
    def latest_handover(self) -> tuple[Saved, float] | None:
        """The last cache that went from one replica to another, and the seconds to restore it."""
        return self._caches.latest

    @property
    def url(self) -> str:
        """Where clients on this machine reach the node."""
        host, port = self._listener.getsockname()[:2]
        host = _ANYWHERE.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def __aenter__(self) -> Self:
        self._recorder.start()
        folder = self.prepared.folder
        write_plan(self.prepared.plan, folder / "plan.yaml")
        self._register()
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise
        return self

    async def _start(self) -> None:
        """Processes and URLs side by side, for the warm-up waits until all are there. Raises as soon as one fails."""
        starts = [
            asyncio.create_task(self._supervisor.start()),
            asyncio.create_task(self._remotes.start()),
        ]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await self._remotes.stop()
            await self._supervisor.stop()
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._remotes.stop()
        self._tell_foresight()
        await self._supervisor.stop()
        await self._close()

    async def serve(self, stop: asyncio.Event, *, grace_s: float = GRACE_S) -> None:
        """Answer until `stop` is set and what was in flight has ended; what takes longer than the grace ends in words."""
        sweeping = asyncio.create_task(self._sweep())
        sweeping.add_done_callback(_complain)
        try:
            await serve(self._gateway, self._listener, stop, grace_s=grace_s)
        finally:
            sweeping.cancel()

    @property
    def in_flight(self) -> int:
        """Chat requests that are not yet answered."""
        return self._gateway.in_flight

    def hurry(self) -> None:
        """End what is in flight, in words, and the engines, at once."""
        self._gateway.stop()
        self._supervisor.hurry()

    async def ask(
        self,
        question: str,
        *,
        max_tokens: int,
        replica: str | None = None,
        model: str | None = None,
    ) -> Asked:
        """Ask the node's own endpoint, as a client would; its first model where none is named."""
        headers = {"Authorization": f"Bearer {self._own_token}"}
        async with Asker(self.url, headers=headers) as asker:
            return await asker.ask(
                model or self._models[0], question, max_tokens=max_tokens, replica=replica
            )

    # ---- another plan

    def seats_of(self, prepared: Prepared) -> list[Seat]:
        """The replicas of a plan, as they would run here; nothing is started."""
        if prepared.ghosts is not None:
            return ghost_seats(prepared.ghosts)
        if self._caches.folder is None and _is_apart(prepared):
            self._caches.folder = make_handover_directory()
            if self._registered is not None:  # so that a crash leaves no cache
                self._register()
        places = Places(prepared.folder, self._sockets, self._caches.folder)
        return [*seats_of(prepared, places, self._engines), *remote_seats(prepared)]

    async def start_replica(self, seat: Seat) -> None:
        """Start it, warm it up, and let requests come. Raises `EngineError`, when it is stopped again."""
        known = self.seats.get(seat.name)
        self._sit(seat)
        try:
            if seat.remote is not None:
                await self._remotes.add(seat.name, seat.remote, seat.up.model)
            elif seat.replica is None:
                await self._ghosts.add(seat.up, seat.mean_output_tokens)
            else:
                await self._supervisor.add(seat.replica)
        except BaseException:
            if known is None:
                del self.seats[seat.name]
            raise
        self._offer()

    async def retire_replica(
        self, name: str, *, drain_s: float, back_in_s: float | None = None
    ) -> int:
        """Send nothing new there, wait until it has ended what it has, and stop it; return how many requests took too long.

        Another one in its place is expected `back_in_s` later, where that is said.
        """
        keeps = self._keeper_of(self.seats[name])
        keeps.let_end(name)
        epoch = keeps.epoch(name)
        self._tell_retiring(name, epoch)
        late_s = self._driver.now_s() + drain_s
        while (left := self.policy.aboard(name)) and self._driver.now_s() < late_s:
            await asyncio.sleep(DRAIN_LOOK_S)
        now_s = self._driver.now_s()
        reason = "it is not in the plan any more"
        self._driver.tell(
            ReplicaDown(at_s=now_s, replica=name, epoch=epoch, reason=reason, back_in_s=back_in_s)
        )
        await keeps.remove(name)
        self._driver.forget(name)
        self._upstreams.forget(name)
        self._caches.slots.forget(name)
        del self.seats[name]
        return left

    def _keeper_of(self, seat: Seat) -> Supervisor | Ghosts | Remotes:
        if seat.remote is not None:
            return self._remotes
        return self._ghosts if seat.replica is None else self._supervisor

    async def check_elsewhere(self, seat: Seat) -> None:
        """Raises `EngineError` where the replica is elsewhere, and has not its model there."""
        if seat.remote is not None:
            await self._remotes.check(seat.remote, seat.up.model)

    def took_s(self, name: str) -> float:
        """How long the replica's latest start took."""
        return 0.0 if self.seats[name].replica is None else self._supervisor.took_s(name)

    def tell_settings(self, settings: PolicySettings) -> None:
        """Let the policy have other settings. A model that is new is offered once a replica of it is up; one that is removed, no more."""
        self._driver.tell(SettingsChanged(at_s=self._driver.now_s(), settings=settings))
        self._settings = settings
        self._metrics.serve(service.model for service in settings.services)
        self._offer()

    def note_plan(self, plan: Plan) -> None:
        """Let the record say of which plan what comes up is."""
        told, sha256 = _as_told(plan)
        self._recorder.write(PlanNote(at_s=self._driver.now_s(), plan=told, plan_sha256=sha256))

    def run_plan(self, prepared: Prepared) -> None:
        """Its replicas are here now, and all of its models are offered."""
        self.prepared = prepared
        self._models = [service.model for service in prepared.settings.services]
        self._gateway.offer(self._models, prepared.plan.policy.continuation)

    def _offer(self) -> None:
        served = {known.model for known in self._driver.replicas() if known.state == "up"}
        served |= set(self._models)
        models = [service.model for service in self._settings.services]
        self._models = [model for model in models if model in served] or models
        self._gateway.offer(self._models)

    def _sit(self, seat: Seat) -> None:
        self.seats[seat.name] = seat
        if seat.calibration is not None:
            self._alone.know(seat.name, seat.calibration.first_token_s[1])

    def _tell_retiring(self, name: str, epoch: int) -> None:
        self._driver.tell(ReplicaRetiring(at_s=self._driver.now_s(), replica=name, epoch=epoch))

    @property
    def control_socket(self) -> Path:
        """Where orders are taken."""
        return self._sockets / "control"

    def _register(self) -> None:
        state = self.prepared.folder.parents[1]
        self._registered = nodes.register(state, self._described())

    def _described(self) -> nodes.NodeFile:
        pid, started_ticks, boot_id = nodes.this_process()
        return nodes.NodeFile(
            pid=pid,
            started_ticks=started_ticks,
            boot_id=boot_id,
            run=self._supervisor.run,
            folder=str(self.prepared.folder),
            url=self.url,
            sockets=str(self._sockets),
            control=str(self.control_socket),
            caches=str(self._caches.folder or ""),
        )

    async def _sweep(self) -> None:
        told_s, slack = self._driver.now_s(), Slack()
        while True:
            await asyncio.sleep(SWEEP_S)
            self._door.sweep()
            slack.look(self.in_flight, self._driver.now_s())
            if self._driver.now_s() - told_s >= FORESIGHT_S:
                told_s = self._driver.now_s()
                self._tell_foresight()

    def _tell_foresight(self) -> None:
        """Let the record say what was predicted of late, and what came."""
        at_s = self._driver.now_s()
        for replica, known in self.policy.foresight().items():
            for name, value in known.items():
                self._recorder.write(Measure(at_s=at_s, of=replica, name=name, value=value))

    async def _close(self) -> None:
        await self._ghosts.close()
        if self._prompts is not None:
            self._prompts.close()
        self._driver.stop()
        await self._upstreams.close()
        await self._recorder.close()
        self._listener.close()
        self._sockets.rmdir()
        self._caches.close()
        if self._registered is not None:
            self._registered.unlink(missing_ok=True)

    async def _all_loaded(self, news: Up) -> None:
        """Measure nobody while another one still loads for the first time: it would look slower than it is."""
        if news.epoch == 1:
            self._loading.discard(news.replica)
            if not self._loading:
                self._loaded.set()
        await self._loaded.wait()

    def _foretold(self, replica: str) -> tuple[ReplicaUp, CpuCalibration | None]:
        seat = self.seats[replica]
        return seat.up, seat.calibration

    def _hear_load(self, replica: str, epoch: int, load: EngineLoad) -> None:
        """What an engine elsewhere has beside our own requests is other people's, and counts as such."""
        others = load.running + load.waiting - self._upstreams.in_use(replica)
        event = LoadReported(
            at_s=self._driver.now_s(),
            replica=replica,
            epoch=epoch,
            gateway="others",
            running=max(0, others),
            queued_prompt_tokens=0,
        )
        self._driver.tell(event)

    async def _hear(self, news: Up | Down) -> None:
        if news.replica in self._ghosts:
            await self._ghosts.hear(news)
            return
        if isinstance(news, Down):
            down = ReplicaDown(
                at_s=self._driver.now_s(),
                replica=news.replica,
                epoch=news.epoch,
                reason=news.reason,
                back_in_s=news.back_in_s,
            )
            self._driver.tell(down)
            self._on_change(news)
            return
        await self._all_loaded(news)
        predicted, calibration = self._foretold(news.replica)
        try:
            observed = await warm_up(news, predicted, calibration)
        except RunError as error:  # the supervisor takes it as a start that failed, and tries again
            msg = f"replica {news.replica} says it is well and does not answer: {error}"
            raise EngineError(msg) from error
        now_s = self._driver.now_s()
        up = msgspec.structs.replace(predicted, at_s=now_s, epoch=news.epoch)
        if up.role != "both":
            upstream = self._upstreams.of(up.replica, up.epoch, news.endpoint)
            await self._caches.attach(up, poster(upstream))
        self._driver.attach(up, news.endpoint)
        for step in observed:
            self._driver.tell(msgspec.structs.replace(step, at_s=now_s))
        prefill, decode = (ratio(step, predicted) for step in observed)
        self._on_change(
            WarmUp(
                replica=news.replica,
                epoch=news.epoch,
                load_s=news.load_s,
                prefill_ratio=prefill,
                decode_ratio=decode,
            )
        )


def _complain(sweeping: asyncio.Task[None]) -> None:
    """Without it a revoked key would stay open, and nobody would know."""
    if not sweeping.cancelled() and (error := sweeping.exception()):
        context = {"message": "keys and limits of time are not looked at any more", "exception": error, "task": sweeping}  # fmt: skip
        sweeping.get_loop().call_exception_handler(context)


def _is_apart(prepared: Prepared) -> bool:
    return any(up.role != "both" for up in prepared.ups)


def _check_names(prepared: Prepared) -> None:
    names = [up.replica for up in prepared.ups] + [remote.name for remote in prepared.remotes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"two replicas are called {', '.join(twice)}; give the URL another name"
        raise InputError(msg)


def _header(prepared: Prepared) -> Header:
    plan, sha256 = _as_told(prepared.plan)
    return Header(
        kind="live",
        polypod=__version__,
        policy=prepared.settings,
        plan=plan,
        plan_sha256=sha256,
        seed=0,
        started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _as_told(plan: Plan) -> tuple[dict[str, Any], str]:
    """A plan as a record has it, and its hash."""
    return msgspec.to_builtins(plan), hashlib.sha256(to_yaml(plan).encode()).hexdigest()


def run_folder(state: Path) -> Path:
    """A new folder for one run's plan, logs and record. Raises `FileError` where it cannot be made."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    folder = state / "runs" / f"{stamp}-{secrets.token_hex(2)}"
    try:
        folder.mkdir(parents=True, mode=0o700)  # what engines log is nobody else's to read
    except OSError as error:
        problem = (
            f"cannot be made ({error.strerror}), and a run keeps its plan, its logs and its record there; "
            "set XDG_STATE_HOME to a folder that can be written"
        )
        raise FileError(folder, problem) from error
    return folder
