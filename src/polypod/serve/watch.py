"""What a supervisor looks at every few seconds: how much memory an engine has, how long its log is, and who was orphaned.

Memory is counted as the kernel would have to find it elsewhere: anonymous and shared pages of a process and all below it. Pages of files, such
as weights that are mapped, are left out: the kernel can drop them.
"""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

MOST_LOG_BYTES: Final = 8 << 20
_KEPT_LOG_BYTES: Final = 1 << 20
_COUNTED: Final = ("RssAnon:", "RssShmem:", "VmSwap:")


def used_bytes(pid: int) -> int:
    """Memory of a process and of all that it started and that still runs below it."""
    return sum(_own_bytes(one) for one in _tree(pid))


def bound_log(log: Path) -> None:
    """Keep only the end of a log that has grown too long, in a file beside it; the engine, which appends, starts it anew."""
    with suppress(FileNotFoundError):
        size = log.stat().st_size
        if size <= MOST_LOG_BYTES:
            return
        with log.open("rb") as file:
            file.seek(size - _KEPT_LOG_BYTES)
            earlier(log).write_bytes(file.read())
        os.truncate(log, 0)


def earlier(log: Path) -> Path:
    """Where the end of what was cut off is."""
    return log.with_name(f"{log.name}.earlier")


def reap_orphans(sessions: Collection[int], watched: Collection[int]) -> None:
    """Bury children of dead engines, which became ours when we asked to be their reaper; never a process that somebody waits for."""
    for pid in _children(os.getpid()):
        if pid in watched:
            continue
        state, session = _state(pid)
        if state == "Z" and session in sessions:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def oom_kills() -> int:
    """How often the kernel has ended a process for want of memory since boot; 0 where it does not say."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _own_bytes(pid: int) -> int:
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(_COUNTED))
    return 0


def _tree(pid: int) -> list[int]:
    found = [pid]
    for one in found:  # grows as it goes
        found += _children(one)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def _state(pid: int) -> tuple[str, int]:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[3])
    return "", 0
