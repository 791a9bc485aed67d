"""A run behind several gateways, played in this process or in several, and put together again."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final

import numpy as np

from polypod.cli.run_folder import RunFolder
from polypod.cli.simulated import MOST_ROWS, Gathered, Played, Teller, interrupted, outcomes_of
from polypod.errors import InputError, PolypodError, RunError
from polypod.record import ended
from polypod.report.coarse import Coarse
from polypod.report.merged import gateway_record, merged
from polypod.report.outcomes import Outcomes
from polypod.report.summary import summary_of
from polypod.simulate.arriving import Blocks
from polypod.simulate.compiled import Progress, Session, Turn
from polypod.simulate.gateways import Doors
from polypod.simulate.run import header
from polypod.simulate.scenario import Scenario
from polypod.sweep.pool import start_deaf
from polypod.workload.traffic import Traffic, blocks

TICK_S: Final = 0.25
BLOCK_REQUESTS: Final = 65_536
MOST_BLOCK_REQUESTS: Final = 1 << 19
"""Blocks grow with the gateways that they are given out to, up to here: some 60 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one process plays: some gateways of a run. `scenarios` are by gateway, of so many."""

    scenarios: dict[int, Scenario]
    gateways: int
    traffic: Traffic
    seed: int
    share: float  # of the requests whose steps are in the records
    folder: Path | None


@dataclass(slots=True, eq=False)
class Part:
    """What has come of one gateway; `coarse` has counted the requests that were too many to keep."""

    outcomes: Outcomes
    coarse: Coarse | None


def play_gateways(
    scenarios: Sequence[Scenario], traffic: Traffic, share: float, folder: Path | None, processes: int
) -> Played:  # fmt: skip
    """Play the parts of a run (`simulate.gateways.split`), in order the same however many processes there are."""
    tasks = [
        _task(scenarios, range(first, len(scenarios), processes), traffic, share, folder)
        for first in range(min(processes, len(scenarios)))
    ]
    teller = Teller(traffic.expected_s)
    with interrupted() as is_interrupted:
        if len(tasks) == 1:
            parts = play_here(tasks[0], teller.tell, is_interrupted)
        else:
            parts = _play_apart(tasks, teller, is_interrupted)
    teller.done()
    return _whole(parts)


def play_in_step(scenarios: Sequence[Scenario], traffic: Traffic) -> Played:
    """The same in this process, without records, and without a word on how far it is."""
    task = _task(scenarios, range(len(scenarios)), traffic, 0.0, None)
    return _whole(play_here(task, lambda _: None, lambda: False))


def _task(
    scenarios: Sequence[Scenario], these: range, traffic: Traffic, share: float, folder: Path | None
) -> Task:
    return Task(
        scenarios={which: scenarios[which] for which in these},
        gateways=len(scenarios),
        traffic=traffic,
        seed=scenarios[0].seed,
        share=share,
        folder=folder,
    )


def _whole(parts: dict[int, Part]) -> Played:
    """All gateways as one run. Where one had too many requests to keep, those of all are counted."""
    ordered = [parts[which] for which in range(len(parts))]
    outcomes = [part.outcomes for part in ordered]
    if not any(part.coarse for part in ordered):
        whole = merged(outcomes)
        return Played(outcomes=whole, is_whole=whole.is_whole, summary=summary_of(whole))
    counted = [part.coarse or Coarse() for part in ordered]
    for its, part in zip(counted, outcomes, strict=True):
        its.add(part)
    is_whole = all(part.is_whole for part in outcomes)
    whole = merged(outcomes, max(its.last_s for its in counted) if is_whole else None)
    places = {one.name: place for place, one in enumerate(whole.replicas)}
    together = Coarse()
    for its, part in zip(counted, outcomes, strict=True):
        own = np.array([places[one.name] for one in part.replicas], dtype=np.int64)
        together.merge(its, own, len(places))
    return Played(outcomes=whole, is_whole=is_whole, summary=together.summary(whole))


def play_here(
    task: Task, tell: Callable[[Progress], None], is_stopped: Callable[[], bool]
) -> dict[int, Part]:
    """Play all gateways of a task in step, a turn of each at a time, so that one pass over the traffic feeds them all."""
    size = min(BLOCK_REQUESTS * len(task.scenarios), MOST_BLOCK_REQUESTS)
    doors = Doors(blocks(task.traffic, size), task.gateways, task.seed, list(task.scenarios))
    with ExitStack() as files:
        ones = [_One(task, which, doors, files) for which in task.scenarios]
        live = list(ones)
        while live and not is_stopped():
            live = [one for one in live if one.turn()]
            tell(_sum([one.session.progress for one in ones]))
        return {one.which: one.end() for one in ones}


class _One:
    """One gateway as it is played."""

    def __init__(self, task: Task, which: int, doors: Doors, files: ExitStack) -> None:
        self.which = which
        scenario = task.scenarios[which]
        try:
            arriving = Blocks(doors.of(which))
        except InputError as error:
            msg = f"no request comes to gateway {which} of {task.gateways}; say fewer gateways, or play more traffic"
            raise InputError(msg) from error
        self.session = Session(scenario, arriving, share=task.share)
        self._most_rows = MOST_ROWS // task.gateways
        self._turns: Iterator[Turn] = self.session.turns()
        record = None
        if task.folder is not None:
            folder = gateway_record(task.folder, which).parent
            record = files.enter_context(RunFolder(str(folder))).file
        self._gathered = Gathered(record)
        self._gathered.add([header(scenario, task.share), *scenario.notes])

    def turn(self) -> bool:
        """Play one turn; whether there is another."""
        turn = next(self._turns, None)
        if turn is not None:
            self._gathered.add(turn.lines, turn.outcomes)
            if self._gathered.kept >= self._most_rows:
                self._gathered.fold(self.session)
        return turn is not None

    def end(self) -> Part:
        """What has come of it, at its end or where it was left."""
        is_whole = self.session.is_done
        self._gathered.add(self.session.totals(), None if is_whole else self.session.leave())
        if is_whole:
            self._gathered.add([ended(self.session.progress.now_s)])
        outcomes = outcomes_of(self.session, self._gathered)
        return Part(outcomes=outcomes, coarse=self._gathered.coarse)


def _sum(found: Sequence[Progress]) -> Progress:
    """As far as the one that is furthest behind."""
    return Progress(
        now_s=min(one.now_s for one in found),
        events=sum(one.events for one in found),
        live=sum(one.live for one in found),
        batch_changes=sum(one.batch_changes for one in found),
    )


# ---- several processes


class _Player:
    """A process that plays a task. It does not hear Ctrl-C, and stops when it is told."""

    def __init__(self, task: Task) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.task = task
        self.pipe, theirs = spawn.Pipe()
        self.process: SpawnProcess = spawn.Process(target=serve, args=(theirs,), daemon=True)
        start_deaf(self.process)
        theirs.close()
        self.progress = Progress(now_s=0.0, events=0, live=0)
        self.found: dict[int, Part] | None = None
        with suppress(OSError):  # it died: that shows when it is listened to
            self.pipe.send(task)

    def hear(self) -> None:
        """Take what it says. Raises its own error, and `RunError` where it died."""
        try:
            said: Progress | PolypodError | dict[int, Part] = self.pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join(1.0)
            which = ", ".join(map(str, self.task.scenarios))
            msg = f"the process that played gateways {which} died (exit code {self.process.exitcode}); is there memory for so many? Say fewer --processes, or play less"
            raise RunError(msg) from error
        if isinstance(said, PolypodError):
            raise said
        if isinstance(said, Progress):
            self.progress = said
        else:
            self.found = said

    def stop(self) -> None:
        """Ask it to stop where it is."""
        with suppress(OSError):
            self.pipe.send(None)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def _play_apart(
    tasks: Sequence[Task], teller: Teller, is_interrupted: Callable[[], bool]
) -> dict[int, Part]:
    players: list[_Player] = []
    is_told = False
    try:
        for task in tasks:
            players.append(_Player(task))  # noqa: PERF401 (each is ended should the next not start)
        while playing := {one.pipe: one for one in players if one.found is None}:
            for pipe in wait(list(playing), TICK_S):
                playing[pipe].hear()  # type: ignore[index]
            teller.tell(_sum([one.progress for one in players]))
            if is_interrupted() and not is_told:
                is_told = True
                for one in playing.values():
                    one.stop()
    finally:
        for one in players:
            one.end()
    return {which: part for one in players for which, part in (one.found or {}).items()}


def serve(pipe: Connection) -> None:
    """A player's life."""
    try:
        task: Task = pipe.recv()
        try:
            pipe.send(play_here(task, _Pacer(pipe).tell, pipe.poll))
        except PolypodError as error:
            pipe.send(error)
    except (EOFError, OSError):
        os._exit(1)


class _Pacer:
    """Sends how far a player is, now and then."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._told_s = time.monotonic()

    def tell(self, progress: Progress) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= TICK_S:
            self._told_s = now_s
            self._pipe.send(progress)
