"""`polypod up` as a process of its own, and what it and its engines hold."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]


class UpNode:
    """A node that serves, until the context ends. `ready` is what `up --json` printed."""

    def __init__(self, *arguments: str) -> None:
        self._state = tempfile.TemporaryDirectory(prefix="polypod-live-")
        self.log = Path(self._state.name) / "stderr"
        command = [sys.executable, "-m", "polypod", "up", "--port", "0", "--json", *arguments]
        with self.log.open("w") as stderr:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=os.environ | {"XDG_STATE_HOME": self._state.name},
            )
        self.ready = self._read()
        self.port = int(self.ready["endpoint"].rsplit(":", 1)[1].split("/")[0])
        self.model = self.ready["plan"]["services"][0]["model"]

    def _read(self):
        text = ""
        for line in self.process.stdout:
            text += line
            if line == "}\n":
                return json.loads(text)
        sys.exit(f"polypod up ended:\n{self.log.read_text()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(90)  # what is under way is waited for
        finally:
            self.process.kill()
            self._state.cleanup()

    def engines(self) -> dict[str, int]:
        """Its engine processes by the name of their socket, those that are up."""
        found = {}
        for pid in children(self.process.pid):
            name = _socket_of(pid)
            if name:
                found[name] = pid
        return dict(sorted(found.items()))


def children(process: int) -> list[int]:
    """Processes that it started and that are not waited for yet."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    except OSError:
        return []


def _socket_of(pid: int) -> str:
    try:
        arguments: Sequence[str] = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        return Path(arguments[arguments.index("--socket") + 1]).stem
    except (OSError, ValueError, IndexError):
        return ""


def rss_bytes(pid: int) -> int:
    """Memory of a process; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def descriptors(pid: int) -> int:
    """Open files and sockets of a process; 0 where it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a process that ends meanwhile is no error
    except OSError:
        return 0


def cpu_s(pid: int) -> float:
    """User and system time of a process; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
