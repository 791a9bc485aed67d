"""polypod sweep: many plans, or many simulations, from one file, resumable, as one table."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypod import units
from polypod.cli.asking import count, note
from polypod.cli.sweep_runs import RUNS, columns_of, read_runs
from polypod.engine.native.build import compiler, library, prepare
from polypod.errors import FileError, RunError
from polypod.plan.spec import read_yaml
from polypod.plan.sweep import COLUMNS, MOST_POINTS, Row, read_sweep
from polypod.report.tables import entry
from polypod.sweep.axes import SEED
from polypod.sweep.on_ray import RayRunner
from polypod.sweep.pool import Pool
from polypod.sweep.progress import Progress
from polypod.sweep.run import run as run_points
from polypod.sweep.run import tally
from polypod.sweep.seeds import over_seeds, seed_columns
from polypod.sweep.store import Store, keys_of
from polypod.sweep.table import as_csv, check_columns, check_file, write_table
from polypod.sweep.work import PLANS, Kind, Runner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="FILE", help="a YAML file of models, fleets, lengths and limits, or of plans and flags of simulate; docs/how-to/sweep.md")  # fmt: skip
    parser.add_argument("-o", dest="file", metavar="FILE", help="write a .parquet or .csv here (default: CSV on stdout, which cannot go on after a stop)")  # fmt: skip
    parser.add_argument("--columns", metavar="A,B", help="these columns only (default: all)")
    parser.add_argument("--jobs", metavar="N", help="points at a time (default: one a core)")
    parser.add_argument("--ray", metavar="ADDRESS", help="on a Ray cluster: its address, or auto")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help="go on with what an earlier run of -o FILE finished (default: yes)")  # fmt: skip
    parser.add_argument("--yes", action="store_true", help=f"more than {MOST_POINTS:,} points are meant")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep:
    """What a file asks for: points of one kind, and the columns of their rows, those of the question first."""

    points: list[Any]
    kind: Kind
    columns: dict[str, type]
    shown: Callable[[Row], str]

    @property
    def seeds(self) -> int:
        """How many seeds there are, of a sweep of simulations."""
        if self.kind is PLANS:
            return 0
        return len({point.asked.get(SEED) for point in self.points})


def run(args: argparse.Namespace) -> int:
    prepare()
    file = None if args.file is None else Path(args.file)
    if file is not None:
        check_file(file)
    asked = _read(Path(args.sweep), None if args.yes else MOST_POINTS)
    columns = check_columns(args.columns, asked.columns)
    runner = _runner(args, asked.kind)
    rows = _rows(asked, runner, file, columns, is_fresh=not args.resume)
    _show(asked, rows, file, columns, as_json=args.json)
    return 0


def _read(path: Path, most: int | None) -> _Sweep:
    raw = read_yaml(path)
    if not isinstance(raw, dict) or raw.get("kind", "plan") == "plan":
        points = read_sweep(path, most)
        return _Sweep(points=points, kind=PLANS, columns=COLUMNS, shown=lambda row: f"{row['model']} on {row['on']}")  # fmt: skip
    if raw["kind"] != "simulate":
        raise FileError(path, f"{raw['kind']!r} is no kind of sweep; say plan or simulate - at `$.kind`")  # fmt: skip
    runs = read_runs(path, raw, most)
    if compiler() is None:
        msg = "a sweep of simulations needs a C compiler here (cc, gcc, clang, or what CC names); install one"
        raise RunError(msg)
    library()  # once, before several processes do
    return _Sweep(points=runs, kind=RUNS, columns=columns_of(runs), shown=_of_run)


def _of_run(row: Row) -> str:
    asked = list(row)[: list(row).index("status")]
    return ", ".join(f"{key} {row[key]}" for key in asked if row[key] is not None)


def _runner(args: argparse.Namespace, kind: Kind) -> Runner:
    jobs = None if args.jobs is None else count("--jobs", args.jobs)
    if args.ray is not None:
        return RayRunner(args.ray, jobs, kind)
    return Pool(jobs or len(os.sched_getaffinity(0)), kind)


def _rows(
    asked: _Sweep, runner: Runner, file: Path | None, columns: Sequence[str], *, is_fresh: bool
) -> list[Row]:
    """Work the points off, and write the file where there is one."""
    with nullcontext() if file is None else Store(file) as store:
        if store is not None and is_fresh:
            store.forget()
        finished = {} if store is None else store.finished()
        keys = keys_of(asked.points, asked.kind)
        done = sum(key in finished for key in keys.values())
        if done:
            note(f"{done:,} of {len(keys):,} points were finished before and are taken over")
        watch = Progress(len(keys), done, sys.stderr)
        try:
            rows = run_points(keys, finished, runner, store, watch)
        except KeyboardInterrupt:
            watch.end()
            note(_how_to_go_on(keys, store))
            raise
        finally:
            watch.end()
        rows = [dict.fromkeys(asked.columns) | row for row in rows]
        if file is not None and store is not None:
            write_table(file, rows, columns, asked.columns)
            if asked.seeds > 1:
                together, names = _over_seeds(asked, rows)
                write_table(seeds_file(file), together, list(names), names)
            store.remove()
    return rows


def seeds_file(file: Path) -> Path:
    """Where the means over seeds are written beside a table."""
    return file.with_name(f"{file.stem}-seeds{file.suffix}")


def _over_seeds(asked: _Sweep, rows: Sequence[Row]) -> tuple[list[Row], dict[str, type]]:
    said = list(asked.points[0].asked)
    figures = [name for name, kind in asked.columns.items() if kind is not str and name not in {*said, "spent_s"}]  # fmt: skip
    return over_seeds(rows, said, figures), seed_columns(said, figures)


def _how_to_go_on(keys: Mapping[Any, str], store: Store | None) -> str:
    if store is None:
        return "nothing is kept: with -o FILE what is finished would be"
    finished = store.finished()
    done = sum(key in finished for key in keys.values())
    if not done:
        return f"none of {len(keys):,} points was finished"
    return f"{done:,} of {len(keys):,} points are finished and kept in {store.folder}; say the same command again to go on"


def _show(
    asked: _Sweep, rows: list[Row], file: Path | None, columns: Sequence[str], *, as_json: bool
) -> None:
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
        if asked.seeds > 1:
            summary["over_seeds"] = _over_seeds(asked, rows)[0]
        print(json.dumps(summary, indent=2))
    elif file is None:
        print(as_csv(rows, columns))
    else:
        print(_summary(asked, rows, file))


def _summary(asked: _Sweep, rows: list[Row], file: Path) -> str:
    kinds = tally(rows)
    spent_s = sum(float(row["spent_s"] or 0) for row in rows)
    ends = f"{kinds['ok']:,} with a plan, {kinds['infeasible']:,} infeasible, {kinds['error']:,} with an error"
    if asked.kind is not PLANS:
        ends = f"{kinds['ok']:,} played, {kinds['error']:,} with an error"
    lines = [
        entry("wrote", str(file)),
        entry("points", f"{len(rows):,}: {ends}"),
        entry("spent", f"{units.show(spent_s, 's')} of one core"),
    ]
    if asked.seeds > 1:
        lines.insert(1, entry("", f"{seeds_file(file)}: means over seeds, with their 95 % intervals"))  # fmt: skip
    first = next((row for row in rows if row["status"] == "error"), None)
    if first is not None:
        lines.append(entry("first error", f"{asked.shown(first)}: {first['reason']}"))
    return "\n".join(lines)
