"""Points worked off by processes of this machine.

Every worker has one pipe and one point at a time, so that a worker that dies (killed, out of memory) is known by its pipe's end, and its point
goes to another. Workers are spawned, not forked: they hold no descriptor of ours, so they see the pipe end and leave when we are killed.
"""

import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from threading import current_thread, main_thread
from typing import Any, Final

from polypod.errors import RunError
from polypod.plan.sweep import Row
from polypod.sweep.work import MOST_DEATHS, PLANS, Kind, Result, gave_up, work

TICK_S: Final = 1.0
"""How long to wait for a result before yielding none."""

_MOST_STARTS: Final = 3
_LEAST_DEATHS: Final = 20
"""So many workers that died in a row, none having started yet or none having answered: it is not the points."""

_READY: Final = "ready"


class _Worker:
    """A process, its pipe, and the point it is at."""

    def __init__(self, kind: Kind) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, kind), daemon=True)
        start_deaf(self.process)
        self.pid = self.process.pid or 0
        theirs.close()
        self.point: Any = None
        self.is_ready = False

    def give(self, point: Any) -> None:  # noqa: ANN401 (a point of any kind)
        """Send it a point; that it is dead shows when the answer is asked for."""
        self.point = point
        try:
            self.pipe.send(point)
        except OSError:
            return

    def take(self) -> Row | str | None:
        """Its answer, or that it is ready for a point; None where it died."""
        try:
            said: Row | str = self.pipe.recv()
        except (EOFError, OSError):
            return None
        return said

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def start_deaf(process: SpawnProcess) -> None:
    """Start a process that does not hear Ctrl-C from its first moment on: it is the parent's to hear, once the process has all it needs to start.

    The mask is inherited. It is of this thread alone, and another may hear the signal for all: hence the handler. The first process of all starts
    multiprocessing's own helper, which takes the mask off again: so that is started before.
    """
    resource_tracker.ensure_running()
    with _heard_later():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _heard_later() -> Iterator[None]:
    """Ctrl-C in here is an interrupt at its end; where the main thread would hear it at all."""
    usual = signal.getsignal(signal.SIGINT)
    if current_thread() is not main_thread() or usual is not signal.default_int_handler:
        yield
        return
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if heard:
        raise KeyboardInterrupt


def serve(pipe: Connection, kind: Kind = PLANS) -> None:
    """A worker's life: answer points until the pipe ends."""
    try:
        pipe.send(_READY)
        while True:
            pipe.send(work(pipe.recv(), kind))
    except (EOFError, OSError):
        return


class Pool:
    """A `Runner` on so many processes."""

    def __init__(self, jobs: int, kind: Kind = PLANS) -> None:
        self.jobs = jobs
        self.kind = kind
        self._workers: list[_Worker] = []
        self._waiting: deque[Any] = deque()
        self._deaths: Counter[Any] = Counter()
        self._deaths_in_a_row = 0
        self._was_ready = False

    @property
    def at_work(self) -> list[int]:
        """Processes that are at a point."""
        return [one.pid for one in self._workers if one.point is not None]

    def __call__(self, points: Sequence[Any]) -> Generator[list[Result], None, None]:
        self._waiting.extend(points)
        try:
            for _ in range(min(self.jobs, len(points))):
                self._workers.append(_Worker(self.kind))  # each is ended should the next not start
            while self._waiting or self.at_work:
                heard = {
                    one.pipe: one
                    for one in self._workers
                    if one.point is not None or not one.is_ready
                }
                ready = [heard[pipe] for pipe in wait(list(heard), TICK_S)]  # type: ignore[index]
                yield [result for one in ready for result in self._result(one)]
        finally:
            for worker in self._workers:
                worker.end()
            self._workers.clear()

    def _result(self, worker: _Worker) -> Iterator[Result]:
        """What a worker has to say; then it gets its next point, or another takes its place."""
        point, said = worker.point, worker.take()
        if said is None:
            self._replace(worker)
            row = None if point is None else self._lost(point)
        elif isinstance(said, str):
            worker.is_ready = self._was_ready = True
            row = None
        else:
            self._deaths_in_a_row = 0
            row = said
        if said is not None:
            worker.point = None
            if self._waiting:
                worker.give(self._waiting.popleft())
        if point is not None and row is not None:
            yield point, row

    def _replace(self, dead: _Worker) -> None:
        self._deaths_in_a_row += 1
        most = max(_LEAST_DEATHS, 4 * self.jobs) if self._was_ready else _MOST_STARTS
        if self._deaths_in_a_row >= most:
            dead.process.join(TICK_S)
            when = "answered" if self._was_ready else "began"
            msg = (
                f"{most} workers in a row died before they {when} (the last one: exit code {dead.process.exitcode}); "
                "is there memory for so many? Try --jobs 1; what is finished is kept"
            )
            raise RunError(msg)
        self._workers.remove(dead)
        dead.end()
        self._workers.append(_Worker(self.kind))

    def _lost(self, point: Any) -> Row | None:  # noqa: ANN401
        """None where the point may be tried again."""
        self._deaths[point] += 1
        if self._deaths[point] < MOST_DEATHS:
            self._waiting.append(point)
            return None
        return gave_up(point, f"its worker was killed {MOST_DEATHS} times", self.kind)
