"""Finished points kept beside the table to be, so that a sweep that was stopped goes on where it was.

`OUT.parts/` has one file of JSON lines for every run, each line a row under the key of its point: the hash of the point and of the data that
answered it. A batch is on the disk before the next one is waited for. A line that was cut short counts for nothing, and its point is asked again.
"""

import fcntl
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec

from polypod.errors import FileError, RunError
from polypod.plan.sweep import Row
from polypod.sweep.work import PLANS, Kind, versions


class _Line(msgspec.Struct):
    key: str
    row: Row


def keys_of(points: Sequence[Any], kind: Kind = PLANS) -> dict[Any, str]:
    """What the answer of each point is kept under: nothing that could change the answer is left out."""
    return {
        point: sha256(msgspec.json.encode([point, version])).hexdigest()[:32]
        for point, version in versions(kind, points).items()
    }


class Store:
    """The parts of one table, held by one run at a time."""

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(out.name + ".parts")
        self._file: IO[bytes] | None = None
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = (self.folder / "lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._close()
            msg = f"{self.folder}: another sweep is writing here; wait for it, or give another file with -o"
            raise RunError(msg) from error
        except OSError as error:
            raise FileError(self.folder, f"cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:  # fmt: skip
        if not self._parts():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._close()

    def finished(self) -> dict[str, Row]:
        """Everything that earlier runs finished, by key."""
        rows: dict[str, Row] = {}
        for path in self._parts():
            for line in path.read_bytes().splitlines():
                with suppress(msgspec.DecodeError):  # cut short when its run was stopped
                    one = msgspec.json.decode(line, type=_Line)
                    rows[one.key] = one.row
        return rows

    def forget(self) -> None:
        """Take out what earlier runs finished."""
        for path in self._parts():
            path.unlink()

    def keep(self, batch: Mapping[str, Row]) -> None:
        """Put a batch on the disk. Raises `RunError` where it does not fit; earlier batches stay."""
        if not batch:
            return
        lines = [msgspec.json.encode(_Line(key=key, row=row)) + b"\n" for key, row in batch.items()]
        try:
            if self._file is None:
                self._file = self._new_part()
            left = memoryview(b"".join(lines))
            while left:  # a disk that fills takes a part, and refuses the rest
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            msg = f"{self.folder}: cannot be written: {error.strerror}; what is finished is kept there: make room, and say the same command again"
            raise RunError(msg) from error

    def remove(self) -> None:
        """The table is written: the parts are not needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._close()

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    def _new_part(self) -> IO[bytes]:
        """A file of this run's own, so that nothing is ever written behind a line that was cut short."""
        numbers = [int(path.stem) for path in self._parts() if path.stem.isdecimal()]
        path = self.folder / f"{max(numbers, default=0) + 1:06}.jsonl"
        return path.open("xb", buffering=0)

    def _close(self) -> None:
        for held in (self._file, self._lock):
            if held is not None:
                held.close()
        self._file = self._lock = None
