"""What every engine process does first: stay on its cores, die with its parent, leave Ctrl-C to the parent.

Import nothing here that starts threads: a thread pool made before `settle` would see all cores.
"""

import argparse
import ctypes
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from polypod.errors import FileError
from polypod.serve.engines.spec import PARENT_VARIABLE, SECRET_VARIABLE
from polypod.workload.gguf import read_header

_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildOptions:
    """What the command line and the environment said."""

    model: str
    weights: Path
    cores: tuple[int, ...]
    context_tokens: int
    max_sequences: int
    socket: Path
    secret: str | None
    handover: Path | None = None


def settle(argv: Sequence[str] | None = None) -> ChildOptions:
    """Read the command line and make this process a well-behaved child."""
    options = _parse(argv)
    sys.stdout, sys.stderr = Forgiving(sys.stdout), Forgiving(sys.stderr)
    os.sched_setaffinity(0, options.cores)
    die_with_parent()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole terminal; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # at once, also while the library loads
    return options


def check_weights(path: Path) -> None:
    """End this process with the reason where the file is not whole: an engine may crash on it without a word."""
    try:
        read_header(path)
    except FileError as error:
        raise SystemExit(str(error)) from error


class Forgiving(io.TextIOBase):
    """A log that must not stop what it tells of: when the disk is full, lines are lost and the engine goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, however the parent dies.

    The parent may have died before we asked; then this process has another parent by now, and ends itself.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    expected = os.environ.get(PARENT_VARIABLE)
    if expected is not None and os.getppid() != int(expected):
        msg = f"the parent {expected} is gone"
        raise SystemExit(msg)


def _parse(argv: Sequence[str] | None) -> ChildOptions:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--cores", required=True, type=_cores)
    parser.add_argument("--context-tokens", required=True, type=int)
    parser.add_argument("--max-sequences", required=True, type=int)
    parser.add_argument("--socket", required=True, type=Path)
    parser.add_argument("--handover", type=Path)
    secret = os.environ.pop(SECRET_VARIABLE, None)
    return ChildOptions(**vars(parser.parse_args(argv)), secret=secret)


def _cores(text: str) -> tuple[int, ...]:
    return tuple(int(core) for core in text.split(","))
