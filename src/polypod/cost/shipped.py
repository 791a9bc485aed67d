"""Calibration files that come with the package."""

from importlib import resources
from typing import TypeVar

import msgspec

from polypod.catalog.schema import Strict
from polypod.errors import FileError

Kind = TypeVar("Kind", bound=Strict)


def shipped(prefix: str, kind: type[Kind]) -> tuple[Kind, ...]:
    """All of one kind, by file name. Raises `FileError` with the path to the key where one is broken."""
    found = []
    folder = resources.files("polypod.cost").joinpath("data")
    for entry in sorted(folder.iterdir(), key=lambda one: one.name):
        if entry.name.startswith(prefix) and entry.name.endswith(".toml"):
            try:
                found.append(msgspec.toml.decode(entry.read_bytes(), type=kind))
            except msgspec.DecodeError as error:
                raise FileError(entry.name, str(error)) from error
    return tuple(found)
