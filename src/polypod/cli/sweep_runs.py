"""Sweeps of simulations: each point is `polypod simulate` with other words."""

import argparse
from collections.abc import Hashable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from polypod.cli import simulate
from polypod.errors import FileError, InputError, PolypodError
from polypod.plan.spec import read_plan
from polypod.plan.sweep import Row
from polypod.plan.version import data_version
from polypod.sweep.axes import PLAN, SEED, RunPoint, run_points
from polypod.sweep.run_rows import figure_columns, figures
from polypod.sweep.work import Kind

_NOT_SWEPT: Final = frozenset({"help", "folder", "json", "sample", "driver", "processes", "jobs"})
"""What a run of a sweep has no use for: it writes nothing of its own, and is played in one process."""

_CODE: Final = ("policy", "simulate", "report", "cli")


class _Parser(argparse.ArgumentParser):
    """Raises where others end the process."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _parser() -> _Parser:
    parser = _Parser(prog="polypod simulate", add_help=False, allow_abbrev=False)
    simulate.add_arguments(parser)
    return parser


_PARSER: Final = _parser()
_FLAGS: Final = {
    action.option_strings[-1].removeprefix("--").replace("-", "_"): action
    for action in _PARSER._actions  # argparse has no other list of them
    if action.option_strings and action.dest not in _NOT_SWEPT
}


def read_runs(path: Path, raw: Mapping[str, Any], most: int | None) -> list[RunPoint]:
    """The points of a sweep file of simulations. Raises `FileError` with the path to the key, also of a value that its flag does not take."""
    try:
        points = run_points(raw, set(_FLAGS), most)
        values = dict.fromkeys(pair for point in points for pair in point.said)
        for key, text in values:
            _check(points[0].plan, key, text)
    except InputError as error:
        raise FileError(path, str(error)) from error
    return points


def _check(plan: str, key: str, text: str | None) -> None:
    try:
        _PARSER.parse_args([plan, *_words(key, text)])
    except InputError as error:
        msg = f"{error} - at `$.{key}`"
        raise InputError(msg) from error


def _words(key: str, text: str | None) -> list[str]:
    """A key and its value as words of the command line; a flag that may stand several times has its values apart by spaces."""
    action, flag = _FLAGS[key], f"--{key.replace('_', '-')}"
    if text is None:
        return []
    if action.nargs == 0:  # it is there or not
        if text not in ("true", "false"):
            msg = f"{text!r} is neither true nor false"
            raise InputError(msg)
        return [flag] if text == "true" else []
    parts = text.split() if isinstance(action.default, list) else [text]
    return [f"{flag}={part}" for part in parts]


def columns_of(points: list[RunPoint]) -> dict[str, type]:
    """The columns of a sweep's table: what was asked, how it went, figures. Raises `FileError` for a plan that cannot be read."""
    plans = [read_plan(Path(name)) for name in dict.fromkeys(point.plan for point in points)]
    models = dict.fromkeys(service.model for plan in plans for service in plan.services)
    asked: dict[str, type] = {key: int if key == SEED else str for key in points[0].asked}
    return asked | {"status": str, "reason": str} | figure_columns(list(models)) | {"spent_s": float}  # fmt: skip


def _asked(point: RunPoint) -> Row:
    return {key: int(text) if key == SEED and text is not None else text for key, text in point.asked.items()}  # fmt: skip


def _answer(point: RunPoint) -> Row:
    try:
        words = [word for key, text in point.said for word in _words(key, text)]
        played = simulate.played_of(_PARSER.parse_args([point.plan, *words]))
    except PolypodError as error:
        return _failed(point, str(error))
    return _asked(point) | {"status": "ok"} | figures(played.outcomes, played.summary)


def _failed(point: RunPoint, reason: str) -> Row:
    return _asked(point) | {"status": "error", "reason": reason}


def _files(point: RunPoint) -> Hashable:
    """The plan, and whatever else is a file: traces, faults, prices."""
    return tuple(text for text in point.asked.values() if text and Path(text).is_file())


def _version(files: tuple[str, ...]) -> str:
    plan = read_plan(Path(files[0])) if files else None
    models = [] if plan is None else [service.model for service in plan.services]
    digest = sha256(data_version(models, beside=_CODE).encode())
    for name in files:
        digest.update(sha256(Path(name).read_bytes()).digest())
    return digest.hexdigest()


def _sent(point: RunPoint) -> RunPoint:
    """With whole paths."""

    def whole(text: str | None) -> str | None:
        return str(Path(text).resolve()) if text and Path(text).is_file() else text

    return msgspec.structs.replace(
        point,
        plan=str(whole(point.plan)),
        said=tuple((key, whole(text)) for key, text in point.said),
    )


RUNS: Final = Kind(
    answer=_answer, failed=_failed, source=_files, version=_version, sent=_sent, asked=_asked
)
assert PLAN not in _FLAGS, "the plan is no flag"
