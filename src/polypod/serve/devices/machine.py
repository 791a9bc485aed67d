"""Where devices are looked for: this machine, or one replayed from a folder and a list of recorded answers."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from polypod.serve.devices.asking import Run, run_process
from polypod.serve.devices.vendor import Cli, Library, Nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The files below `root`, the folders of tools, and the way commands are run."""

    root: Path = Path("/")
    folders: tuple[Path, ...] = ()  # PATH
    platform: str = sys.platform
    run: Run = run_process

    @property
    def is_this_one(self) -> bool:
        """Whether the loader of this machine may be asked for a library by its bare name."""
        return self.root == Path("/")

    def tools(self, cli: Cli) -> Iterator[str]:
        """Tools that can be run, as they are run: those on PATH by name, others by path."""
        for name in cli.tools:
            if any(_is_executable(folder / name) for folder in self.folders):
                yield name
        for folder in cli.folders:
            for name in cli.tools:
                path = self.below(folder) / name
                if _is_executable(path):
                    yield str(path)

    def libraries(self, library: Library) -> tuple[str, ...]:
        """What the loader is to try, in order: files that are there, then names that it may find by itself."""
        files = [str(path) for path in map(self.below, library.paths) if path.is_file()]
        return (*files, *(library.names if self.is_this_one else ()))

    def traces(self, nodes: Nodes) -> tuple[str, ...]:
        """Device nodes that only this vendor's driver makes."""
        found = (path for pattern in nodes.trace for path in self.root.glob(pattern.lstrip("/")))
        return tuple(f"/{path.relative_to(self.root)}" for path in sorted(found))

    def below(self, path: str) -> Path:
        """An absolute path, with $NAME read from the environment, on this machine or on the replayed one."""
        return self.root / os.path.expandvars(path).lstrip("/")


def this_machine() -> Machine:
    """The machine that Polypod runs on."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return Machine(folders=tuple(Path(folder) for folder in folders if folder))


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
