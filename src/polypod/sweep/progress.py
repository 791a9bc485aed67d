"""How far a sweep is: a bar on a terminal, elsewhere a line for every tenth."""

import time
from collections.abc import Callable
from typing import Final, TextIO

from polypod import units

WIDTH: Final = 80

_REDRAWN_S: Final = 0.2


class Progress:
    """Told how many points are done; `clock` is in seconds. Points finished by an earlier run count as done, not as speed."""

    def __init__(
        self, total: int, done: int, out: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done = total, done
        self._out, self._clock = out, clock
        self._is_terminal = out.isatty()
        self._begun_s = clock()
        self._begun_done = done
        self._drawn_s = -_REDRAWN_S
        self._tenths = 10 * done // total

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        if self._is_terminal:
            self._draw()
        elif 10 * self.done // self.total > self._tenths:
            self._tenths = 10 * self.done // self.total
            self._out.write(f"{100 * self.done // self.total} %: {self.text()}\n")
            self._out.flush()

    def end(self) -> None:
        """Leave the line of the bar."""
        if self._is_terminal:
            self._out.write("\r" + " " * (WIDTH - 1) + "\r")
            self._out.flush()

    def text(self) -> str:
        """Done of how many, how fast, how long still."""
        spent_s = self._clock() - self._begun_s
        fresh = self.done - self._begun_done
        text = f"{self.done:,} of {self.total:,} points"
        if not fresh or spent_s <= 0:
            return text
        rate_per_s = fresh / spent_s
        left_s = (self.total - self.done) / rate_per_s
        left = f", {units.show(left_s, 's')} left" if self.done < self.total else f" in {units.show(spent_s, 's')}"  # fmt: skip
        fast = f"{units.significant(rate_per_s)}/s" if rate_per_s >= 1 else f"{units.show(1 / rate_per_s, 's')} a point"  # fmt: skip
        return f"{text}, {fast}{left}"

    def _draw(self) -> None:
        now_s = self._clock()
        if now_s - self._drawn_s < _REDRAWN_S and self.done < self.total:
            return
        self._drawn_s = now_s
        text = self.text()
        room = max(WIDTH - len(text) - 4, 0)
        full = room * self.done // self.total
        line = f"[{'#' * full}{'.' * (room - full)}] {text}"
        self._out.write("\r" + line[: WIDTH - 1].ljust(WIDTH - 1))
        self._out.flush()
