"""polypod replay: ask a record's questions again, and compare every decision."""

import argparse
import json
from itertools import chain
from pathlib import Path

import msgspec

from polypod.cli.asking import note
from polypod.report.fold import read_outcomes
from polypod.report.reading import Reading, record_file
from polypod.report.runs import run_json, run_text
from polypod.report.summary import summary_of
from polypod.simulate.replay import replay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "record", help="a record.jsonl, of a live or a simulated run, or its folder"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    path = record_file(Path(args.record))
    reading = Reading(path)
    difference = replay(chain.from_iterable(reading))
    if reading.note:
        note(reading.note)
    summary = summary_of(read_outcomes(path))
    if args.json:
        differs = None if difference is None else msgspec.to_builtins(difference)
        print(
            json.dumps(
                {
                    "identical": difference is None,
                    "first_difference": differs,
                    "run": run_json(summary),
                },
                indent=2,
            )
        )
    elif difference is None:
        print(run_text(summary, args.record))
        print("\nevery decision is the same when a fresh policy is asked again")
    else:
        print(f"step {difference.step} differs: {difference.event}")
        print(f"recorded: {difference.recorded}\nreplayed: {difference.replayed}")
    return 0 if difference is None else 1
