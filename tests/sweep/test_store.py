"""What is kept survives being cut short, a full disk and a second run at the same time."""

import errno
import os
from pathlib import Path
from typing import IO

import pytest

from polypod.errors import FileError, RunError
from polypod.plan.sweep import Point, failed
from polypod.sweep.store import Store

ROW = failed(Point(model="a", on="x", tpot_limit_s=0.1 + 0.2), '昇腾 \n , "why"')


def test_a_row_comes_back_as_it_was_to_the_last_bit(tmp_path: Path) -> None:
    with Store(tmp_path / "out.csv") as store:
        store.keep({"k": ROW})
    with Store(tmp_path / "out.csv") as store:
        assert store.finished() == {"k": ROW}


def test_a_line_that_was_cut_short_counts_for_nothing_and_spoils_no_other(tmp_path: Path) -> None:
    with Store(tmp_path / "out.csv") as store:
        store.keep({"one": ROW, "two": ROW})
    (part,) = store.folder.glob("*.jsonl")
    whole = part.read_bytes()
    for cut in range(len(whole.splitlines()[0]) + 1, len(whole) - 1):
        part.write_bytes(whole[:cut])
        with Store(tmp_path / "out.csv") as store:
            assert store.finished().keys() == {"one"}
    with Store(tmp_path / "out.csv") as store:
        store.keep({"three": ROW})
        assert store.finished().keys() == {"one", "three"}


def test_a_batch_is_on_the_disk_when_keep_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), fsync(fd)))
    with Store(tmp_path / "out.csv") as store:
        store.keep({"one": ROW, "two": ROW})
        (part,) = store.folder.glob("*.jsonl")
        assert synced == [part.stat().st_size]
        store.keep({})
        assert len(synced) == 1


def test_a_full_disk_is_named_with_what_is_kept_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Store(tmp_path / "out.csv") as store:
        store.keep({"one": ROW})
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"out\.csv\.parts: .*No space left.* make room"):
            store.keep({"two": ROW})
    with Store(tmp_path / "out.csv") as store:
        assert "one" in store.finished()


class Sip:
    """A file that takes ten bytes at a time, as a disk does where it is nearly full."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.fileno, self.close = file.fileno, file.close

    def write(self, data: memoryview) -> int:
        return self.file.write(data[:10])


def test_a_write_that_takes_a_part_is_gone_on_with(tmp_path: Path) -> None:
    with Store(tmp_path / "out.csv") as store:
        store.keep({"one": ROW})
        assert store._file is not None
        store._file = Sip(store._file)  # type: ignore[assignment]
        store.keep({"two": ROW, "three": ROW})
        assert store.finished() == {"one": ROW, "two": ROW, "three": ROW}


def test_two_sweeps_do_not_write_the_same_file_at_once(tmp_path: Path) -> None:
    with Store(tmp_path / "out.csv") as first:
        first.keep({"one": ROW})
        with (
            pytest.raises(RunError, match=r"another sweep is writing here; wait for it"),
            Store(tmp_path / "out.csv"),
        ):
            pass
        assert first.finished().keys() == {"one"}
    with Store(tmp_path / "out.csv"):
        pass  # the first one is gone


def test_nothing_is_left_of_a_store_that_kept_nothing_or_was_removed(tmp_path: Path) -> None:
    with Store(tmp_path / "out.csv"):
        pass
    assert list(tmp_path.iterdir()) == []
    with Store(tmp_path / "out.csv") as store:
        store.keep({"one": ROW})
        store.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_is_forgotten_is_not_finished(tmp_path: Path) -> None:
    with Store(tmp_path / "out.csv") as store:
        store.keep({"one": ROW})
    with Store(tmp_path / "out.csv") as store:
        store.forget()
        assert store.finished() == {}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"out\.csv\.parts: cannot be written: Not a directory"), Store(tmp_path / "file" / "out.csv"):  # fmt: skip
        pass
