"""The record's format: what is written is read, and what is broken has a line number."""

import io

import pytest

from polypod.errors import FileError
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.actions import Reject, WakeAt
from polypod.policy.events import RequestArrived
from polypod.record import FaultNote, Header, Measure, Step, Writer, encode, read

HEADER = Header(
    kind="simulated",
    polypod="0",
    policy=PolicySettings(services=(ServiceSettings(model="m", context_tokens=9),)),
    seed=1,
)
STEP = Step(
    event=RequestArrived(at_s=0.1, request=1, model="m", input_tokens=3),
    actions=[
        WakeAt(at_s=0.30000000000000004),
        Reject(request=1, status=503, code="c", message="m"),
    ],
)
MEASURE = Measure(at_s=1.0, of="a", name="busy_s", value=0.5)
NOTE = FaultNote(
    id=1, at_s=2.0, what="crash", where="card a/17", replicas=("a",), noticed_s=2.0, repaired_s=9.0
)


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "record.jsonl"
    with path.open("wb") as file:
        writer = Writer(file)
        for line in (HEADER, NOTE, STEP, MEASURE):
            writer.write(line)

    assert list(read(path)) == [HEADER, NOTE, STEP, MEASURE]


def test_a_line_is_one_line_and_says_what_it_is():
    file = io.BytesIO()
    Writer(file).write(MEASURE)

    assert file.getvalue() == (
        b'{"type":"measure","at_s":1.0,"of":"a","name":"busy_s","value":0.5}\n'
    )
    assert encode(STEP).count(b"\n") == 1


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "is empty"),
        ([encode(STEP)], "line 1: a record begins with a header of format 1"),
        ([encode(HEADER), b"{\n"], "line 2: Input data was truncated"),
        ([encode(HEADER), encode(STEP)[:-9]], "line 2: "),
        ([encode(HEADER), encode(MEASURE).replace(b"value", b"valve")], "line 2: .*`valve`"),
        ([encode(HEADER).replace(b'"format":1', b'"format":2')], r"line 1: .*\$.format"),
        ([encode(HEADER), encode(HEADER)], "line 2: a second header"),
    ],
)
def test_what_is_broken_is_named_by_its_line(tmp_path, lines, problem):
    path = tmp_path / "record.jsonl"
    path.write_bytes(b"".join(lines))

    with pytest.raises(FileError, match=problem):
        list(read(path))


def test_a_record_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(FileError, match=r"none\.jsonl: cannot be read: No such file"):
        list(read(tmp_path / "none.jsonl"))
