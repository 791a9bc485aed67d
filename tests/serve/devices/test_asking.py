"""Asking a tool: what is an answer, what is a failure, and that nothing of it hangs or crashes us."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from polypod.serve.devices.asking import (
    Answer,
    Ask,
    OddLineError,
    UnansweredError,
    UnknownOptionError,
    run_process,
)
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.vendor import shipped_vendors

NVIDIA = next(one for one in shipped_vendors() if one.vendor == "nvidia")


def asking(answers: dict[tuple[str, ...], Answer]) -> Ask:
    def run(argv: Sequence[str], _: float) -> Answer:
        return answers.get(tuple(argv[1:]), Answer(stdout="", stderr="bad option", exit_code=2))

    return Ask(vendor=NVIDIA, tool="nvidia-smi", run=run)


def one_card(text: str) -> Reading:
    if text != "card\n":
        raise OddLineError(text)
    return Reading(cards=(Card(index=0),))


def test_the_next_question_is_asked_only_where_the_first_is_not_known_or_not_readable() -> None:
    ask = asking({("-a",): Answer(stdout="what?\n"), ("-b",): Answer(stdout="card\n")})

    reading = ask.first((("-z",), one_card), (("-a",), one_card), (("-b",), one_card))

    assert len(reading.cards) == 1
    assert ask.tried == ["nvidia-smi -z", "nvidia-smi -a", "nvidia-smi -b"]
    assert ask.answered == ["nvidia-smi -b"]


def test_a_known_failure_ends_the_questions() -> None:
    broken = Answer(stdout="Failed to initialize NVML: Driver/library version mismatch\n", exit_code=18)  # fmt: skip
    ask = asking({("-a",): broken, ("-b",): Answer(stdout="card\n")})

    with pytest.raises(UnansweredError) as raised:
        ask.first((("-a",), one_card), (("-b",), one_card))

    assert raised.value.status == "driver_error"
    assert raised.value.problem == "Failed to initialize NVML: Driver/library version mismatch"
    assert "restart" in (raised.value.way_out or "")
    assert ask.tried == ["nvidia-smi -a"]


def test_words_of_a_failure_inside_a_readable_answer_are_no_failure() -> None:
    ask = asking({("-a",): Answer(stdout="card\n", stderr="Insufficient Permissions for clocks")})

    assert len(ask.first((("-a",), one_card)).cards) == 1


def test_the_first_odd_line_is_said_where_no_answer_can_be_read() -> None:
    ask = asking({("-a",): Answer(stdout="a table of tomorrow\n")})

    with pytest.raises(UnansweredError, match=r"^nvidia-smi -a .*'a table of tomorrow'") as raised:
        ask.first((("-z",), one_card), (("-a",), one_card), (("-y",), one_card))

    assert raised.value.status == "parse_error"


def test_a_tool_that_knows_none_of_the_questions_says_so_in_its_words() -> None:
    with pytest.raises(UnknownOptionError, match="ended with code 2: bad option"):
        asking({}).first((("-a",), one_card), (("-b",), one_card))


def test_a_process_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    script = tmp_path / "tool"
    script.write_text("#!/bin/sh\necho begun\nsleep 60 & wait\n")
    script.chmod(0o755)

    answer = run_process([str(script)], 0.3)

    assert (answer.stdout, answer.exit_code) == ("begun\n", None)


def test_what_cannot_be_run_is_an_answer_too(tmp_path: Path) -> None:
    script = tmp_path / "tool"
    script.write_bytes(b"\x7fELF no")
    script.chmod(0o755)

    answer = run_process([str(script)], 1.0)

    assert answer.exit_code == 126
    assert str(script) in answer.stderr


def test_bytes_that_are_no_text_do_not_stop_the_reading(tmp_path: Path) -> None:
    script = tmp_path / "tool"
    script.write_text("#!/bin/sh\nprintf 'caf\\351'\n")
    script.chmod(0o755)

    assert run_process([str(script)], 5.0).stdout == "caf\ufffd"
