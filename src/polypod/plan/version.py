"""What an answer rests on, as one hash: the planner's code, the shipped data and a person's own entries."""

from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from polypod import __version__
from polypod.catalog.load import KINDS, own_folders
from polypod.cost.own import own_files

_PACKAGES: Final = ("plan", "engine", "cost", "workload", "catalog")

_NOT_PLANNED_WITH: Final = {"__pycache__", "market", "claims"}


def data_version(models: Iterable[str] = (), *, beside: tuple[str, ...] = ()) -> str:
    """Equal where the same point has the same answer. Of models given by a path, their files count too; `beside` are more packages whose code counts."""
    digest = sha256(_shipped_digest((*_PACKAGES, *beside)))
    own = [_config(Path(name)) for name in sorted(set(models))]
    own += [folder for kind in KINDS for folder in own_folders(kind)] + own_files()
    for path in own:
        for name, content in _files(path, path.name):
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:32]


def _config(path: Path) -> Path:
    """The file that a model given by a path is read from; nothing is there where the name is of the catalog."""
    return path if path.suffix == ".json" else path / "config.json"


@cache
def _shipped_digest(packages: tuple[str, ...]) -> bytes:
    """Of what this process runs, which does not change under it."""
    digest = sha256(__version__.encode())
    for package in packages:
        for name, content in _files(resources.files(f"polypod.{package}"), package):
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.digest()


def _files(path: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    """Every file below a path, in order of name."""
    if path.is_file():
        yield name, path.read_bytes()
    elif path.is_dir():
        for child in sorted(path.iterdir(), key=lambda child: child.name):
            if child.name not in _NOT_PLANNED_WITH:
                yield from _files(child, f"{name}/{child.name}")
