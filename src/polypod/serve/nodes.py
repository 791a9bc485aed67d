"""The nodes of this user, each with a file in the state folder while it runs: to speak to one, and to end what a crashed one left.

A node is running while its process is: the same pid, started at the same tick of the same boot. A file without one is a crash; its guardian should have
ended the engines, and where it was killed as well, the next start does. Sockets and the file go with them.
"""

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from polypod.errors import FileError
from polypod.serve import leftovers
from polypod.serve.handover import HANDOVER_PREFIX


class NodeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is written down of a node."""

    pid: int
    started_ticks: int
    boot_id: str
    run: str  # the mark of its engines
    folder: str  # of its plan, logs and record
    url: str
    sockets: str  # the folder of its engines' sockets
    control: str  # the socket it takes orders on
    caches: str = ""  # the folder where engines hand caches over, in memory

    @property
    def is_running(self) -> bool:
        same_boot = self.boot_id == leftovers.boot_id()
        return same_boot and leftovers.started_ticks(self.pid) == self.started_ticks


class Cleaned(msgspec.Struct, frozen=True, kw_only=True):
    """A crashed node, and which of its processes were still there."""

    node: NodeFile
    ended: tuple[int, ...]


def this_process() -> tuple[int, int, str]:
    """Pid, start and boot of who asks."""
    pid = os.getpid()
    ticks = leftovers.started_ticks(pid)
    assert ticks is not None, "we are running"
    return pid, ticks, leftovers.boot_id()


def register(state: Path, node: NodeFile) -> Path:
    """Write a node's file, for this user only; return where it is. Raises `FileError`."""
    path = state / "nodes" / f"{Path(node.folder).name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(prefix=".", dir=path.parent)  # mode 0600
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(node)))
        Path(name).replace(path)
    except OSError as error:
        problem = f"cannot be written ({error.strerror}), and a node keeps there what ends its engines after a crash"
        raise FileError(path, problem) from error
    return path


def running(state: Path) -> list[NodeFile]:
    """The nodes that run now, oldest first."""
    return [node for _, node in _files(state) if node.is_running]


def of_folder(state: Path, folder: Path) -> NodeFile | None:
    """The node whose run this folder is, running or crashed; None where none is written down."""
    return next((node for _, node in _files(state) if Path(node.folder).name == folder.name), None)


def clean_up(state: Path) -> list[Cleaned]:
    """End what crashed nodes left behind."""
    cleaned = []
    for path, node in _files(state):
        if node.is_running:
            continue
        ended = leftovers.end_marked(node.run) if node.boot_id == leftovers.boot_id() else []
        _remove(Path(node.sockets), is_ours=lambda mode: stat.S_ISSOCK(mode))
        if Path(node.caches).name.startswith(HANDOVER_PREFIX):
            _remove(Path(node.caches), is_ours=lambda mode: stat.S_ISREG(mode))
        path.unlink(missing_ok=True)
        cleaned.append(Cleaned(node=node, ended=tuple(ended)))
    return cleaned


def _files(state: Path) -> list[tuple[Path, NodeFile]]:
    found = []
    for path in sorted((state / "nodes").glob("*.json")):
        with suppress(OSError, msgspec.DecodeError):  # written by another version, or gone since
            found.append((path, msgspec.json.decode(path.read_bytes(), type=NodeFile)))
    return found


def _remove(folder: Path, *, is_ours: Callable[[int], bool]) -> None:
    """What is of our kind and nothing else, and the folder if that was all: whatever the file says, no other thing is removed."""
    with suppress(OSError):
        for path in folder.iterdir():
            if is_ours(path.lstat().st_mode):
                path.unlink()
        folder.rmdir()
