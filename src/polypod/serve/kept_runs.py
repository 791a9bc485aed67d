"""What earlier runs left in the state folder: plans, logs and records, which stay until somebody has them removed.

A run's folder has the name that a node gave it, and holds what a node writes. It is in use while its node runs, and is taken to be while that cannot be told: where the
node's file is of another boot or machine, or something in the folder has changed just now. Nothing is removed of a folder in use, nor of one with anything else in it.
"""

import re
import stat
from calendar import timegm
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import strptime
from typing import Any, Final, Literal

import msgspec

from polypod import units
from polypod.serve import leftovers, nodes

WORTH_A_WORD_BYTES: Final = 1e9
QUIET_S: Final = 120.0
"""For so long after the last change in a folder its node may be one that just starts, and is not written down yet."""

_NAME: Final = re.compile(r"(\d{8}-\d{6})-[0-9a-f]{4}", re.ASCII)
_WRITTEN: Final = re.compile(
    r"record\.jsonl|prompts\.jsonl|plan(-\d+)?\.yaml|ghosts-\d+\.json|.+\.mindie\.json|.+\.log(\.earlier|\.previous)?"
)
_LONGEST_HEADER_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run's folder. Times are of the system's clock."""

    folder: Path
    began_s: float  # by its name
    changed_s: float  # the latest that anything in it did
    size_bytes: int
    kind: Literal["engines", "ghosts", "no record"]
    models: tuple[str, ...]  # of its first plan
    others: tuple[str, ...]  # what is in it that no node wrote
    is_in_use: bool

    @property
    def name(self) -> str:
        return self.folder.name


class _Header(msgspec.Struct, tag="header"):
    """The first line of a record, as far as it is shown."""

    plan: dict[str, Any] | None = None


def kept_runs(state: Path) -> tuple[int, int]:
    """How many runs are kept, and the bytes that their files have; none where nothing was run yet."""
    runs, size_bytes = 0, 0
    with suppress(OSError):
        for folder in (state / "runs").iterdir():
            runs += 1
            with suppress(OSError):  # another node may be ending there
                size_bytes += sum(file.stat().st_size for file in folder.iterdir())
    return runs, size_bytes


def said_of_runs(state: Path, worth_bytes: float = WORTH_A_WORD_BYTES) -> str:
    """What to say of them at a start; empty while they are small."""
    runs, size_bytes = kept_runs(state)
    if size_bytes < worth_bytes:
        return ""
    shown = units.show(float(size_bytes), "bytes")
    return f"{runs:,} earlier runs take {shown} in {state / 'runs'}: `polypod runs` lists them, and `polypod runs --prune --keep 10` removes all but the last ten"


def runs(state: Path, now_s: float) -> list[Run]:
    """All that are kept, the latest first; what is there by other names is no run."""
    found = []
    with suppress(OSError):
        for folder in (state / "runs").iterdir():
            with suppress(OSError):  # it is being removed
                run = _run(folder, state, now_s)
                found += [run] if run is not None else []
    return sorted(found, key=lambda run: (run.began_s, run.name), reverse=True)


def to_go(kept: Sequence[Run], *, keep: int | None, before_s: float | None) -> list[Run]:
    """Of runs, the latest first, those that are to be removed: not the first `keep`, and nothing that changed after `before_s`."""
    return [
        run
        for run in kept[keep or 0 :]
        if not run.is_in_use and (before_s is None or run.changed_s < before_s)
    ]


def why_left(run: Run) -> str | None:
    """Why it cannot be removed; None where it can."""
    if run.is_in_use:
        return "it is in use"
    return f"it has {', '.join(run.others[:3])}, which no node wrote" if run.others else None


def remove(run: Run, state: Path, now_s: float) -> str | None:
    """Remove a run's folder; why it is left, where it is."""
    again = _run(run.folder, state, now_s)
    if again is None:
        return "it is no run's folder any more"
    why = why_left(again)
    if why is not None:
        return why
    for file in run.folder.iterdir():
        file.unlink()
    run.folder.rmdir()
    return None


def _run(folder: Path, state: Path, now_s: float) -> Run | None:
    named = _NAME.fullmatch(folder.name)
    if named is None or not stat.S_ISDIR(folder.lstat().st_mode):
        return None
    files = {file.name: file.lstat() for file in folder.iterdir()}
    changed_s = max([folder.stat().st_mtime, *(one.st_mtime for one in files.values())])
    header = _header(folder / "record.jsonl")
    others = [name for name, one in files.items() if not _is_ours(name, one.st_mode)]
    is_ghosts = any(name.startswith("ghosts-") for name in files)
    return Run(
        folder=folder,
        began_s=timegm(strptime(named[1], "%Y%m%d-%H%M%S")),
        changed_s=changed_s,
        size_bytes=sum(one.st_size for one in files.values()),
        kind="no record" if header is None else "ghosts" if is_ghosts else "engines",
        models=_models(header),
        others=tuple(sorted(others)),
        is_in_use=now_s - changed_s < QUIET_S or _has_node(folder, state),
    )


def _is_ours(name: str, mode: int) -> bool:
    return stat.S_ISREG(mode) and _WRITTEN.fullmatch(name) is not None


def _has_node(folder: Path, state: Path) -> bool:
    """Whether a node runs there, or may: one of another machine that has the same state folder cannot be asked."""
    node = nodes.of_folder(state, folder)
    return node is not None and (node.is_running or node.boot_id != leftovers.boot_id())


def _header(record: Path) -> _Header | None:
    with suppress(OSError, msgspec.DecodeError), record.open("rb") as file:
        return msgspec.json.decode(file.readline(_LONGEST_HEADER_BYTES), type=_Header)
    return None


def _models(header: _Header | None) -> tuple[str, ...]:
    services = (header.plan or {}).get("services", []) if header is not None else []
    return tuple(str(one.get("model")) for one in services)
