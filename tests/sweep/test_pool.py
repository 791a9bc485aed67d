"""Workers of this machine: killed ones cost a point its second try, and nothing else."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from polypod.errors import RunError
from polypod.plan.sweep import COLUMNS, Point, answer
from polypod.sweep.pool import Pool
from polypod.sweep.work import work

POINTS = [
    Point(model="llama-3.1-8b", on="nvidia-h200-sxm:1", input_tokens=n, tpot_limit_s=0.03)
    for n in (500, 1000, 2000)
]


@contextmanager
def workers_killed(most: int, alive: Callable[[], list[int]]) -> Iterator[set[int]]:
    """Kill every worker that `alive` names, so many of them."""
    killed: set[int] = set()
    over = threading.Event()

    def kill() -> None:
        while len(killed) < most and not over.is_set():
            for pid in set(alive()) - killed:
                if len(killed) < most:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def started() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def without_clock(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name != "spent_s"}


def test_a_worker_gives_the_answer_that_this_process_gives_and_says_how_long_it_took() -> None:
    found = dict(result for batch in Pool(2)(POINTS) for result in batch)
    assert found.keys() == set(POINTS)
    for point, row in found.items():
        assert without_clock(row) == without_clock(answer(point))
        assert 0 < row["spent_s"] < 60  # type: ignore[operator]
    assert multiprocessing.active_children() == []


def test_a_killed_worker_loses_nothing_and_no_point_is_answered_twice() -> None:
    pool = Pool(2)
    with workers_killed(1, lambda: pool.at_work) as killed:
        results = [result for batch in pool(POINTS) for result in batch]
    assert len(killed) == 1
    assert sorted(point.input_tokens for point, _ in results) == [500, 1000, 2000]
    assert {row["status"] for _, row in results} == {"ok"}


def test_a_worker_that_dies_as_it_starts_is_no_points_fault() -> None:
    with workers_killed(2, started) as killed:
        (result,) = [result for batch in Pool(1)(POINTS[:1]) for result in batch]
    assert len(killed) == 2
    assert result[1]["status"] == "ok"


def test_workers_that_never_start_end_the_run_soon() -> None:
    with workers_killed(100, started) as killed, pytest.raises(RunError, match=r"3 workers in a row died before they began .*exit code -9"):  # fmt: skip
        list(Pool(1)(POINTS))
    assert len(killed) == 3
    assert started() == []


def test_a_point_that_kills_its_worker_twice_is_an_error_with_what_to_do() -> None:
    pool = Pool(1)
    with workers_killed(2, lambda: pool.at_work) as killed:
        ((point, row),) = [result for batch in pool(POINTS[:1]) for result in batch]
    assert len(killed) == 2
    assert (point, row["status"]) == (POINTS[0], "error")
    assert "its worker was killed 2 times; too little memory, perhaps" in str(row["reason"])
    assert list(row) == list(COLUMNS)


def test_workers_that_all_die_end_the_run_instead_of_condemning_every_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("polypod.sweep.pool._LEAST_DEATHS", 5)
    pool = Pool(1)
    many = [Point(model="llama-3.1-8b", on="nvidia-h200-sxm:1", input_tokens=n) for n in range(1000, 1040)]  # fmt: skip
    with workers_killed(100, lambda: pool.at_work), pytest.raises(RunError, match=r"5 workers in a row died before they answered .*exit code -9.* --jobs 1"):  # fmt: skip
        list(pool(many))
    assert started() == []


def test_a_runner_that_is_closed_leaves_no_process() -> None:
    batches = Pool(2)(POINTS)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


def test_a_mistake_of_ours_is_the_points_error_with_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(point: Point) -> None:
        msg = "by zero"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr("polypod.sweep.work.answer", broken)
    row = work(POINTS[0])
    assert row["status"] == "error"
    assert "ZeroDivisionError: by zero (test_pool.py line" in str(row["reason"])
