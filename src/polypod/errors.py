"""Every exception Polypod raises on purpose.

    PolypodError                 anything a person can act on; the command line prints it, without a traceback
    ├── InputError               what was given is wrong: exit code 2
    │   ├── QuantityError        "50 parsecs" is not a time
    │   ├── UnknownNameError     no such chip, pod, model or tier; carries the nearest names
    │   ├── FileError            a file: its path, the place in it, what was expected
    │   │   └── TraceError       a broken line of a request trace
    │   └── LayoutError          a layout the model or the chips cannot have
    ├── InfeasibleError          the question has no feasible answer: exit code 1; carries the nearest one
    └── RunError                 something failed while running: exit code 2
        ├── PortInUseError       another process listens there
        └── EngineError          an inference engine did not start or died; carries its last log lines

`assert` marks our own bugs and nothing else.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path


class PolypodError(Exception):
    """Names the thing, the value, the limit and the way out."""

    exit_code = 2


class InputError(PolypodError):
    """What was given is wrong."""


class QuantityError(InputError):
    """A text that is not the quantity asked for."""


class UnknownNameError(InputError):
    """A name that no entry has.

    >>> print(UnknownNameError("pod", "huawei-cm385", ["huawei-cm384", "nvidia-hgx-h200"]))
    no pod is called 'huawei-cm385'; nearest: huawei-cm384. All of them: polypod catalog list
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        names = list(known)
        self.nearest = nearest_names(name, names) or sorted(names)[:5]
        near = ", ".join(self.nearest) or "none"
        super().__init__(
            f"no {kind} is called {name!r}; nearest: {near}. All of them: polypod catalog list"
        )


class FileError(InputError):
    """Something is wrong at one place of one file."""

    def __init__(self, path: Path | str, problem: str) -> None:
        self.path = Path(path)
        super().__init__(f"{path}: {problem}")


class TraceError(FileError):
    """A request trace has a broken line; nothing of it was played."""

    def __init__(self, path: Path | str, line: int, problem: str) -> None:
        self.line = line
        super().__init__(path, f"line {line}: {problem}; nothing was played")


class LayoutError(InputError):
    """A layout that this model or this island cannot have."""


class InfeasibleError(PolypodError):
    """No answer satisfies the question; the text says what comes nearest and what is missing."""

    exit_code = 1


class RunError(PolypodError):
    """Something failed while running."""


class PortInUseError(RunError):
    """Another process listens on that port."""


class EngineError(RunError):
    """An inference engine did not start, or died."""

    def __init__(self, problem: str, log_tail: Sequence[str] = ()) -> None:
        self.log_tail = tuple(log_tail)
        tail = "".join(f"\n    {line}" for line in self.log_tail)
        super().__init__(f"{problem}{'; its last lines:' if tail else ''}{tail}")


def nearest_names(name: str, known: Iterable[str], most: int = 5) -> list[str]:
    """Rank known names by likeness to `name`, ignoring case; the best first."""
    by_fold = {entry.casefold(): entry for entry in known}
    close = get_close_matches(name.casefold(), by_fold, n=most, cutoff=0.5)
    holding = [fold for fold in by_fold if name.casefold() in fold and fold not in close]
    return [by_fold[fold] for fold in [*close, *holding][:most]]
