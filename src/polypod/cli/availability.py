"""polypod availability: how much of the time a plan has the replicas its traffic needs."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

from polypod.cli.asking import count
from polypod.cli.availability_text import Answer, answer_json, answer_text
from polypod.cli.fault_flags import add_rates, add_recovery, rates_in, seated_of
from polypod.errors import InputError
from polypod.plan.spec import read_plan
from polypod.simulate.availability import TARGETS, draw_runs, play_runs, spares_for
from polypod.simulate.closed_form import closed_form
from polypod.simulate.demand import demands
from polypod.simulate.failure_rates import unrated


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", help="a plan file, as `polypod plan -o` wrote it")
    parser.add_argument("--years", type=float, default=10.0, metavar="N", help="of each run (default: 10)")  # fmt: skip
    parser.add_argument("--runs", default="20", metavar="N", help="each with failures of its own; the interval is over them (default: 20)")  # fmt: skip
    parser.add_argument("--need", metavar="POOL=N", action="append", default=[], help="replicas that the traffic needs (default: by the plan's predictions)")  # fmt: skip
    add_rates(parser)
    add_recovery(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the failures (default: 0)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    if not 0 < args.years < math.inf:
        msg = f"--years {args.years:g} is no length of a run; give one above 0, as 10"
        raise InputError(msg)
    if args.seed < 0:
        msg = f"--seed {args.seed} is negative; give 0 or more"
        raise InputError(msg)
    plan = read_plan(Path(args.plan))
    rates = rates_in(args)
    seated = seated_of(args, plan)
    asked = demands(plan, _need(args.need))
    runs = draw_runs(seated, asked, rates, years=args.years, runs=count("--runs", args.runs), seed=args.seed)  # fmt: skip
    answer = Answer(
        runs=runs,
        rates=rates,
        unrated=tuple(unrated(rates)),
        found=tuple(play_runs(runs)),
        closed=tuple(closed_form(seated, rates, demand) for demand in asked),
        spares=tuple(tuple(one) for one in spares_for(runs, TARGETS)),
        bare=tuple(play_runs(runs, 0)),
        bare_closed=tuple(closed_form(replace(seated, recovery=replace(seated.recovery, spares=0, spare_fraction=0.0)), rates, demand) for demand in asked),
    )  # fmt: skip
    print(json.dumps(answer_json(answer), indent=2) if args.json else answer_text(answer))
    return 0


def _need(texts: list[str]) -> dict[str, int]:
    found = {}
    for text in texts:
        name, sign, number = text.partition("=")
        if not sign:
            msg = f"--need {text!r} is no pool and number; write --need POOL=N"
            raise InputError(msg)
        found[name.strip()] = count(f"--need {name}", number)
    return found
