"""polypod validate: predictions beside measurements, with errors, bands and reasons."""

import argparse
import csv
import io
import json
import re
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from polypod.catalog.parsed import write_whole
from polypod.cli.validate_played import (
    PLAYED_HEADER,
    played_cells,
    played_json,
    played_text,
)
from polypod.cli.validate_points import points_json, points_text
from polypod.cost.bands import METRICS
from polypod.cost.own import own_fits
from polypod.engine.settings import NAMES, EngineArgs, read_engine_args
from polypod.errors import FileError, InputError
from polypod.report.plans import moved
from polypod.report.tables import entry, table
from polypod.validate.beside import Pair, paired
from polypod.validate.names import system_name
from polypod.validate.point_bands import predict_point
from polypod.validate.points import has_points, read_points
from polypod.validate.predict import unsaid
from polypod.validate.rows import Refused, Row, read_rows, unique
from polypod.validate.scores import (
    Group,
    Kind,
    Score,
    Scored,
    by_evidence,
    by_kind,
    groups,
    noise,
    score,
    worst,
)
from polypod.validate.shipped import read_shipped_points, scored, shipped_rows
from polypod.validate.why import Reasons

ROW_HEADER: Final = (
    "id", "predicted_ttft_ms", "predicted_tpot_ms", "ttft_low_ms", "ttft_high_ms", "tpot_low_ms", "tpot_high_ms", "evidence", "reason",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="CSV of serving rows, or of single points; without one, the published set that ships")  # fmt: skip
    parser.add_argument(
        "--points",
        action="store_true",
        help="single published figures: those that ship, where no file is given",
    )
    parser.add_argument("--leave-out", action="append", default=[], metavar="SYSTEM", help="predict this system without its own measurements")  # fmt: skip
    parser.add_argument("--no-calibration", action="store_true", help="leave calibrations of your own out (polypod calibrate); the set that ships never uses them")  # fmt: skip
    parser.add_argument("--engine-args", default="", metavar="ARGS", help=f"settings of the engine and the load that no column tells, for every row, over what its benchmark's script set: {', '.join(NAMES)}")  # fmt: skip
    parser.add_argument("--simulate", action="store_true", help="play each row's benchmark request by request too, and score both")  # fmt: skip
    parser.add_argument("--rows", metavar="FILE", help="write every prediction to a CSV file")
    parser.add_argument("--worst", type=int, default=5, metavar="N", help="how many of the rows farthest off to show (5)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    without = frozenset(system_name(name) for name in args.leave_out)
    if args.points or (args.files and all(has_points(Path(name)) for name in args.files)):
        points = [point for name in args.files for point in read_points(Path(name))]
        found = [predict_point(one, without=without) for one in points or read_shipped_points()]
        print(points_json(found) if args.json else points_text(found))
        return 0
    rows, refused = _read(args.files)
    _check_left_out(args.leave_out, rows)
    own = bool(args.files) and not args.no_calibration and bool(own_fits())
    said = read_engine_args(args.engine_args)
    every = [scored(row, without, own=own, said=said) for row in rows]
    if any(one.prediction and one.prediction.evidence == "calibrated" for one in every):
        print("note: predictions are under calibrations of your own; --no-calibration leaves them out", file=sys.stderr)  # fmt: skip
    pairs, not_played = paired(every, without=without, said=said) if args.simulate else ([], Counter())  # fmt: skip
    if args.rows:
        known = {id(one): _unsaid(one, without, said) for one in every}
        of_play = {id(one.formula): one for one in pairs} if args.simulate else None
        _write(Path(args.rows), _lines(every, refused, known, of_play))
    once = _once(every)
    counted = {id(one) for one in once}
    pairs = [one for one in pairs if id(one.formula) in counted]
    if args.json:
        raw = _raw(once, refused)
        print(json.dumps(raw | {"played": played_json(pairs, not_played)} if args.simulate else raw, indent=2))  # fmt: skip
        return 0
    print(_text(once, refused, args.worst, Reasons(once, without, said)))
    if args.simulate:
        print(f"\n{played_text(pairs, not_played)}")
    return 0


def _check_left_out(names: list[str], rows: list[Row]) -> None:
    present = sorted({row.system for row in rows})
    for name in names:
        if name not in present:
            msg = f"--leave-out {name}: no row is of that system; there are {', '.join(present)}"
            raise InputError(msg)


def _read(files: list[str]) -> tuple[list[Row], list[Refused]]:
    if not files:
        return shipped_rows()
    rows: list[Row] = []
    refused: list[Refused] = []
    for name in files:
        read, not_read = read_rows(name)
        rows += read
        refused += not_read
    return rows, refused


def _once(found: list[Scored]) -> list[Scored]:
    """Each measurement once, as scores count them."""
    by_row = {id(one.row): one for one in found}
    return [by_row[id(row)] for row in unique([one.row for one in found])]


def _unsaid(one: Scored, without: frozenset[str], said: EngineArgs) -> list[str]:
    """The two settings that no column tells and that would move the prediction most, and by how much."""
    if one.prediction is None:
        return []
    found = unsaid(one.row, without=without, said=said)[:2]
    return [f"{move.setting} = {move.value} would make {moved(move)}" for move in found]


def _lines(
    found: list[Scored],
    refused: list[Refused],
    known: dict[int, list[str]],
    of_play: dict[int, Pair] | None,
) -> list[tuple[object, ...]]:
    """The header and a line for every row; what was played comes after the prediction, where rows were."""
    if of_play is None:
        lines = [_line(one, known[id(one)]) for one in found]
        return [ROW_HEADER, *lines, *((one.id, *[""] * 7, one.reason) for one in refused)]
    lines = [(*_line(one, known[id(one)]), *played_cells(of_play.get(id(one)))) for one in found]
    rest = [(one.id, *[""] * 7, one.reason, *played_cells(None)) for one in refused]
    return [(*ROW_HEADER, *PLAYED_HEADER), *lines, *rest]


def _write(path: Path, lines: list[tuple[object, ...]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    try:
        write_whole(path, text.getvalue().encode())
    except OSError as error:
        raise FileError(path, f"cannot be written: {error.strerror}") from error


def _line(one: Scored, known: list[str]) -> tuple[object, ...]:
    found = one.prediction
    if found is None:
        return (one.row.id, *[""] * 7, one.reason)
    ttft_ms, tpot_ms = found.ttft_s * 1e3, found.tpot_s * 1e3
    values = (
        ttft_ms, tpot_ms, ttft_ms * found.ttft_band.low, ttft_ms * found.ttft_band.high,
        tpot_ms * found.tpot_band.low, tpot_ms * found.tpot_band.high,
    )  # fmt: skip
    why = "; ".join([*found.notes, *known])
    return (one.row.id, *(f"{value:.6g}" for value in values), found.evidence, why)


def _raw(found: list[Scored], refused: list[Refused]) -> dict[str, Any]:
    overall: dict[str, Any] = {
        "tpot": _dict(score(found, "tpot")),
        "ttft": _dict(score(found, "ttft")),
    }
    reasons = _reasons(found, refused)
    return {
        "groups": [asdict(group) for group in groups(found)],
        "overall": overall,
        "by_evidence": {
            name: {metric: _dict(score(of, metric)) for metric in METRICS}
            for name, of in by_evidence(found).items()
        },
        "noise_floor": {
            metric: None if (floor := noise(found, metric)) is None else asdict(floor)
            for metric in METRICS
        },
        "not_predicted": [{"reason": why, "rows": n} for why, n in reasons.most_common()],
    }


def _reasons(found: list[Scored], refused: list[Refused]) -> Counter[str]:
    """Rows without a prediction by why, line numbers left out."""
    why = [one.reason for one in found if one.prediction is None] + [one.reason for one in refused]
    return Counter(re.sub(r"^line \d+: ", "", reason) for reason in why)


def _dict(found: Score | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)


def _text(found: list[Scored], refused: list[Refused], most: int, reasons_of: Reasons) -> str:
    blocks = [_overall(found), _evidence(found), _groups(groups(found))]
    if most > 0:
        blocks.append(_worst(found, most, reasons_of))
    reasons = _reasons(found, refused)
    if reasons:
        lines = ["not predicted"]
        lines += [entry(f"{n:>5} rows", why, indent=12) for why, n in reasons.most_common(10)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


_SCORES = ["n", "median", "mean", "bias", "<=10%", "<=20%", "inside", "band"]


def _cells(found: Score | None) -> list[str]:
    if found is None:
        return ["0", *["-"] * 7]
    shares = (found.median_abs_error, found.mean_abs_error)
    return [
        f"{found.n}", *(f"{share:.1%}" for share in shares), f"{found.bias:+.0%}",
        f"{found.within_10:.0%}", f"{found.within_20:.0%}", f"{found.coverage:.0%}", f"{found.median_band_ratio:.2f}",
    ]  # fmt: skip


_TITLES: Final[dict[Kind, str]] = {
    ("agg", False): "co-located",
    ("agg", True): "co-located +drafts",
    ("disagg", False): "P/D",
    ("disagg", True): "P/D +drafts",
}


def _overall(found: list[Scored]) -> str:
    rows = [
        [f"{metric.upper()} {_TITLES[kind]}", *_cells(score(of, metric))]
        for kind, of in by_kind(found).items()
        for metric in METRICS
    ]
    return table(["unique rows", *_SCORES], rows, right=list(range(1, 9)))


def _groups(found: list[Group]) -> str:
    """TPOT and TTFT of each cell, in 80 columns."""
    rows = []
    for one in found:
        name = f"{one.model.rpartition('/')[2][:20]}{' +drafts' if one.speculative else ''}"
        tpot, ttft = _cells(one.tpot), _cells(one.ttft)
        where = f"{one.system} {one.backend}{' P/D' if one.mode == 'disagg' else ''}"
        rows.append([where, name, tpot[0], tpot[1], tpot[5], ttft[1], ttft[5]])
    header = ["system, engine", "model", "n", "TPOT", "<=20%", "TTFT", "<=20%"]
    return table(header, rows, right=[2, 3, 4, 5, 6])


def _evidence(found: list[Scored]) -> str:
    """Interval scores by what predictions rest on, and how far repeats lie apart."""
    rows = [
        [f"{metric.upper()} {name}", f"{one.n}", f"{one.median_abs_error:.1%}", f"{one.coverage:.0%}", f"{one.median_band_ratio:.2f}", f"{one.interval_score:.2f}"]
        for name, of in by_evidence(found).items()
        for metric in METRICS
        if (one := score(of, metric)) is not None
    ]  # fmt: skip
    lines = [table(["by evidence", "n", "median", "inside", "band", "interval score"], rows, right=[1, 2, 3, 4, 5])]  # fmt: skip
    for metric in METRICS:
        floor = noise(found, metric)
        said = "no run was repeated" if floor is None else f"{floor.pairs} pairs of repeated runs lie {floor.median_abs_error:.1%} apart in the median"  # fmt: skip
        lines.append(entry(f"noise {metric.upper()}", said))
    return "\n".join(lines)


def _worst(found: list[Scored], most: int, reasons_of: Reasons) -> str:
    lines = ["farthest off, predicted over measured"]
    for metric in METRICS:
        for one, ratio in worst(found, metric, most):
            row = one.row
            what = f"{row.model.rpartition('/')[2]} on {row.system}, {row.backend}, concurrency {row.concurrency:g}, line {row.line}: {reasons_of.of(one, metric)}"
            lines.append(entry(f"{metric.upper()} {ratio:.2g}", what, indent=12))
    return "\n".join(lines)
