"""TOML parsed once and kept, by the hash of its text.

Parsing is most of the time it takes to load the catalog. What a text parses to never changes, so it is kept in one file of the person's
cache folder, `$XDG_CACHE_HOME/polypod/catalog.msgpack` (by default below `~/.cache`): a map from the SHA-256 of each text to its keys and
values. A folder that cannot be written, a file that another version wrote or that was cut short costs the time of parsing and nothing else.
"""

import os
import tomllib
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

FORMAT: Final = "polypod-parsed-toml-1"

_MOST_ENTRIES: Final = 5_000
"""Ten catalogs' worth; past it the file is made anew, so that texts edited a thousand times do not stay for ever."""


class _Kept(msgspec.Struct):
    """What the file holds. A value stays undecoded until it is asked for."""

    format: str
    texts: dict[str, msgspec.Raw]


class ParsedTexts:
    """Everything parsed so far, from the file and in this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parsed = 0  # texts that were not in the file
        self._texts: dict[str, msgspec.Raw] | None = None

    def toml(self, text: str) -> dict[str, Any]:
        """What a TOML text says. Raises `tomllib.TOMLDecodeError`."""
        key = sha256(text.encode()).hexdigest()[:32]
        texts = self._load()
        if key in texts:
            kept: dict[str, Any] = msgspec.msgpack.decode(texts[key])
            return kept
        found = tomllib.loads(text)
        texts[key] = msgspec.Raw(msgspec.msgpack.encode(found))
        self.parsed += 1
        return found

    def save(self) -> None:
        """Keep what was parsed for the next process; another that saves at the same time wins or loses whole."""
        if not self.parsed or self._texts is None:
            return
        with suppress(OSError):
            write_whole(self.path, msgspec.msgpack.encode(_Kept(format=FORMAT, texts=self._texts)))
        self.parsed = 0

    def _load(self) -> dict[str, msgspec.Raw]:
        if self._texts is None:
            self._texts = _read(self.path)
        return self._texts


def _read(path: Path) -> dict[str, msgspec.Raw]:
    try:
        kept = msgspec.msgpack.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):
        return {}
    if kept.format != FORMAT or len(kept.texts) > _MOST_ENTRIES:
        return {}
    return kept.texts


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, its folder made where it is missing. Raises `OSError`, and leaves no part behind."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise


def cache_folder() -> Path:
    """Where what can be made again is kept: `$XDG_CACHE_HOME/polypod`, by default `~/.cache/polypod`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "polypod"


_open: dict[Path, ParsedTexts] = {}


def texts() -> ParsedTexts:
    """The person's kept texts; one object a process and folder."""
    path = cache_folder() / "catalog.msgpack"
    return _open.setdefault(path, ParsedTexts(path))
