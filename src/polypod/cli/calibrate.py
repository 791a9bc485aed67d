"""polypod calibrate: measured rows of a person's own become a calibration of their own."""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import msgspec

from polypod.catalog.load import entry_id
from polypod.cost.own import Key, OwnFit, keep, own_files, own_fits, remove
from polypod.errors import InputError
from polypod.report.tables import WIDTH, entry, table
from polypod.validate.calibrate import ENOUGH_ROWS, Calibrated, Fitted, Group, Ratio, calibrate
from polypod.validate.names import system_name
from polypod.validate.rows import Refused, Row, read_rows

_SHOWN: Final = 3
_WORSE: Final = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="CSV of serving rows, in the columns that polypod validate reads")  # fmt: skip
    parser.add_argument("--accept", action="store_true", help="keep groups that lie outside the prediction's band too")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would be kept, and write nothing")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="show the calibrations of your own")
    parser.add_argument("--remove", nargs=3, metavar=("CHIP", "MODEL", "ENGINE"), help="take out what is kept of these")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    asked = [bool(args.files), args.list, args.remove is not None]
    if sum(asked) != 1:
        msg = "calibrate takes files of measured rows, or --list, or --remove CHIP MODEL ENGINE; one of them"
        raise InputError(msg)
    if args.list:
        return _list(as_json=args.json)
    if args.remove is not None:
        return _remove(*args.remove, as_json=args.json)
    return _calibrate(args)


def _calibrate(args: argparse.Namespace) -> int:
    rows, refused = _read(args.files)
    found = calibrate(rows, accept=args.accept, so_far=own_fits())
    _check_any(found, refused)
    today = datetime.now(UTC).date().isoformat()
    fits = [fit for group in found.groups if (fit := group.own_fit(today)) is not None]
    path = keep(fits) if fits and not args.dry_run else None
    print(_json(found, refused, path) if args.json else _text(found, refused, args, path))
    return 0 if fits else 1


def _read(names: list[str]) -> tuple[list[tuple[str, Row]], list[Refused]]:
    rows: list[tuple[str, Row]] = []
    refused: list[Refused] = []
    for name in names:
        read, not_read = read_rows(name)
        rows += [(name, row) for row in read]
        refused += not_read
    return rows, refused


def _check_any(found: Calibrated, refused: list[Refused]) -> None:
    if any(group.fitted for group in found.groups):
        return
    reasons = [f"{_lines(at)}: {why}" for why, at in _reasons(found, refused).items()]
    msg = f"nothing can be calibrated on: {'; '.join(reasons[:_SHOWN]) or 'no row has a measured time'}"
    raise InputError(msg)


def _reasons(found: Calibrated, refused: list[Refused]) -> dict[str, list[int]]:
    """Why rows are in no group, and their lines; what befell most rows first."""
    lines: dict[str, list[int]] = defaultdict(list)
    for one in refused:
        lines[one.reason.removeprefix(f"line {one.line}: ")].append(one.line)
    for missing in found.not_predicted:
        lines[missing.reason].append(missing.row.line)
    return dict(sorted(lines.items(), key=lambda pair: -len(pair[1])))


def _lines(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:_SHOWN])
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"line{'s' if len(numbers) > 1 else ''} {shown}{more}"


def _text(
    found: Calibrated, refused: list[Refused], args: argparse.Namespace, path: Path | None
) -> str:
    blocks = [_block(group) for group in found.groups if group.fitted]
    reasons = _reasons(found, refused)
    if reasons:
        lines = [entry("", f"{_lines(at)}: {why}", indent=2) for why, at in reasons.items()]
        blocks.append("\n".join(["not used", *lines]))
    blocks.append(_about(found, path, is_dry=args.dry_run))
    return "\n\n".join(blocks)


def _about(found: Calibrated, path: Path | None, *, is_dry: bool) -> str:
    kept = sum(any(one.is_kept for one in group.fitted.values()) for group in found.groups)
    groups = f"{kept} of {len(found.groups)} groups"
    if path is not None:
        text = f"{groups} kept in {path}; polypod validate uses them."
    elif kept and is_dry:
        text = f"{groups} would be kept; --dry-run writes nothing."
    else:
        text = f"{groups} can be kept; nothing is written."
    legend = (
        "Factor: measured over predicted, pulled towards 1 where rows are few. Error: of the prediction, then of each row under the fit of the "
        "others; medians. Bands: what holds four of five measurements, over the prediction, then over the calibrated one. "
    )
    return fill(legend + text, WIDTH, break_on_hyphens=False)


def _title(key: Key) -> str:
    chip, model, engine, precision, kind = key
    plain = "" if kind == "agg" else f", {kind}"
    return fill(f"{model} on {chip}, {engine} {precision}{plain}", WIDTH)


def _block(group: Group) -> str:
    header = ["", "rows", "factor", "error", "after", "band", "after"]
    lines = [_line(metric.upper(), one) for metric, one in group.fitted.items()]
    parts = [_title(group.key), table(header, lines, right=[1, 2, 3, 4])]
    parts += [entry(f"  {label}", text, indent=16) for label, text in _remarks(group)]
    return "\n".join(parts)


def _line(name: str, one: Fitted) -> list[str]:
    after = one.median_abs_error_after
    return [
        f"  {name}", f"{one.fit.rows}", f"{one.fit.factor:.3f}", f"{one.median_abs_error:.1%}", "-" if after is None else f"{after:.1%}",
        f"{one.before.low:.2f} to {one.before.high:.2f}", f"{one.after.low:.2f} to {one.after.high:.2f}",
    ]  # fmt: skip


