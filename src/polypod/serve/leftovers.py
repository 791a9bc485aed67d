"""Processes that outlive whoever started them: found by a mark they inherited, ended, and never mistaken for others.

Every engine is started with `POLYPOD_MARK=<run>:<replica>` in its environment, where `<run>` is 128 random bits; what it starts inherits it. A
process is ended only while it is held by a pidfd and still has the mark, so that a pid that was given away in the meantime is safe.

Run as a program, it is a node's guardian: it waits for its standard input to end. A node that stops in order says so first; one that was killed
cannot, and then every process with its mark is ended at once, grandchildren included. Imports the standard library only, and starts in 20 ms.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

VARIABLE: Final = "POLYPOD_MARK"
ALL_WELL: Final = b"stopped"
_ROUNDS: Final = 250
_ROUND_S: Final = 0.02


def environment(run: str, replica: str) -> dict[str, str]:
    """What an engine's environment has besides all else."""
    return {VARIABLE: f"{run}:{replica}"}


def marked(run: str, replica: str | None = None) -> list[int]:
    """The processes of this run, or of one of its replicas. Zombies have nothing left, and are not among them."""
    own = os.getpid()
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if pid != own and _has_mark(pid, run, replica)]


def end_marked(run: str, replica: str | None = None) -> list[int]:
    """SIGKILL them all, also what they start meanwhile; return whom. Nobody else may be waiting for one of them."""
    ended: dict[int, None] = {}
    for _ in range(_ROUNDS):
        found = marked(run, replica)
        if not found:
            break
        for pid in found:
            if _end(pid, run, replica):
                ended[pid] = None
        time.sleep(_ROUND_S)
    _bury(ended)
    return list(ended)


def _bury(pids: Iterable[int]) -> None:
    """Wait for those that became our children when their own parent died."""
    for pid in pids:
        for _ in range(_ROUNDS):
            try:
                if os.waitpid(pid, os.WNOHANG) != (0, 0):
                    break
            except ChildProcessError:  # another's
                break
            time.sleep(_ROUND_S)


def started_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot: with it a pid names one process. None where there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def boot_id() -> str:
    """Changes with every boot; ticks count from there."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _end(pid: int, run: str, replica: str | None) -> bool:
    try:
        held = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _has_mark(pid, run, replica):
            return False
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(held, signal.SIGKILL)
            return True
        return False
    finally:
        os.close(held)


def _has_mark(pid: int, run: str, replica: str | None) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return False
    start = f"{VARIABLE}={run}:".encode()
    if replica is None:
        return any(one.startswith(start) for one in variables)
    return start + replica.encode() in variables


def guard(run: str) -> None:
    """Wait for the node's last word, and end what it left where there was none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    said = sys.stdin.buffer.read()
    if said != ALL_WELL:
        end_marked(run)


def command(run: str) -> Sequence[str]:
    """How to start the guardian of a run."""
    return (sys.executable, "-S", "-E", __file__, run)


if __name__ == "__main__":
    guard(sys.argv[1])
