"""polypod sweep: many plans from one file, resumable, as one table."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from polypod import units
from polypod.cli.asking import count, note
from polypod.engine.native.build import prepare
from polypod.plan.sweep import MOST_POINTS, Point, Row, read_sweep
from polypod.report.tables import entry
from polypod.sweep.on_ray import RayRunner
from polypod.sweep.pool import Pool
from polypod.sweep.progress import Progress
from polypod.sweep.run import run as run_points
from polypod.sweep.run import tally
from polypod.sweep.store import Store, keys_of
from polypod.sweep.table import as_csv, check_columns, check_file, write_table
from polypod.sweep.work import Runner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="FILE", help="a YAML file of models, fleets, lengths and limits; docs/how-to/sweep.md")  # fmt: skip
    parser.add_argument("-o", dest="file", metavar="FILE", help="write a .parquet or .csv here (default: CSV on stdout, which cannot go on after a stop)")  # fmt: skip
    parser.add_argument("--columns", metavar="A,B", help="these columns only (default: all)")
    parser.add_argument("--jobs", metavar="N", help="points at a time (default: one a core)")
    parser.add_argument("--ray", metavar="ADDRESS", help="on a Ray cluster: its address, or auto")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help="go on with what an earlier run of -o FILE finished (default: yes)")  # fmt: skip
    parser.add_argument("--yes", action="store_true", help=f"more than {MOST_POINTS:,} points are meant")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    prepare()
    columns = check_columns(args.columns)
    file = None if args.file is None else Path(args.file)
    if file is not None:
        check_file(file)
    runner = _runner(args)
    points = read_sweep(Path(args.sweep), None if args.yes else MOST_POINTS)
    rows = _rows(points, runner, file, columns, is_fresh=not args.resume)
    _show(rows, file, columns, as_json=args.json)
    return 0


def _runner(args: argparse.Namespace) -> Runner:
    jobs = None if args.jobs is None else count("--jobs", args.jobs)
    if args.ray is not None:
        return RayRunner(args.ray, jobs)
    return Pool(jobs or len(os.sched_getaffinity(0)))


def _rows(
    points: list[Point], runner: Runner, file: Path | None, columns: Sequence[str], *, is_fresh: bool
) -> list[Row]:  # fmt: skip
    """Work the points off, and write the file where there is one."""
    with nullcontext() if file is None else Store(file) as store:
        if store is not None and is_fresh:
            store.forget()
        finished = {} if store is None else store.finished()
        keys = keys_of(points)
        done = sum(key in finished for key in keys.values())
        if done:
            note(f"{done:,} of {len(points):,} points were finished before and are taken over")
        watch = Progress(len(points), done, sys.stderr)
        try:
            rows = run_points(keys, finished, runner, store, watch)
        except KeyboardInterrupt:
            watch.end()
            note(_how_to_go_on(keys, store))
            raise
        finally:
            watch.end()
        if file is not None and store is not None:
            write_table(file, rows, columns)
            store.remove()
    return rows


def _how_to_go_on(keys: Mapping[Point, str], store: Store | None) -> str:
    if store is None:
        return "nothing is kept: with -o FILE what is finished would be"
    finished = store.finished()
    done = sum(key in finished for key in keys.values())
    if not done:
        return f"none of {len(keys):,} points was finished"
    return f"{done:,} of {len(keys):,} points are finished and kept in {store.folder}; say the same command again to go on"


def _show(rows: list[Row], file: Path | None, columns: Sequence[str], *, as_json: bool) -> None:
    kinds = tally(rows)
    if as_json:
        summary: dict[str, object] = {
            "points": len(rows),
            **{kind: kinds[kind] for kind in ("ok", "infeasible", "error")},
            "spent_s": sum(float(row["spent_s"] or 0) for row in rows),
            "file": None if file is None else str(file),
        }
        if file is None:
            summary["rows"] = [{name: row[name] for name in columns} for row in rows]
        print(json.dumps(summary, indent=2))
    elif file is None:
        print(as_csv(rows, columns))
    else:
        print(_summary(rows, file))


def _summary(rows: list[Row], file: Path) -> str:
    kinds = tally(rows)
    spent_s = sum(float(row["spent_s"] or 0) for row in rows)
    lines = [
        entry("wrote", str(file)),
        entry("points", f"{len(rows):,}: {kinds['ok']:,} with a plan, {kinds['infeasible']:,} infeasible, {kinds['error']:,} with an error"),
        entry("spent", f"{units.show(spent_s, 's')} of one core"),
    ]  # fmt: skip
    first = next((row for row in rows if row["status"] == "error"), None)
    if first is not None:
        lines.append(entry("first error", f"{first['model']} on {first['on']}: {first['reason']}"))
    return "\n".join(lines)
