"""Keep engine processes running: start, watch, restart, stop. Nothing is left behind.

Every start of a replica is an epoch, counted from 1. What happens is told as `Up` and `Down`, in order, per replica. The
first start of all must succeed; after that a replica that dies, hangs or takes too much memory is started again, ever more slowly.

What an engine has started ends with it, and with us, however we end (`leftovers`).

    async with Supervisor(replicas, tell) as supervisor:    # raises EngineError, with everything stopped
        ...
"""

import asyncio
import ctypes
import os
import secrets
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from polypod.errors import InputError
from polypod.serve import leftovers, watch
from polypod.serve.keeper import Down, Keeper, Patience, Replica, Tell, Up

__all__ = ["Down", "Patience", "Replica", "Supervisor", "Up", "make_socket_directory"]

_PR_SET_CHILD_SUBREAPER: Final = 36


class Supervisor:
    """Owns the engine processes of one Polypod. `run` marks them, so that they can be told from all others.

    Use it from the main thread: Linux ties a child's life to the thread that started it.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        tell: Tell,
        patience: Patience | None = None,
        *,
        run: str | None = None,
    ) -> None:
        """Raises `InputError` where replicas wait for each other, or for one that is not there."""
        self.run = run or secrets.token_hex(16)
        self._tell = tell
        self._patience = patience or Patience()
        self._replicas = {one.spec.replica: one for one in _in_order(replicas)}
        self._keepers: dict[str, Keeper] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._guardian: Process | None = None
        self._sessions: set[int] = set()  # that engines began
        self._epochs: dict[str, int] = {}  # the latest, of replicas that were taken away
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start all replicas, each as soon as those it waits for answer, and wait until all do.

        Raises `EngineError` as soon as one fails, when everything is stopped again.
        """
        _adopt_orphans()
        self._guardian = await _guardian(self.run)
        self._sweeping = asyncio.create_task(self._reap())
        starts: dict[str, asyncio.Task[None]] = {}
        for name, replica in self._replicas.items():
            before = [starts[one] for one in replica.after]
            starts[name] = asyncio.create_task(self._start_after(replica, before))
        try:
            await asyncio.gather(*starts.values())
        except BaseException:
            for start in starts.values():
                start.cancel()
            await asyncio.gather(*starts.values(), return_exceptions=True)
            await self.stop()
            raise

    async def add(self, replica: Replica) -> None:
        """Start one more, and wait until it answers. Raises `EngineError`, when it is stopped again."""
        name = replica.spec.replica
        keeper = Keeper(
            replica,
            self._tell,
            self._patience,
            self.run,
            self._sessions.add,
            epoch=self._epochs.get(name, 0),
        )
        self._keepers[name] = keeper
        try:
            await keeper.start()
        except BaseException:
            del self._keepers[name]
            self._epochs[name] = keeper.epoch
            await keeper.stop()
            raise
        self._keep(name, keeper)

    def let_end(self, name: str) -> None:
        """If it ends, do not start it again: it is to go soon."""
        self._keepers[name].is_wanted = False

    async def remove(self, name: str) -> None:
        """Stop one for good. Says no `Down`. It may be added again, in a later epoch."""
        keeper = self._keepers.pop(name)
        self._epochs[name] = keeper.epoch
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await keeper.stop()

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL; return when every process is reaped and every socket removed. Says no `Down`."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        await asyncio.gather(*(keeper.stop() for keeper in self._keepers.values()))
        await asyncio.to_thread(leftovers.end_marked, self.run)
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._bury()
        if self._guardian is not None:
            await _dismiss(self._guardian)
            self._guardian = None

    def hurry(self) -> None:
        """Whoever is asked to end now has no time for it."""
        for keeper in self._keepers.values():
            keeper.kill()

    def log_tail(self, replica: str) -> tuple[str, ...]:
        """The last lines the replica's process wrote."""
        return self._keepers[replica].log_tail()

    def epoch(self, replica: str) -> int:
        """Of its latest start."""
        return self._keepers[replica].epoch

    def took_s(self, replica: str) -> float:
        """Its latest start that went well, warm-up and all."""
        return self._keepers[replica].took_s

    def processes(self) -> dict[str, int]:
        """The engine process of each replica that has one."""
        found = {name: keeper.process for name, keeper in self._keepers.items()}
        return {name: pid for name, pid in found.items() if pid is not None}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _start_after(self, replica: Replica, before: Sequence[asyncio.Task[None]]) -> None:
        if before:
            await asyncio.wait(before, return_when="FIRST_EXCEPTION")
            if not all(one.done() and not one.cancelled() and one.exception() is None for one in before):  # fmt: skip
                return  # the one that failed says so itself
        await self.add(replica)

    def _keep(self, name: str, keeper: "Keeper") -> None:
        self._tasks[name] = asyncio.create_task(keeper.keep())
        self._tasks[name].add_done_callback(_complain)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(self._patience.watch_every_s)
            self._bury()

    def _bury(self) -> None:
        watch.reap_orphans(self._sessions, set(self.processes().values()))


def make_socket_directory() -> Path:
    """A new directory that only this user can enter, with a path short enough for a socket's address."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    usable = runtime and os.access(runtime, os.W_OK | os.X_OK) and len(runtime) < 60
    return Path(tempfile.mkdtemp(prefix="polypod-", dir=runtime if usable else None))


def _in_order(replicas: Sequence[Replica]) -> list[Replica]:
    """Each after those it waits for. Raises `InputError`."""
    waiting = {one.spec.replica: one for one in replicas}
    for name, one in waiting.items():
        if unknown := sorted(set(one.after) - waiting.keys()):
            msg = f"replica {name} starts after {', '.join(unknown)}, which is not there; there is {', '.join(waiting)}"
            raise InputError(msg)
    ordered: dict[str, Replica] = {}
    while waiting:
        ready = [name for name, one in waiting.items() if set(one.after) <= ordered.keys()]
        if not ready:
            msg = f"replicas {', '.join(waiting)} wait for each other; let one of them start first"
            raise InputError(msg)
        ordered |= {name: waiting.pop(name) for name in ready}
    return list(ordered.values())


async def _guardian(run: str) -> Process:
    """Ends what is left of the run when we are killed; it has a session of its own, so that no signal to our group reaches it."""
    return await asyncio.create_subprocess_exec(
        *leftovers.command(run), stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True
    )


async def _dismiss(guardian: Process) -> None:
    """Tell it that all is well, and wait until it has ended; where somebody has killed it, there is nothing to tell."""
    with suppress(OSError, RuntimeError):  # the latter is uvloop's word for a closed pipe
        await guardian.communicate(leftovers.ALL_WELL)
    await guardian.wait()


def _adopt_orphans() -> None:
    """What a dead engine leaves behind becomes our child, and can be buried."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _complain(task: asyncio.Task[None]) -> None:
    """A keeper never returns; one that fails leaves its replica unwatched, and that must not be silent."""
    if not task.cancelled() and (error := task.exception()):
        context = {"message": "a replica is no longer watched", "exception": error, "task": task}
        task.get_loop().call_exception_handler(context)
