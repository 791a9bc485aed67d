"""polypod diff: two runs side by side, and which differences are more than chance."""

import argparse
import json
from pathlib import Path

from polypod.report.diff import diff, diff_json, diff_text
from polypod.report.merged import read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a record.jsonl or its folder")
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument(
        "--all", action="store_true", help="also what is not told apart of models and pools"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the resampling (default: 0)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    found = diff(read_run(Path(args.a)), read_run(Path(args.b)), seed=args.seed)
    if args.json:
        print(json.dumps(diff_json(found), indent=2))
    else:
        print(diff_text(found, everything=args.all))
    return 0
