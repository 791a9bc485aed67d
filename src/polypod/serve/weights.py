"""The weights somebody named: a path or an id of the hub, in a format that holds no code, and still what they were.

What was fetched from the hub is checked against the hash in its blob's own name. Of a file by its path the sha256 is written down at its first start, in
`models.json` of the state folder. At later starts a file is read whole and compared; a large one only where its size, its time or its place
on the disk changed, or where that is asked for.
"""

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from polypod.errors import FileError
from polypod.serve.hub import PICKLES, cache_folder, digest_of, fetch, hub_id
from polypod.serve.hub_net import Hub

Say = Callable[[str], None]

_A_SHA256: Final = "0" * 64
READ_WHOLE_BYTES: Final = 2 << 30  # about a second and a half
_HASH: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Where they are, and what the model is called where their path does not say it well."""

    path: Path
    name: str | None = None


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was."""

    size_bytes: int
    changed_ns: int
    inode: int
    sha256: str


def find_weights(text: str, *, state: Path, say: Say, whole: bool = False) -> Weights:
    """Find, fetch and check what was named; `whole` reads large files too. Raises `InputError`, `FileError` and `RunError`."""
    named = hub_id(text)
    if named is None:
        path = Path(text)
        check_format(path)
        check_unchanged(path, state=state, say=say, whole=whole)
        return Weights(path=path)
    path = fetch(named, hub=Hub.from_environment(), cache=cache_folder(), say=say)
    check_unchanged(path, state=state, say=say, whole=whole)
    return Weights(path=path, name=named.repository if path.is_dir() else None)


def check_format(path: Path) -> None:
    """Raises `FileError` for a format that may hold code, by its name or its first bytes."""
    if path.suffix in PICKLES or (path.is_file() and _begins_as_pickle(path)):
        problem = "is a pickle: loading one runs whatever code is in it, so it is never loaded; take the model as GGUF or safetensors"
        raise FileError(path, problem)


def check_unchanged(path: Path, *, state: Path, say: Say, whole: bool = False) -> None:
    """Compare with what is known, and write down what is new. Raises `FileError` for a damaged file."""
    records = state / "models.json"
    known = _read(records)
    found = dict(known)
    for file in _files(path):
        real = file.resolve()
        found[str(real)] = _checked(real, known.get(str(real)), say, whole=whole)
    if found != known:
        _keep(records, found, say)


def _checked(file: Path, known: _Known | None, say: Say, *, whole: bool) -> _Known:
    status = file.stat()
    is_same = known is not None and (known.size_bytes, known.changed_ns, known.inode) == (status.st_size, status.st_mtime_ns, status.st_ino)  # fmt: skip
    if known is not None and is_same and not whole and status.st_size > READ_WHOLE_BYTES:
        return known
    digest = digest_of(file, _A_SHA256)
    promised = file.name if file.parent.name == "blobs" and _HASH.fullmatch(file.name) else digest
    if (digest if len(promised) == len(digest) else digest_of(file, promised)) != promised:
        problem = f"is damaged: the hub's file has the hash {promised}, this one another; remove it, and it is fetched again"
        raise FileError(file, problem)
    if known is not None and known.sha256 != digest:
        if is_same:
            problem = f"had sha256 {known.sha256} when it was first served, and has {digest} with the same size and time: the disk may be failing; fetch it again"
            raise FileError(file, problem)
        say(f"{file} is another file than when it was last served (sha256 {digest})")
    return _Known(
        size_bytes=status.st_size,
        changed_ns=status.st_mtime_ns,
        inode=status.st_ino,
        sha256=digest,
    )


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.safetensors"))
    return [path] if path.is_file() else []  # what is not there is said by whoever opens it


def _begins_as_pickle(path: Path) -> bool:
    """A pickle of protocol 2 or later, or the zip that torch.save writes around one."""
    with path.open("rb") as file:
        start = file.read(4)
    return start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or start == b"PK\x03\x04"  # fmt: skip


def _read(records: Path) -> dict[str, _Known]:
    try:
        return msgspec.json.decode(records.read_bytes(), type=dict[str, _Known])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        problem = f"cannot be read ({error}), and the sha256 of models is kept there; mend it, or remove it to begin anew"
        raise FileError(records, problem) from error


def _keep(records: Path, known: dict[str, _Known], say: Say) -> None:
    try:
        records.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".models.", dir=records.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(known)))
        Path(name).replace(records)
    except OSError as error:
        say(f"{records}: cannot be written ({error.strerror}), so the model is not checked next time")  # fmt: skip
