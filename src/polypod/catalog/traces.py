"""Traces of models that have no description, kept in the person's cache folder by what they were made of.

A trace depends on the config and on the versions of torch and transformers and on nothing else, so it is kept as
`$XDG_CACHE_HOME/polypod/trace/<SHA-256 of both>.json`. What is in the file is the business of who made it.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from polypod.catalog.parsed import cache_folder, write_whole

FORMAT: Final = "polypod-trace-1"
MADE_WITH: Final = ("torch", "transformers")


def installed() -> dict[str, str] | None:
    """Versions of what traces are made with, without importing it; None where one is missing.

    >>> found = installed()
    >>> found is None or set(found) == {"torch", "transformers"}
    True
    """
    try:
        return {package: version(package) for package in MADE_WITH}
    except PackageNotFoundError:
        return None


def trace_path(config: Mapping[str, Any], versions: Mapping[str, str]) -> Path:
    """Where the trace of a config is kept; the order of its keys does not matter."""
    made_of = json.dumps([FORMAT, config, versions], sort_keys=True)
    return cache_folder() / "trace" / f"{sha256(made_of.encode()).hexdigest()}.json"


def read_trace(path: Path) -> bytes | None:
    """What is kept there, or None."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def keep_trace(path: Path, text: bytes) -> None:
    """Keep it whole or not at all; a folder that cannot be written costs the time of tracing again."""
    with suppress(OSError):
        write_whole(path, text)
