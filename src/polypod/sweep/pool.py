"""Points worked off by processes of this machine.

Every worker has one pipe and one point at a time, so that a worker that dies (killed, out of memory) is known by its pipe's end, and its point
goes to another. Workers are spawned, not forked: they hold no descriptor of ours, so they see the pipe end and leave when we are killed.
"""

import multiprocessing
import signal
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Final

from polypod.errors import RunError
from polypod.plan.sweep import Point, Row
from polypod.sweep.work import MOST_DEATHS, Result, gave_up, work

TICK_S: Final = 1.0
"""How long to wait for a result before yielding none."""

_LEAST_DEATHS: Final = 20
"""So many workers in a row that died without an answer: it is not the points."""


class _Worker:
    """A process, its pipe, and the point it is at."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.point: Point | None = None

    def give(self, point: Point) -> None:
        """Send it a point; that it is dead shows when the answer is asked for."""
        self.point = point
        try:
            self.pipe.send(point)
        except OSError:
            return

    def take(self) -> Row | None:
        """Its answer; None where it died over it."""
        try:
            row: Row = self.pipe.recv()
        except (EOFError, OSError):
            return None
        return row

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def serve(pipe: Connection) -> None:
    """A worker's life: answer points until the pipe ends. Ctrl-C is the parent's to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            pipe.send(work(pipe.recv()))
        except (EOFError, OSError):
            return


class Pool:
    """A `Runner` on so many processes."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._workers: list[_Worker] = []
        self._waiting: deque[Point] = deque()
        self._deaths: Counter[Point] = Counter()
        self._deaths_in_a_row = 0

    def __call__(self, points: Sequence[Point]) -> Generator[list[Result], None, None]:
        self._waiting.extend(points)
        try:
            self._workers += [_Worker() for _ in range(min(self.jobs, len(points)))]
            for worker in self._workers:
                worker.give(self._waiting.popleft())
            while busy := {one.pipe: one for one in self._workers if one.point is not None}:
                ready = [busy[pipe] for pipe in wait(list(busy), TICK_S)]  # type: ignore[index]
                yield [result for one in ready for result in self._result(one)]
        finally:
            for worker in self._workers:
                worker.end()
            self._workers.clear()

    def _result(self, worker: _Worker) -> Iterator[Result]:
        """What a worker has to say, and its next point."""
        point = worker.point
        assert point is not None
        row = worker.take()
        if row is None:
            worker = self._replaced(worker)
            row = self._lost(point)
        else:
            self._deaths_in_a_row = 0
        worker.point = None
        if self._waiting:
            worker.give(self._waiting.popleft())
        if row is not None:
            yield point, row

    def _replaced(self, dead: _Worker) -> _Worker:
        self._deaths_in_a_row += 1
        most = max(_LEAST_DEATHS, 4 * self.jobs)
        if self._deaths_in_a_row >= most:
            dead.process.join(TICK_S)
            msg = (
                f"{most} workers in a row died before they answered (the last one: exit code {dead.process.exitcode}); "
                "is there memory for so many? Try --jobs 1; what is finished is kept"
            )
            raise RunError(msg)
        self._workers.remove(dead)
        dead.end()
        self._workers.append(fresh := _Worker())
        return fresh

    def _lost(self, point: Point) -> Row | None:
        """None where the point may be tried again."""
        self._deaths[point] += 1
        if self._deaths[point] < MOST_DEATHS:
            self._waiting.append(point)
            return None
        return gave_up(point, f"its worker was killed {MOST_DEATHS} times")
