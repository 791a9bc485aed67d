"""Asking a vendor's tool: exactly which command, for how long, and what its answer means before anything is parsed.

A probe gets an `Ask`. It runs one tool with arguments, keeps the command as it was run, and raises an `Unanswered` where the answer is a known failure, an
unknown option, silence or a timeout; so a probe only ever parses what looks like an answer.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from polypod.serve.devices.found import Reading, Status
from polypod.serve.devices.vendor import Vendor

TIMEOUT_S: Final = 30.0
"""A library or a tool that has not answered by then hangs on its driver. Without a daemon that keeps them awake, some drivers wake card after card, a second or more each."""

Parser = Callable[[str], Reading]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a process left behind. `exit_code` is None where it was killed after the timeout."""

    stdout: str
    stderr: str = ""
    exit_code: int | None = 0


REPORT: Final = "the vendor changed its output; please report it, with the command's output"

UNREADABLE: Final = (ValueError, LookupError, TypeError, AttributeError)
"""What reading an answer of another form ends in."""

Run = Callable[[Sequence[str], float], Answer]


class UnansweredError(Exception):
    """Why a library or a tool gave nothing to parse."""

    def __init__(
        self, problem: str, status: Status = "driver_error", way_out: str | None = None
    ) -> None:
        super().__init__(problem)
        self.status = status
        self.problem = problem
        self.way_out = way_out


class OddLineError(Exception):
    """A line in a form that the parser does not know."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line.strip()


class UnknownOptionError(UnansweredError):
    """The tool runs and does not know what was asked: an older or newer one, and another question may do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One tool of one vendor, and the commands that were run, in order."""

    vendor: Vendor
    tool: str  # as it is run: a name or a path
    run: Run
    tried: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)  # those of them that were answered

    def __call__(self, *arguments: str) -> str:
        """What the tool prints. Raises `UnansweredError` where it is no answer."""
        self.tried.append(" ".join((self.tool, *arguments)))
        answer = self.run((self.tool, *arguments), TIMEOUT_S)
        failure = self._failure_in(answer)
        if failure is not None and (answer.exit_code != 0 or not answer.stdout.strip()):
            raise failure
        if answer.exit_code is None:
            problem = f"{self.tried[-1]} did not answer within {TIMEOUT_S:g} s"
            way_out = "its driver hangs; look at dmesg, and restart the driver or the machine"
            raise UnansweredError(problem, way_out=way_out)
        if answer.exit_code != 0:
            problem = f"{self.tried[-1]} ended with code {answer.exit_code}: {first_line(answer)}"
            raise UnknownOptionError(problem)
        self.answered.append(self.tried[-1])
        return answer.stdout

    def read(self, parse: Parser, *arguments: str) -> Reading:
        """One question, and its answer read. Raises `UnansweredError`: for an answer that cannot be read, with the failure it speaks of, if any."""
        text = self(*arguments)
        try:
            return read_text(parse, text, self.tried[-1])
        except UnansweredError as error:
            self.answered.pop()
            raise self._failure_in(Answer(stdout=text)) or error from error

    def _failure_in(self, answer: Answer) -> UnansweredError | None:
        """A failure of the vendor's list, in the words of its tool."""
        text = f"{answer.stdout[:4000]}\n{answer.stderr[:4000]}"
        failure = self.vendor.failure_in(text)
        if failure is None:
            return None
        words = failure.words.casefold()
        line = next((line for line in text.splitlines() if words in line.casefold()), failure.words)
        return UnansweredError(line.strip(), failure.status, failure.way_out)

    def first(self, *questions: tuple[Sequence[str], Parser]) -> Reading:
        """The first question whose answer can be read; the others are for older and newer tools."""
        return first_of(*(partial(self.read, parse, *arguments) for arguments, parse in questions))


def first_of(*ways: Callable[[], Reading]) -> Reading:
    """The first way that gives a reading; the next is tried only where the tool did not know the question or its answer could not be read.

    Raises the most telling error: the last that is not merely an unknown option, else the first of all.
    """
    errors: list[UnansweredError] = []
    for way in ways:
        try:
            return way()
        except UnansweredError as error:
            errors.append(error)
            if not isinstance(error, UnknownOptionError) and error.status != "parse_error":
                break
    telling = [error for error in errors if not isinstance(error, UnknownOptionError)]
    raise telling[-1] if telling else errors[0]


def read_text(parse: Parser, text: str, command: str) -> Reading:
    """Parse an answer. Raises `UnansweredError` of status parse_error, with the first odd line, where that cannot be done."""
    if not text.strip():
        problem = f"{command} printed nothing"
        raise UnansweredError(problem, "parse_error")
    try:
        return parse(text)
    except OddLineError as error:
        problem = f"{command} printed a line in a form not known: {error.line[:100]!r}"
        raise UnansweredError(problem, "parse_error", REPORT) from error
    except UNREADABLE as error:
        line = next(line for line in text.splitlines() if line.strip())
        problem = (
            f"{command} printed what cannot be read, beginning {line.strip()[:80]!r} ({error})"
        )
        raise UnansweredError(problem, "parse_error", REPORT) from error


def first_line(answer: Answer) -> str:
    """The first line a person should read: of stderr before stdout."""
    lines = [line.strip() for line in f"{answer.stderr}\n{answer.stdout}".splitlines()]
    return next((line for line in lines if line), "no output")


def run_process(arguments: Sequence[str], timeout_s: float) -> Answer:
    """Run a command without a shell or input, in plain English, and keep both its outputs.

    It gets a process group of its own, and the group is killed after the timeout. One that hangs inside the kernel cannot be killed; it is left behind.
    """
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
    except OSError as error:  # not executable, of another architecture, gone since it was found
        return Answer(stdout="", stderr=f"{arguments[0]}: {error.strerror}", exit_code=126)
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        out, err = _killed(process)
        return Answer(stdout=_text(out), stderr=_text(err), exit_code=None)
    return Answer(stdout=_text(out), stderr=_text(err), exit_code=process.returncode)


def _killed(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.communicate(timeout=1)
    except subprocess.TimeoutExpired:
        return b"", b""


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")
