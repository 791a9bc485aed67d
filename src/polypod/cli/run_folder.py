"""The folder that a simulated run is written to."""

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO, Self

from polypod.cli.asking import note
from polypod.errors import FileError
from polypod.report.summary import RunSummary


class RunFolder:
    """The folder a run is written to, or none. A run behind `gateways` has a record in a folder of its own for each, written apart."""

    def __init__(self, folder: str | None, *, gateways: int | None = None) -> None:
        self._is_apart = gateways is not None
        self._records = "record.jsonl"
        if gateways is not None:
            last = f" to gateway-{gateways - 1}/record.jsonl" if gateways > 1 else ""
            self._records = f"gateway-0/record.jsonl{last}"
        self._folder = None if folder is None else _folder(Path(folder))
        self.file: BinaryIO | None = None

    def __enter__(self) -> Self:
        if self._folder is not None:
            path = self._folder / "record.jsonl"
            try:
                if self._is_apart:
                    path.unlink(missing_ok=True)
                else:
                    self.file = path.open("wb")
            except OSError as error:
                raise FileError(path, f"cannot be written: {error.strerror}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:  # fmt: skip
        if self.file is None or self._folder is None:
            return
        path = self._folder / "record.jsonl"
        try:
            self.file.close()
        except OSError as failed:
            raise FileError(path, f"cannot be written: {failed.strerror}") from failed
        if isinstance(error, OSError):
            raise FileError(path, f"cannot be written: {error.strerror}") from error

    def left(self, summary: RunSummary) -> str:
        """What an interrupted run leaves."""
        open_ones = f"{summary.open:,} requests were in flight"
        return open_ones if self._folder is None else f"{open_ones}, and {self._folder / self._records} is whole up to there"  # fmt: skip

    def write_summary(self, found: dict[str, Any]) -> None:
        if self._folder is None:
            return
        path = self._folder / "summary.json"
        try:
            path.write_text(json.dumps(found, indent=2) + "\n")
        except OSError as error:
            raise FileError(path, f"cannot be written: {error.strerror}") from error
        note(f"wrote {self._folder / self._records} and summary.json")


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(path, f"cannot be made: {error.strerror}") from error
    if (path / "record.jsonl").exists():
        print(f"polypod: {path / 'record.jsonl'} is overwritten", file=sys.stderr)
    return path
