"""One replica: its current process, and what to do when that ends."""

import asyncio
import contextlib
import os
import signal
import stat
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from polypod import units
from polypod.errors import EngineError, InputError
from polypod.serve import leftovers, watch
from polypod.serve.engines.facts import ready_s
from polypod.serve.engines.failures import explained
from polypod.serve.engines.ports import endpoint_of, is_ours, with_own_port
from polypod.serve.engines.spec import (
    PARENT_VARIABLE,
    SOCKET_PATH_LIMIT_BYTES,
    Endpoint,
    Engine,
    EngineSpec,
)

_TAIL_LINES: Final = 20
_TAIL_BYTES: Final = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for what."""

    ready_s: float = 120.0  # from start to the first good answer
    hang_s: float = (
        60.0  # without a good answer; a step of a long prompt on a busy core takes seconds
    )
    watch_every_s: float = 2.0
    first_restart_s: float = 0.5  # doubles with every death ...
    longest_restart_s: float = 30.0
    settled_s: float = 60.0  # ... until it was up this long
    promised_starts: int = (
        3  # in a row that may fail before nobody is told any more that another will do
    )
    stop_s: float = 5.0  # from SIGTERM to SIGKILL


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """An engine and what it shall serve. It starts when those named in `after` are up."""

    engine: Engine
    spec: EngineSpec
    after: tuple[str, ...] = ()
    memory_limit_bytes: int | None = None  # of the process and all below it


@dataclass(frozen=True, slots=True, kw_only=True)
class Up:
    """The replica answers."""

    replica: str
    epoch: int
    endpoint: Endpoint
    process: int
    load_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """The replica died, hung, or did not come up again."""

    replica: str
    epoch: int
    reason: str
    log_tail: tuple[str, ...]
    back_in_s: float | None = (
        None  # until it should answer again; None where that is not to be counted on
    )


Tell = Callable[[Up | Down], Awaitable[None]]


class Keeper:
    """One replica: its current process, and what to do when that ends."""

    def __init__(
        self,
        replica: Replica,
        tell: Tell,
        patience: Patience,
        run: str,
        began_session: Callable[[int], None],
        *,
        epoch: int = 0,
    ) -> None:
        self._engine = replica.engine
        self._spec = replica.spec
        self._memory_limit_bytes = replica.memory_limit_bytes
        self._run = run
        self._began_session = began_session
        self._build = _build(replica)
        self._endpoint = self._reached(replica.spec)
        self._tell = tell
        self._patience = patience
        self.epoch = epoch  # of the latest start
        self.is_wanted = True  # to be started again when it ends
        self.took_s = 0.0  # the latest start that went well, warm-up and all
        self._process: Process | None = None
        self._oom_kills = 0  # of the kernel's, when it started

    async def start(self) -> None:
        """Start a new process and wait until it answers. Raises `EngineError` where it does not."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        self.epoch += 1
        process = await self._spawn()
        try:
            await self._until_ready(process)
        except EngineError:
            await self.stop()
            raise
        up = Up(
            replica=self._spec.replica,
            epoch=self.epoch,
            endpoint=self._endpoint,
            process=process.pid,
            load_s=loop.time() - began_s,
        )
        await self._tell(up)
        self.took_s = loop.time() - began_s

    async def keep(self) -> None:
        """Watch, and restart what dies, until cancelled."""
        loop = asyncio.get_running_loop()
        delay_s = self._patience.first_restart_s
        while True:
            began_s = loop.time()
            reason = await self._until_down()
            if loop.time() - began_s >= self._patience.settled_s:
                delay_s = self._patience.first_restart_s
            await self._report_down(reason, delay_s + self.took_s if self.is_wanted else None)
            if not self.is_wanted:
                return
            delay_s = await self._restart(delay_s)

    async def stop(self) -> None:
        """End the process, then whatever it left behind, and remove the socket."""
        if self._process is not None:
            _signal_group(self._process, signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), self._patience.stop_s)
            except TimeoutError:
                _signal_group(self._process, signal.SIGKILL)
                await self._process.wait()
            await asyncio.to_thread(leftovers.end_marked, self._run, self._spec.replica)
        self._spec.socket.unlink(missing_ok=True)

    def kill(self) -> None:
        if self._process is not None:
            _signal_group(self._process, signal.SIGKILL)

    @property
    def process(self) -> int | None:
        """Its pid, while nobody has waited for it."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    def log_tail(self) -> tuple[str, ...]:
        """The last lines of this epoch."""
        text = _end_of(watch.earlier(self._spec.log)) + _end_of(self._spec.log)
        return tuple(text.decode(errors="replace").splitlines()[-_TAIL_LINES:])

    async def _restart(self, delay_s: float) -> float:
        """Try until it answers; return the delay for the next death."""
        failed = 0
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, self._patience.longest_restart_s)
            try:
                await self.start()
            except (EngineError, InputError, OSError) as error:
                failed += 1
                is_promised = failed < self._patience.promised_starts
                back_in_s = delay_s + self.took_s if is_promised else None
                await self._report_down(str(error).partition("; its last lines:")[0], back_in_s)
            else:
                return delay_s

    async def _report_down(self, reason: str, back_in_s: float | None) -> None:
        tail = self.log_tail()
        await self.stop()
        down = Down(
            replica=self._spec.replica,
            epoch=self.epoch,
            reason=reason,
            log_tail=tail,
            back_in_s=back_in_s,
        )
        await self._tell(down)

    def _reached(self, spec: EngineSpec) -> Endpoint:
        return replace(endpoint_of(self._engine, spec), build=self._build)

    async def _spawn(self) -> Process:
        self._spec = spec = with_own_port(self._spec)
        self._endpoint = self._reached(spec)
        _check_socket(spec.socket)
        spec.socket.unlink(missing_ok=True)
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        if spec.log.exists():
            spec.log.replace(spec.log.with_name(f"{spec.log.name}.previous"))
        watch.earlier(spec.log).unlink(missing_ok=True)
        ours = {PARENT_VARIABLE: str(os.getpid())} | leftovers.environment(self._run, spec.replica)
        self._oom_kills = watch.oom_kills()
        with spec.log.open("ab") as log:  # appending, so that it can be cut while it is written
            self._process = await asyncio.create_subprocess_exec(
                *self._engine.command(spec),
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._engine.environment(spec) | ours,
                start_new_session=True,
            )
        self._began_session(self._process.pid)
        return self._process

    async def _until_ready(self, process: Process) -> None:
        """Poll until it answers; fail at once when the process ends."""
        ended = asyncio.create_task(process.wait())
        ready = asyncio.create_task(self._poll())
        limit_s = max(self._patience.ready_s, ready_s(self._engine.name))
        try:
            await asyncio.wait((ended, ready), timeout=limit_s, return_when="FIRST_COMPLETED")
            if ended.done():
                raise EngineError(self._says(self._ended(ended.result())), self.log_tail())
            if not ready.done():
                raise EngineError(self._says(f"did not answer in {limit_s:g} s"), self.log_tail())
        finally:
            await _cancel(ended, ready)

    async def _poll(self) -> None:
        async with self._client(5.0) as client:
            while not await self._answers(client):
                await asyncio.sleep(0.05)

    def _ended(self, status: int) -> str:
        if status == -signal.SIGKILL and watch.oom_kills() > self._oom_kills:
            return f"{_ending(status)}, and the kernel has run out of memory meanwhile"
        return _ending(status)

    async def _until_down(self) -> str:
        """Return why the process is of no use any more."""
        assert self._process is not None
        ended = asyncio.create_task(self._process.wait())
        hung = asyncio.create_task(self._until_hung())
        grown = asyncio.create_task(self._until_grown(self._process.pid))
        try:
            await asyncio.wait((ended, hung, grown), return_when="FIRST_COMPLETED")
            if ended.done():
                return self._ended(ended.result())
            _signal_group(self._process, signal.SIGKILL)
            if grown.done():
                return grown.result()
            return f"hung: no good answer on {self._engine.health_path} for {self._patience.hang_s:g} s"
        finally:
            await _cancel(ended, hung, grown)

    async def _until_grown(self, pid: int) -> str:
        """Keep the log short; return when the process has more memory than it may."""
        limit_bytes = self._memory_limit_bytes
        while True:
            await asyncio.to_thread(watch.bound_log, self._spec.log)
            used_bytes = watch.used_bytes(pid) if limit_bytes is not None else 0
            if limit_bytes is not None and used_bytes > limit_bytes:
                used, limit = (units.show(one, "bytes") for one in (used_bytes, limit_bytes))
                return f"took {used} of memory, more than its limit of {limit}, and was ended"
            await asyncio.sleep(self._patience.watch_every_s)

    async def _until_hung(self) -> None:
        loop = asyncio.get_running_loop()
        good_s = loop.time()
        async with self._client(self._patience.hang_s) as client:
            while loop.time() - good_s < self._patience.hang_s:
                if await self._answers(client):
                    good_s = loop.time()
                await asyncio.sleep(self._patience.watch_every_s)

    async def _answers(self, client: aiohttp.ClientSession) -> bool:
        if not is_ours(self._endpoint):
            return False
        try:
            async with client.get(self._endpoint.origin + self._engine.health_path) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def _client(self, timeout_s: float) -> aiohttp.ClientSession:
        socket = self._endpoint.socket
        connector = (
            aiohttp.UnixConnector(path=str(socket), force_close=True)
            if socket
            else aiohttp.TCPConnector(force_close=True)
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers=self._endpoint.headers,
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        )

    def _says(self, problem: str) -> str:
        said = f"replica {self._spec.replica} ({self._engine.name}, {self._spec.weights.name}) {problem}"
        meaning = explained(self._engine.name, self.log_tail())
        return f"{said}: {meaning}" if meaning else said


def _end_of(log: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        return file.read()
    return b""


def _check_socket(socket: Path) -> None:
    length = len(os.fsencode(socket))
    if length > SOCKET_PATH_LIMIT_BYTES:
        msg = f"{socket}: a socket's path has at most {SOCKET_PATH_LIMIT_BYTES} bytes, this one {length}"
        raise InputError(msg)
    status = socket.parent.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) != 0o700:
        msg = f"{socket.parent}: must belong to this user and have mode 0700, for its sockets reach the engines"
        raise InputError(msg)


def _signal_group(process: Process, number: signal.Signals) -> None:
    """Signal the child and whatever it started; its group has its id, for it began a session."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _ending(status: int) -> str:
    """Say how a process ended.

    >>> _ending(-9), _ending(0)
    ('was ended by SIGKILL', 'ended with status 0')
    """
    return (
        f"was ended by {signal.Signals(-status).name}"
        if status < 0
        else f"ended with status {status}"
    )


def _build(replica: Replica) -> str:
    """What computes alike: the engine, its version and its weights, by their name and size."""
    engine, weights = replica.engine, replica.spec.weights
    files = [weights] if weights.is_file() else sorted(weights.glob("*.safetensors"))
    size_bytes = sum(file.stat().st_size for file in files)
    return f"{engine.name} {engine.version()} {weights.name}:{size_bytes}"
