"""What earlier runs left in the state folder: plans, logs and records, which nothing removes."""

from contextlib import suppress
from pathlib import Path
from typing import Final

from polypod import units

WORTH_A_WORD_BYTES: Final = 1e9


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
    return f"{runs:,} earlier runs take {shown} in {state / 'runs'}: remove the folders that you will not report on or replay"
