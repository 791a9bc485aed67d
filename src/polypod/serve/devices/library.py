"""Asking a vendor's library, in a child process: one that hangs or crashes takes the child with it and nothing else.

The child is `libraries/__main__.py`. A library that the loader does not find is not an error; it is not there.
"""

import signal
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from polypod.serve.devices.asking import TIMEOUT_S, Answer, Run, UnansweredError, first_line
from polypod.serve.devices.found import Reading
from polypod.serve.devices.vendor import Vendor

MODULE: Final = "polypod.serve.devices.libraries"


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What the child says. None of both: no file of the list could be loaded."""

    loaded: str | None = None
    reading: Reading | None = None
    failed: str | None = None


def ask_library(vendor: Vendor, candidates: Sequence[str], run: Run) -> tuple[Reading, str] | None:
    """A reading and the file it came from; None where no such library is there.

    Raises `UnansweredError` where the library is there and fails, hangs or crashes.
    """
    assert vendor.library.interface is not None
    command = (sys.executable, "-m", MODULE, vendor.library.interface, *candidates)
    answer = run(command, TIMEOUT_S)
    if answer.exit_code != 0:
        raise _crash(vendor, answer, candidates[0])
    told = msgspec.json.decode(answer.stdout.splitlines()[-1], type=Told)
    if told.loaded is None:
        return None
    if told.reading is not None:
        return told.reading, told.loaded
    problem = f"{told.loaded}: {told.failed}"
    failure = vendor.failure_in(told.failed or "")
    if failure is None:
        raise UnansweredError(problem)
    raise UnansweredError(problem, failure.status, failure.way_out)


def _crash(vendor: Vendor, answer: Answer, library: str) -> UnansweredError:
    if answer.exit_code is None:
        way_out = f"its driver hangs; look at dmesg, and restart the driver of {vendor.name}"
        problem = f"{library} did not answer within {TIMEOUT_S:g} s"
        return UnansweredError(problem, way_out=way_out)
    if answer.exit_code < 0:
        problem = f"{library} crashed ({signal.Signals(-answer.exit_code).name})"
        way_out = "the library does not fit the driver; install both from one release"
        return UnansweredError(problem, way_out=way_out)
    return UnansweredError(f"{library}: {first_line(answer)}")
