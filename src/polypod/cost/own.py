"""A person's own calibrations: how far serving measured on their machines lies from what is predicted of it.

`polypod calibrate` makes them of measured rows; they are kept in `calibrations.toml` of the person's catalog folder, and in that of a folder given
with `--catalog`, whose fits stand in the place of the same ones before it. A fit is a factor on predicted times, measured over predicted:

    calibrated_s = factor * predicted_s
    band         = calibrated_s * exp(log_low) .. calibrated_s * exp(log_high)      four of five measurements

It holds for one accelerator, model, engine, precision of the weights and kind of serving (agg or disagg, -speculative behind it with drafts).
"""

import json
import math
import re
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

from polypod.catalog.load import CALIBRATIONS, own_folders
from polypod.catalog.parsed import write_whole
from polypod.catalog.schema import Strict
from polypod.errors import FileError

Key = tuple[str, str, str, str, str]


class OwnMetric(Strict, frozen=True, kw_only=True):
    """What is known of one metric: rows it rests on, measured over predicted, and the ends of the band about that."""

    rows: int
    factor: float
    log_low: float
    log_high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            msg = f"factor is {self.factor:g}; it is measured over predicted, above 0"
            raise ValueError(msg)
        if not -10 <= self.log_low <= 0 <= self.log_high <= 10:
            msg = f"log_low and log_high are {self.log_low:g} and {self.log_high:g}; one is at most 0, the other at least 0"
            raise ValueError(msg)


class OwnFit(Strict, frozen=True, kw_only=True):
    """One group of a person's rows, as a calibration. A metric that was not measured, or not accepted, has none."""

    chip: str
    model: str
    engine: str
    precision: str
    kind: str = "agg"
    versions: tuple[str, ...] = ()  # of the engine
    source: str = ""  # the file its rows came from
    date: str = ""
    tpot: OwnMetric | None = None
    ttft: OwnMetric | None = None

    @property
    def key(self) -> Key:
        """What it holds for."""
        return (self.chip, self.model, self.engine, self.precision, self.kind)

    @property
    def tpot_factor(self) -> float:
        return 1.0 if self.tpot is None else self.tpot.factor

    @property
    def ttft_factor(self) -> float:
        return 1.0 if self.ttft is None else self.ttft.factor


class _File(Strict, frozen=True, kw_only=True):
    fits: tuple[OwnFit, ...] = ()


def own_files() -> list[Path]:
    """Where calibrations are read from; a later file's fit stands in the place of an earlier one's."""
    return [folder.parent / CALIBRATIONS for folder in own_folders("model")]


def own_fits() -> dict[Key, OwnFit]:
    """Every calibration of a person's own. Raises `FileError` with the line for a broken file."""
    return _fits_of(tuple((path, *stamp) for path in own_files() if (stamp := _stamp(path))))


def own_fit(
    chip: str, model: str, engine: str, precision: str | None = None, kind: str = "agg"
) -> OwnFit | None:
    """The person's calibration, if there is one; names are the catalog's ids.

    Without a precision, the one that rests on most rows.
    """
    found = own_fits()
    if precision is not None:
        return found.get((chip, model, engine, precision, kind))
    fits = [fit for fit in found.values() if (*fit.key[:3], fit.kind) == (chip, model, engine, kind)]  # fmt: skip
    return max(fits, key=lambda fit: fit.tpot.rows if fit.tpot else 0, default=None)


def scale(
    chip: str, model: str, engine: str, precision: str | None = None, kind: str = "agg"
) -> float:
    """What predicted times per token are to be multiplied by; 1 without a calibration of one's own.

    Workers apart (disagg) take that of workers together where they have none of their own: the same kernels run on both, and a factor on one of
    them alone would choose between them.

    >>> scale("nvidia-h100-sxm", "meta-llama/Llama-3.1-8B", "vllm")
    1.0
    """
    fit = own_fit(chip, model, engine, precision, kind) or own_fit(chip, model, engine, precision)
    return 1.0 if fit is None else fit.tpot_factor


def keep(fits: Iterable[OwnFit]) -> Path:
    """Write fits over those of the same key in the last of `own_files`; others stay. Raises `FileError`, the file then as it was."""
    path = own_files()[-1]
    kept = {fit.key: fit for fit in _read(path)} if path.exists() else {}
    _write(path, kept | {fit.key: fit for fit in fits})
    return path


def remove(chip: str, model: str, engine: str) -> list[tuple[Path, OwnFit]]:
    """Take every fit of these out of the files they are in; what was taken, and from where."""
    gone = []
    for path in own_files():
        if not path.exists():
            continue
        fits = _read(path)
        mine = [fit for fit in fits if fit.key[:3] == (chip, model, engine)]
        if mine:
            _write(path, {fit.key: fit for fit in fits if fit not in mine})
            gone += [(path, fit) for fit in mine]
    return gone


def _stamp(path: Path) -> tuple[int, int] | None:
    """Changes whenever the file does: it is replaced, never written into."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    return found.st_ino, found.st_mtime_ns


@cache
def _fits_of(files: tuple[tuple[Path, int, int], ...]) -> dict[Key, OwnFit]:
    return {fit.key: fit for path, *_ in files for fit in _read(path)}


def _read(path: Path) -> tuple[OwnFit, ...]:
    try:
        text = path.read_text(encoding="utf-8")
        return msgspec.convert(tomllib.loads(text), _File).fits
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise FileError(path, f"is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise FileError(path, f"line {_line(text, str(error))}: {error}") from error


def _line(text: str, problem: str) -> int:
    """The line of the fit that a message such as "... - at `$.fits[2].tpot.rows`" is about, or of its key where that stands by itself."""
    lines = text.splitlines()
    found = re.search(r"at `\$\.fits\[(\d+)\](?:\.(\w+))?(?:\.(\w+))?", problem)
    if found is None:
        return 1
    starts = [at for at, line in enumerate(lines) if line.strip() == "[[fits]]"]
    start = starts[int(found[1])] if int(found[1]) < len(starts) else 0
    unknown = re.search(r"unknown field `(\w+)`", problem)
    at = start
    for word in (found[2], found[3], unknown[1] if unknown else None):
        begins = re.compile(rf"\s*(\[fits\.{word}\]|{word}\s*=)")
        at = next((n for n in range(at, len(lines)) if word and begins.match(lines[n])), at)
    return at + 1


_HEAD: Final = """\
# Written by polypod calibrate, which writes it anew each time: factors on predicted times, measured over predicted.
# polypod calibrate --list shows them, --remove CHIP MODEL ENGINE takes one out.
"""


def _write(path: Path, fits: dict[Key, OwnFit]) -> None:
    text = "\n".join([_HEAD, *(_table(fit) for _, fit in sorted(fits.items()))])
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise FileError(path, f"cannot be written: {error.strerror}") from error


def _table(fit: OwnFit) -> str:
    raw: dict[str, Any] = msgspec.to_builtins(fit)
    lines = ["[[fits]]", *(f"{key} = {_value(value)}" for key, value in raw.items() if key not in {"tpot", "ttft"})]  # fmt: skip
    for metric in ("tpot", "ttft"):
        if raw[metric] is not None:
            lines += [f"[fits.{metric}]", *(f"{key} = {_value(value)}" for key, value in raw[metric].items())]  # fmt: skip
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """A value as TOML writes it; strings as JSON does, which TOML reads, but for DEL."""
    if isinstance(value, float):
        return f"{value:.6g}" if "." in f"{value:.6g}" or "e" in f"{value:.6g}" else f"{value:.1f}"
    text = value if not isinstance(value, str) else value.encode("utf-8", "replace").decode()
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
