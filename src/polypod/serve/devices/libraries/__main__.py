"""The child that asks a library: loads the first file that can be loaded, reads it, prints a reading as JSON or why there is none.

python -m polypod.serve.devices.libraries nvml libnvidia-ml.so.1
"""

import ctypes
import importlib
import sys
from collections.abc import Sequence

import msgspec

from polypod.serve.devices.libraries.calls import LibraryError
from polypod.serve.devices.library import Told


def main(arguments: Sequence[str]) -> int:
    """An interface of this folder, and the files to try in order."""
    interface, *candidates = arguments
    print(msgspec.json.encode(told_by(interface, candidates)).decode())  # noqa: T201 - the answer to the parent
    return 0


def told_by(interface: str, candidates: Sequence[str]) -> Told:
    """What the first library that loads says, or why it says nothing."""
    for name in candidates:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        reader = importlib.import_module(f"polypod.serve.devices.libraries.{interface}")
        try:
            return Told(loaded=name, reading=reader.read(library))
        except (LibraryError, AttributeError) as error:  # a call failed, or is not there at all
            return Told(loaded=name, failed=str(error))
    return Told()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
