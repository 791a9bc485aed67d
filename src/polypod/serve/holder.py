"""Which process listens on a port: for the message that it is taken."""

from contextlib import suppress
from pathlib import Path
from typing import Final

_LISTENS: Final = "0A"  # TCP_LISTEN of include/net/tcp_states.h


def holder(port: int) -> str | None:
    """Name the process, as "process 4711 (polypod up)"; None where it is another user's, which the kernel does not show."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    if not sockets:
        return None
    for folder in Path("/proc").glob("[0-9]*"):
        if sockets & _open_files(folder):
            return f"process {folder.name} ({_command(folder)})"
    return None


def _inodes(port: int) -> set[str]:
    """Of the sockets that listen there. /proc/net/tcp has a line each: `sl local_address rem_address st ... uid timeout inode`."""
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = Path("/proc/net", name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def _open_files(process: Path) -> set[str]:
    found = set()
    with suppress(OSError):  # it has ended, or is not ours to look into
        for link in (process / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed since
                found.add(str(link.readlink()))
    return found


def _command(process: Path) -> str:
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "?"
    text = " ".join(word for word in words if word)
    return text if len(text) <= 60 else f"{text[:57]}..."
