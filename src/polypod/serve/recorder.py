"""Writes a live run's record beside serving it, never in its way.

Lines gather in memory and go to the file in a thread, once per `FLUSH_S` and at the end. When the file cannot be written
(a full disk), that is said once, recording stops at the last whole line, and serving goes on.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final

from polypod import record
from polypod.errors import FileError

FLUSH_S: Final = 0.5
MOST_LINES_WAITING: Final = 500_000  # about 100 MB; a disk this far behind will not catch up

_AT_ONCE: Final = 256

_LOG: Final = logging.getLogger("polypod.serve")


class Recorder:
    """A record being written. `start` and `close` belong to one running loop; `write` never waits."""

    def __init__(
        self, path: Path, header: record.Header, *, on_failure: Callable[[], None] = lambda: None
    ) -> None:
        """Raises `FileError` when the file cannot be made: better now than after the first request."""
        self._path = path
        self._on_failure = on_failure
        self._waiting: list[record.Line] = [header]
        self._stopping = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None
        self._whole_bytes = 0  # the file up to here is whole lines
        try:
            self._file: FileIO | None = FileIO(str(path), "w")
        except OSError as error:
            raise FileError(path, f"cannot be written: {error.strerror}") from error

    @property
    def is_recording(self) -> bool:
        """False once writing has failed."""
        return self._file is not None

    def write(self, line: record.Line) -> None:
        """Add one line to what is written next."""
        if self._file is None:
            return
        self._waiting.append(line)
        if len(self._waiting) > MOST_LINES_WAITING:
            self._give_up("the disk is too slow")

    def start(self) -> None:
        """Begin to flush, in the running loop."""
        self._flusher = asyncio.get_running_loop().create_task(self._flush_often())

    async def close(self) -> None:
        """Write what is left, and close the file."""
        self._stopping.set()
        if self._flusher is not None:
            await self._flusher
        await self._flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    async def _flush_often(self) -> None:
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), FLUSH_S)
            except TimeoutError:
                await self._flush()

    async def _flush(self) -> None:
        lines, self._waiting = self._waiting, []
        file = self._file
        if file is None or not lines:
            return
        try:
            self._whole_bytes = await asyncio.to_thread(_append, file, lines, self._whole_bytes)
        except OSError as error:
            self._give_up(error.strerror or str(error))

    def _give_up(self, reason: str) -> None:
        if self._file is None:
            return
        _LOG.error("%s: %s; the run goes on without a record", self._path, reason)
        self._on_failure()
        self._file.close()
        self._file = None
        self._waiting = []


def _append(file: FileIO, lines: list[record.Line], whole_bytes: int) -> int:
    """Write all lines; return the new end of the file. A line written in part is taken off again."""
    parts = range(0, len(lines), _AT_ONCE)  # between two of them the event loop may have its turn
    data = b"".join(record.encode_all(lines[at : at + _AT_ONCE]) for at in parts)
    written_bytes = 0
    try:
        while written_bytes < len(data):
            written_bytes += file.write(memoryview(data)[written_bytes:]) or 0
    except OSError:
        with suppress(OSError):
            file.truncate(whole_bytes + data.rfind(b"\n", 0, written_bytes) + 1)
        raise
    return whole_bytes + len(data)
