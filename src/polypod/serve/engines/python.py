"""Which Python runs an engine. An engine often has an environment of its own, for its packages and ours need not agree.

`POLYPOD_PYTHON_VLLM=/opt/vllm/bin/python` says that vLLM is there; without it, an engine is looked for in Polypod's own environment.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from polypod.errors import InputError
from polypod.serve.engines.spec import installed_version

_ASK: Final = """
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try:
        print(version(name))
        break
    except PackageNotFoundError:
        pass
"""
_LONGEST_WAIT_S: Final = 20.0


def variable_of(engine: str) -> str:
    """The environment variable that names an engine's Python.

    >>> variable_of("vllm"), variable_of("llama.cpp")
    ('POLYPOD_PYTHON_VLLM', 'POLYPOD_PYTHON_LLAMA_CPP')
    """
    return f"POLYPOD_PYTHON_{re.sub('[^A-Z0-9]', '_', engine.upper())}"


def python_of(engine: str) -> str:
    """The interpreter; our own where nothing is said. Raises `InputError` for one that is not there."""
    said = os.environ.get(variable_of(engine))
    if said is None:
        return sys.executable
    if not (Path(said).is_file() and os.access(said, os.X_OK)):
        msg = f"{variable_of(engine)}={said} is no program; give the path of the Python that has {engine}"
        raise InputError(msg)
    return said


def version_in(python: str, distributions: Sequence[str]) -> str | None:
    """The version of the first of these packages that this Python has. Imports none of them."""
    if python == sys.executable:
        return next(filter(None, map(installed_version, distributions)), None)
    return _asked(python, tuple(distributions))


@cache
def _asked(python: str, distributions: tuple[str, ...]) -> str | None:
    command = [python, "-c", _ASK, *distributions]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_WAIT_S, check=True)  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        msg = f"{python} did not say which packages it has: {error}"
        raise InputError(msg) from error
    return done.stdout.strip() or None
