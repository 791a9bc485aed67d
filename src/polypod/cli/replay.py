"""polypod replay: ask a record's questions again, and compare every decision."""

import argparse
import json
from pathlib import Path

import msgspec

from polypod.record import read
from polypod.report.runs import run_json, run_text, summarise
from polypod.simulate.replay import replay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("record", help="a record.jsonl, of a live or a simulated run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    path = Path(args.record)
    difference = replay(read(path))
    summary = summarise(read(path))
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
        print(run_text(summary))
        print("\nevery decision is the same when a fresh policy is asked again")
    else:
        print(f"step {difference.step} differs: {difference.event}")
        print(f"recorded: {difference.recorded}\nreplayed: {difference.replayed}")
    return 0 if difference is None else 1