def _remarks(group: Group) -> Iterator[tuple[str, str]]:
    """What is to be said of a group beside its figures: the loudest first."""
    for metric, one in group.fitted.items():
        yield from ((f"{metric.upper()} {label}".strip(), text) for label, text in _of_metric(one))
    for metric, fit in group.stays.items():
        yield f"{metric.upper()} so far", f"{fit.factor:.3f} of {fit.rows} rows stays as it was"
    for text in group.warnings:
        yield "version", text


def _of_metric(one: Fitted) -> Iterator[tuple[str, str]]:
    if one.doubt is not None:
        yield ("accepted", one.doubt.partition(":")[0]) if one.is_kept else ("NOT KEPT", one.doubt)
    after = one.median_abs_error_after
    if after is not None and after > one.median_abs_error + _WORSE:
        yield "disagree", "these rows are farther from each other than from the prediction: no one factor suits them"  # fmt: skip
    for ratio in one.outliers[:_SHOWN]:
        yield "outlier", _of_outlier(ratio)
    if len(one.outliers) > _SHOWN:
        every = one.fit.rows + len(one.outliers)
        yield "outliers", f"{len(one.outliers)} in all, of {every} rows, none taken in (--json names them); were they run like the others?"  # fmt: skip
    if one.fit.rows < ENOUGH_ROWS:
        yield "few rows", f"{one.fit.rows} of the {ENOUGH_ROWS} that make a fit: the factor is pulled towards 1, the band stays wide"  # fmt: skip


def _of_outlier(one: Ratio) -> str:
    low, high = one.predicted_s * one.band.low, one.predicted_s * one.band.high
    row = one.row
    where = f"{Path(one.file).name} line {row.line}, concurrency {row.concurrency:g}"
    return (
        f"{where} ({row.id[:40]}) is not taken in: measured {_ms(one.measured_s)}, predicted {_ms(one.predicted_s)}, "
        f"band {_ms(low)} to {_ms(high)}"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def _json(found: Calibrated, refused: list[Refused], path: Path | None) -> str:
    raw = {
        "groups": [_group_dict(group) for group in found.groups],
        "not_used": [{"reason": why, "lines": at} for why, at in _reasons(found, refused).items()],
        "file": None if path is None else str(path),
    }  # fmt: skip
    return json.dumps(raw, indent=2)


def _group_dict(group: Group) -> dict[str, Any]:
    chip, model, engine, precision, kind = group.key
    fitted: dict[str, Any] = {metric: _fitted_dict(one) for metric, one in group.fitted.items()}
    return {
        "chip": chip, "model": model, "engine": engine, "precision": precision, "kind": kind, "rows": group.rows,
        "versions": group.versions, "files": group.files, **fitted, "warnings": group.warnings,
    }  # fmt: skip


def _fitted_dict(one: Fitted) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(one.fit),
        "band_before": asdict(one.before),
        "band_after": asdict(one.after),
        "median_abs_error": one.median_abs_error,
        "median_abs_error_after": one.median_abs_error_after,
        "doubt": one.doubt,
        "kept": one.is_kept,
        "outliers": [_outlier_dict(ratio) for ratio in one.outliers],
    }


def _outlier_dict(one: Ratio) -> dict[str, Any]:
    low_s, high_s = one.predicted_s * one.band.low, one.predicted_s * one.band.high
    return {
        "file": one.file, "line": one.row.line, "id": one.row.id,
        "measured_s": one.measured_s, "predicted_s": one.predicted_s, "low_s": low_s, "high_s": high_s,
    }  # fmt: skip


def _list(*, as_json: bool) -> int:
    fits = list(own_fits().values())
    if as_json:
        print(json.dumps({"fits": [msgspec.to_builtins(fit) for fit in fits]}, indent=2))
    elif fits:
        print("\n".join(f"{_title(fit.key)}\n{entry('', _of_fit(fit), indent=2)}" for fit in fits))
    else:
        where = " or ".join(str(path) for path in own_files())
        print(fill(f"no calibrations of your own are in {where}", WIDTH, break_on_hyphens=False))
    return 0


def _of_fit(fit: OwnFit) -> str:
    factors = [
        f"{name} {one.factor:.3f} ({one.rows} rows)"
        for name, one in (("TPOT", fit.tpot), ("TTFT", fit.ttft))
        if one is not None
    ]
    versions = f"{fit.engine} {', '.join(fit.versions)}" if fit.versions else ""
    return "; ".join(part for part in (", ".join(factors), versions, fit.source, fit.date) if part)


def _remove(chip: str, model: str, engine: str, *, as_json: bool) -> int:
    gone = remove(entry_id(system_name(chip)), entry_id(model), engine)
    if not gone:
        known = sorted({" ".join(key[:3]) for key in own_fits()})
        there = f"there are {', '.join(known)}" if known else "there are none"
        msg = f"no calibration of your own is of {chip} {model} {engine}; {there}"
        raise InputError(msg)
    if as_json:
        print(json.dumps({"removed": [msgspec.to_builtins(fit) for _, fit in gone]}, indent=2))
    else:
        print("\n".join(f"{_title(fit.key)}\n  removed from {path}" for path, fit in gone))
    return 0
