"""A record is written beside serving; a disk that fails ends the record and nothing else."""

import asyncio
from pathlib import Path

import pytest

from polypod import record
from polypod.errors import FileError
from polypod.policy.events import Woke
from polypod.policy.settings import PolicySettings, ServiceSettings
from polypod.serve import recorder
from polypod.serve.recorder import Recorder

HEADER = record.Header(
    kind="live",
    polypod="0",
    policy=PolicySettings(services=(ServiceSettings(model="m", context_tokens=9),)),
)


def step(number: int) -> record.Step:
    return record.Step(event=Woke(at_s=float(number)))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    async def main() -> None:
        written = Recorder(tmp_path / "run.jsonl", HEADER)
        written.start()
        for number in range(1000):
            written.write(step(number))
        await written.close()

    asyncio.run(main())

    assert list(record.read(tmp_path / "run.jsonl")) == [HEADER, *map(step, range(1000))]


def test_lines_reach_the_file_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "FLUSH_S", 0.01)

    async def main() -> None:
        written = Recorder(tmp_path / "run.jsonl", HEADER)
        written.start()
        written.write(step(1))
        async with asyncio.timeout(5):
            while not (tmp_path / "run.jsonl").read_bytes().endswith(record.encode(step(1))):
                await asyncio.sleep(0.01)
        await written.close()

    asyncio.run(main())


def test_a_full_disk_ends_the_record_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = []

    async def main() -> None:
        written = Recorder(Path("/dev/full"), HEADER, on_failure=lambda: failures.append(1))
        monkeypatch.setattr(recorder, "FLUSH_S", 0.01)
        written.start()
        async with asyncio.timeout(5):
            while written.is_recording:
                await asyncio.sleep(0.01)
        written.write(step(1))
        await written.close()

    asyncio.run(main())

    assert failures == [1]
    assert [log.getMessage() for log in caplog.records] == [
        "/dev/full: No space left on device; the run goes on without a record"
    ]


def test_a_line_written_in_part_is_taken_off_again(tmp_path: Path) -> None:
    class NearlyFull(recorder.FileIO):
        room = 100

        def write(self, data: memoryview) -> int:
            if not self.room:
                raise OSError(28, "No space left on device")
            written = super().write(data[: self.room])
            self.room -= written
            return written

    async def main() -> None:
        written = Recorder(tmp_path / "run.jsonl", HEADER)
        await written._flush()
        written._file = NearlyFull(tmp_path / "run.jsonl", "a")
        for number in range(100):
            written.write(step(number))
        await written.close()
        assert not written.is_recording

    with pytest.warns(ResourceWarning, match="unclosed file"):
        asyncio.run(main())

    assert list(record.read(tmp_path / "run.jsonl")) == [HEADER, step(0)]
    assert (tmp_path / "run.jsonl").read_bytes().endswith(b"\n")


def test_a_disk_that_does_not_keep_up_ends_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "MOST_LINES_WAITING", 3)

    async def main() -> None:
        written = Recorder(tmp_path / "run.jsonl", HEADER)
        for number in range(4):
            written.write(step(number))
        assert not written.is_recording
        await written.close()

    asyncio.run(main())


def test_a_record_that_cannot_be_made_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be written: No such file or directory"):
        Recorder(tmp_path / "nowhere" / "run.jsonl", HEADER)


def test_many_lines_are_written_as_one_by_one(tmp_path: Path) -> None:
    """More than are encoded at once, to the byte."""
    lines = [step(number) for number in range(1000)]

    async def main() -> None:
        recorder = Recorder(tmp_path / "run.jsonl", HEADER)
        recorder.start()
        for line in lines:
            recorder.write(line)
        await recorder.close()

    asyncio.run(main())

    expected = b"".join(map(record.encode, [HEADER, *lines]))
    assert (tmp_path / "run.jsonl").read_bytes() == expected
