"""Compile the C of this folder once on this machine, and load it: `core` plays whole runs, `emulate` one engine.

A library is kept under `$XDG_CACHE_HOME/polypod` (`~/.cache/polypod`) by the hash of its source, the compiler and its flags.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final, Literal

from polypod.errors import RunError

FLAGS: Final = ("-std=c11", "-O2", "-ffp-contract=off", "-fPIC", "-shared")
"""No fast-math and no contraction of a product and a sum into one rounding: every figure is to be the one that Python computes."""

Part = Literal["core", "emulate"]

_SOURCE: Final = Path(__file__).parent


def compiler() -> str | None:
    """The C compiler that `CC` names, or the first of cc, gcc and clang; None where there is none."""
    named = os.environ.get("CC")
    return (
        shutil.which(named)
        if named
        else next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    )


@cache
def is_built(part: Part = "core") -> bool:
    """Whether loading takes no compiling, as of the first time that this is asked."""
    found = compiler()
    return found is not None and _kept(found, part).is_file()


@cache
def library(part: Part = "core") -> ctypes.CDLL:
    """The compiled library. Raises `RunError` where there is no compiler, or it fails."""
    found = compiler()
    if found is None:
        msg = "no C compiler is here (cc, gcc, clang, or what CC names); install one, or take the plain driver with --driver plain"
        raise RunError(msg)
    kept = _kept(found, part)
    return ctypes.CDLL(str(kept if kept.is_file() else _compiled(found, part, kept)))


def prepare() -> bool:
    """Compile `emulate` if it is not; whether it is there. For who has much to emulate, and can do without it."""
    try:
        library("emulate")
    except RunError:
        return False
    is_built.cache_clear()
    return True


def _kept(found: str, part: Part) -> Path:
    digest = hashlib.sha256(repr((found, FLAGS)).encode())
    for source in sorted(_SOURCE.glob("*.[ch]")):
        digest.update(source.read_bytes())
    root = os.environ.get("XDG_CACHE_HOME")
    folder = Path(root) if root and Path(root).is_absolute() else Path.home() / ".cache"
    return folder / "polypod" / f"{part}-{digest.hexdigest()[:16]}.so"


def _compiled(found: str, name: Part, kept: Path) -> Path:
    """Compile, and move the library to its place whole: another process may do the same at the same time.

    Where the place cannot be written the library serves this process alone, and is compiled again by the next.
    """
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / kept.name
        command = [found, *FLAGS, "-o", str(part), str(_SOURCE / f"{name}.c"), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own source, by the machine's compiler)
        if done.returncode:
            msg = f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}; take the plain driver with --driver plain"
            raise RunError(msg)
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            beside = kept.with_suffix(f".{os.getpid()}")
            shutil.copyfile(part, beside)
            beside.replace(kept)
        except OSError:
            ctypes.CDLL(str(part))  # stays loaded when its file is gone
            return part
    return kept
