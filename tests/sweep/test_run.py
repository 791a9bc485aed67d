"""Points to rows: in order, kept as they come, never worked off twice."""

from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from polypod.errors import RunError
from polypod.plan.sweep import Point, failed
from polypod.sweep.run import run, tally
from polypod.sweep.store import Store, keys_of
from polypod.sweep.work import Result

POINTS = [Point(model=name, on="x") for name in "abcdefgh"]


class Watch:
    def __init__(self) -> None:
        self.done = 0

    def add(self, count: int) -> None:
        self.done += count


class Backwards:
    """Works points off last first, two at a time; stops after `most` of them."""

    def __init__(self, most: int = 100, error: BaseException | None = None) -> None:
        self.most, self.error = most, error
        self.asked: list[str] = []

    def __call__(self, points: Sequence[Point]) -> Generator[list[Result], None, None]:
        left = list(points)
        while left:
            if len(self.asked) >= self.most and self.error:
                raise self.error
            batch = [left.pop() for _ in range(min(2, len(left)))]
            self.asked += [point.model for point in batch]
            yield []
            yield [(point, failed(point, point.model)) for point in batch]


def test_rows_come_in_the_order_of_the_points_whatever_order_they_were_worked_off_in(
    tmp_path: Path,
) -> None:
    watch = Watch()
    with Store(tmp_path / "out.csv") as store:
        rows = run(keys_of(POINTS), {}, Backwards(), store, watch)
    assert [row["model"] for row in rows] == list("abcdefgh")
    assert watch.done == 8
    assert tally(rows) == {"error": 8}


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RunError("a cluster that went away")])
def test_a_run_that_was_stopped_goes_on_and_asks_no_finished_point_again(
    tmp_path: Path, stop: BaseException
) -> None:
    keys = keys_of(POINTS)
    first, second = Backwards(4, stop), Backwards()
    with Store(tmp_path / "out.csv") as store, pytest.raises(type(stop)):
        run(keys, store.finished(), first, store, Watch())
    with Store(tmp_path / "out.csv") as store:
        rows = run(keys, store.finished(), second, store, Watch())
    assert sorted(first.asked + second.asked) == list("abcdefgh")
    assert [row["reason"] for row in rows] == list("abcdefgh")


def test_a_point_whose_data_changed_is_asked_again(tmp_path: Path, own_catalog: Path) -> None:
    with Store(tmp_path / "out.csv") as store:
        run(keys_of(POINTS), store.finished(), Backwards(), store, Watch())
        (own_catalog / "pods").mkdir(parents=True)
        (own_catalog / "pods" / "mine.toml").write_text("x = 1")
        again = Backwards()
        run(keys_of(POINTS), store.finished(), again, store, Watch())
    assert sorted(again.asked) == list("abcdefgh")


def test_without_a_file_nothing_is_kept_and_the_rows_are_the_same() -> None:
    assert [row["model"] for row in run(keys_of(POINTS), {}, Backwards(), None, Watch())] == list("abcdefgh")  # fmt: skip
