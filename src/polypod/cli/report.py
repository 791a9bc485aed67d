"""polypod report: what a run's record says; over time, request by request, fault by fault, or as a trace to look at."""

import argparse
import json
from pathlib import Path
from typing import Any, Final

from polypod import units
from polypod.cli.asking import note
from polypod.errors import InputError
from polypod.report.faults_cost import fault_costs, faults_json, faults_text
from polypod.report.merged import read_run
from polypod.report.outcomes import Outcomes
from polypod.report.perfetto import MOST_REQUESTS, save_perfetto
from polypod.report.runs import run_json, run_text
from polypod.report.series import OverTime, over_time, series_csv, series_json, series_text
from polypod.report.slowest import MOST, slowest, slowest_json, slowest_text
from polypod.report.summary import summary_of

_BY: Final = ("e2e", "ttft", "tpot")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a record.jsonl, of a live or a simulated run, or its folder")
    parser.add_argument(
        "--series", action="store_true", help="queue, running, cache, tokens, watts over time"
    )
    parser.add_argument(
        "--every", metavar="TIME", help="width of an interval, as 10s (default: 48 of them or less)"
    )
    parser.add_argument("--csv", action="store_true", help="print the series as CSV")
    parser.add_argument(
        "--slowest",
        nargs="?",
        type=int,
        const=MOST,
        metavar="N",
        help=f"the N slowest requests, step by step ({MOST})",
    )
    parser.add_argument(
        "--by", choices=_BY, default="e2e", help="what they are slow by (default: e2e)"
    )
    parser.add_argument("--faults", action="store_true", help="what each fault cost")
    parser.add_argument(
        "--perfetto",
        metavar="FILE",
        help="write a trace for ui.perfetto.dev; compressed where FILE ends in .gz",
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=MOST_REQUESTS,
        metavar="N",
        help=f"of which the trace has the first N (default: {MOST_REQUESTS:,})",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    _check(args)
    outcomes = read_run(Path(args.run))
    if outcomes.note:
        note(outcomes.note)
    if args.perfetto:
        left_out = save_perfetto(outcomes, Path(args.perfetto), args.requests)
        more = f"; {left_out:,} requests were left out, say --requests N for more" if left_out else ""  # fmt: skip
        note(f"wrote {args.perfetto}{more}")
    if args.json:
        print(json.dumps(_object(args, outcomes), indent=2))
    elif args.csv:
        print(series_csv(_series(args, outcomes)))
    else:
        text = _text(args, outcomes)
        if text:
            print(text)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.slowest is not None and args.slowest < 1:
        msg = f"--slowest {args.slowest} is no number of requests; give 1 or more"
        raise InputError(msg)
    if args.requests < 1:
        msg = f"--requests {args.requests} is no number of requests; give 1 or more"
        raise InputError(msg)
    if args.csv and args.json:
        msg = "--csv and --json are two forms of one output; give one of them"
        raise InputError(msg)


def _series(args: argparse.Namespace, outcomes: Outcomes) -> OverTime:
    width_s = None if args.every is None else units.parse(args.every, "s")
    if width_s == 0:
        msg = f"--every {args.every} is no width; give more than 0"
        raise InputError(msg)
    return over_time(outcomes, width_s=width_s)


def _text(args: argparse.Namespace, outcomes: Outcomes) -> str:
    parts = []
    if args.series or args.every:
        parts.append(series_text(_series(args, outcomes)))
    if args.slowest is not None:
        parts.append(slowest_text(slowest(outcomes, args.slowest, args.by), args.by))
    if args.faults:
        parts.append(faults_text(fault_costs(outcomes)))
    if not parts and not args.perfetto:
        parts.append(run_text(summary_of(outcomes), args.run))
    return "\n\n".join(parts)


def _object(args: argparse.Namespace, outcomes: Outcomes) -> dict[str, Any]:
    """The summary, and what else was asked for."""
    found = run_json(summary_of(outcomes))
    if args.series or args.every:
        found["series"] = series_json(_series(args, outcomes))
    if args.slowest is not None:
        found["slowest"] = slowest_json(slowest(outcomes, args.slowest, args.by))
    if args.faults:
        found["faults"] = faults_json(fault_costs(outcomes))
    return found
