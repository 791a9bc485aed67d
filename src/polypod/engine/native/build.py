"""Compile C once on this machine, and load it: of this folder `core`, which plays whole runs, and `emulate`, one engine; of others modules of Python.

A library is kept under `$XDG_CACHE_HOME/polypod` (`~/.cache/polypod`) by the hash of its source, the compiler and its flags.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Final, Literal

from polypod.errors import RunError

FLAGS: Final = ("-std=c11", "-O2", "-ffp-contract=off", "-fPIC", "-shared")
"""No fast-math and no contraction of a product and a sum into one rounding: every figure is to be the one that Python computes."""

Part = Literal["core", "emulate"]

HERE: Final = Path(__file__).parent
_NO_COMPILER: Final = "no C compiler is here (cc, gcc, clang, or what CC names); install one"


def compiler() -> str | None:
    """The C compiler that `CC` names, or the first of cc, gcc and clang; None where there is none."""
    named = os.environ.get("CC")
    return (
        shutil.which(named)
        if named
        else next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    )


def has_headers() -> bool:
    """Whether modules of Python's can be compiled, given a compiler."""
    return (_headers() / "Python.h").is_file()


def _headers() -> Path:
    return Path(sysconfig.get_paths()["include"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Build:
    """One library, and all that it is made of."""

    name: str
    source: Path
    compiler: str
    flags: Sequence[str]

    @property
    def kept(self) -> Path:
        """Where it is, once it is compiled."""
        digest = hashlib.sha256(repr((self.compiler, tuple(self.flags))).encode())
        for source in sorted(self.source.parent.glob("*.[ch]")):
            digest.update(source.read_bytes())
        root = os.environ.get("XDG_CACHE_HOME")
        folder = Path(root) if root and Path(root).is_absolute() else Path.home() / ".cache"
        return folder / "polypod" / f"{self.name}-{digest.hexdigest()[:16]}.so"


@cache
def is_built(part: Part = "core") -> bool:
    """Whether loading takes no compiling, as of the first time that this is asked."""
    found = compiler()
    return found is not None and _part(part, found).kept.is_file()


@cache
def library(part: Part = "core") -> ctypes.CDLL:
    """The compiled library. Raises `RunError` where there is no compiler, or it fails."""
    found = compiler()
    if found is None:
        msg = f"{_NO_COMPILER}, or take the plain driver with --driver plain"
        raise RunError(msg)
    try:
        return ctypes.CDLL(str(_compiled(_part(part, found))))
    except RunError as error:
        msg = f"{error}; take the plain driver with --driver plain"
        raise RunError(msg) from error


def extension(name: str, source: Path) -> ModuleType:
    """A module of Python's, compiled. Raises `RunError` where there is no compiler, Python's headers are missing, or it fails."""
    found = compiler()
    if found is None:
        raise RunError(_NO_COMPILER)
    if not has_headers():
        msg = f"Python's headers are not in {_headers()}; install them (Debian: python3-dev)"
        raise RunError(msg)
    flags = (*FLAGS, "-D_GNU_SOURCE", f"-I{_headers()}", f"-DPOLYPOD_ABI={_abi()}")
    return loaded(name, _compiled(_Build(name=name, source=source, compiler=found, flags=flags)))


def loaded(name: str, library: Path) -> ModuleType:
    """The module of Python's in a compiled library."""
    loader = ExtensionFileLoader(name, str(library))
    module = module_from_spec(ModuleSpec(name, loader, origin=str(library)))
    loader.exec_module(module)
    return module


def prepare() -> bool:
    """Compile `emulate` if it is not; whether it is there. For who has much to emulate, and can do without it."""
    try:
        library("emulate")
    except RunError:
        return False
    is_built.cache_clear()
    return True


def _part(part: Part, found: str) -> _Build:
    return _Build(name=part, source=HERE / f"{part}.c", compiler=found, flags=FLAGS)


def _abi() -> str:
    """Of this Python: what is compiled for one is not loaded by another."""
    return str(sysconfig.get_config_var("SOABI")).replace("-", "_")


def _compiled(build: _Build) -> Path:
    """Compile it if it is not, and move it to its place whole: another process may do the same at the same time.

    Where the place cannot be written the library serves this process alone, and is compiled again by the next.
    """
    kept = build.kept
    if kept.is_file():
        return kept
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / kept.name
        command = [build.compiler, *build.flags, "-o", str(part), str(build.source), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own source, by the machine's compiler)
        if done.returncode:
            msg = f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}"
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
