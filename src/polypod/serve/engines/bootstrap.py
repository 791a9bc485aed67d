"""Start an engine's own module in its own Python, as a well-behaved child. Knows the standard library alone.

    python bootstrap.py [--cores 0,1] [--secret-flag --api-key] MODULE ARGUMENT ...

Does what `child.settle` does for servers of ours: the process stays on its cores, dies with its parent, and leaves Ctrl-C to it. With
`--secret-flag` the secret goes from the environment to the module's arguments inside the process, where `ps` does not see it.
"""

import ctypes
import os
import runpy
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_SECRET = "POLYPOD_ENGINE_SECRET"  # noqa: S105 - a name; spec.py's, which this Python may not have
_PARENT = "POLYPOD_PARENT_PID"


def main() -> None:
    """Become the engine."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    module, arguments = _settled(sys.argv[1:])
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _settled(words: list[str]) -> tuple[str, list[str]]:
    """Read what is for this file, act on it, and give back the module and what is for that."""
    added: list[str] = []
    while words[0].startswith("--"):
        option, value, words = words[0], words[1], words[2:]
        if option == "--cores":
            os.sched_setaffinity(0, [int(core) for core in value.split(",")])
        elif option == "--secret-flag":
            added += [value, os.environ.pop(_SECRET)]
        else:
            msg = f"bootstrap.py knows --cores and --secret-flag, not {option}"
            raise SystemExit(msg)
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return words[0], [*words[1:], *added]


def _die_with_parent() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    expected = os.environ.get(_PARENT)
    if expected is not None and os.getppid() != int(expected):
        msg = f"the parent {expected} is gone"
        raise SystemExit(msg)


if __name__ == "__main__":
    main()
