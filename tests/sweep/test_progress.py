"""Progress: a bar of one line on a terminal, ten lines elsewhere."""

import io

from polypod.sweep.progress import WIDTH, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_file_gets_one_line_for_every_tenth() -> None:
    out, clock = io.StringIO(), Clock()
    watch = Progress(200, 0, out, clock)
    for _ in range(200):
        clock.now_s += 0.5
        watch.add(1)
    watch.end()
    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "10 %: 20 of 200 points, 2/s, 1.5 min left"
    assert lines[-1] == "100 %: 200 of 200 points, 2/s in 1.67 min"


def test_what_an_earlier_run_finished_counts_as_done_and_not_as_speed() -> None:
    clock = Clock()
    watch = Progress(100, 50, io.StringIO(), clock)
    clock.now_s += 10
    watch.add(10)
    assert watch.text() == "60 of 100 points, 1/s, 40 s left"
    clock.now_s += 10
    watch.add(0)
    assert watch.text() == "60 of 100 points, 2 s a point, 1.33 min left"


def test_a_terminal_gets_a_bar_that_fits_it_and_is_wiped_at_the_end() -> None:
    out, clock = Terminal(), Clock()
    watch = Progress(12_345_678, 0, out, clock)
    for count in (0, 1_000_000, 5_000_000, 6_345_678):
        clock.now_s += 1000
        watch.add(count)
    drawn = out.getvalue().split("\r")[1:]
    assert all(len(line) == WIDTH - 1 for line in drawn)
    assert drawn[-1].startswith("[####")
    assert "." not in drawn[-1].split("]")[0]
    assert "\n" not in out.getvalue()
    watch.end()
    assert out.getvalue().endswith("\r" + " " * (WIDTH - 1) + "\r")


def test_the_bar_is_as_full_as_the_sweep() -> None:
    out, clock = Terminal(), Clock()
    watch = Progress(100, 0, out, clock)
    clock.now_s += 1
    watch.add(25)
    bar = out.getvalue().split("[")[1].split("]")[0]
    assert abs(bar.count("#") / len(bar) - 0.25) < 1 / len(bar)


def test_a_sweep_that_is_all_finished_says_nothing_of_speed() -> None:
    assert Progress(3, 3, io.StringIO()).text() == "3 of 3 points"
