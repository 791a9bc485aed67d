"""polypod replay: ask a record's questions again; play its requests on another plan; or see how well the simulator foretells a live run."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from polypod.cli.asking import note
from polypod.cli.run_folder import RunFolder
from polypod.cli.simulate import add_scenario, play_run, scenario_for
from polypod.cli.simulated import MOST_ROWS
from polypod.cli.traffic import tell_recorded
from polypod.errors import InputError
from polypod.plan.spec import read_plan
from polypod.report.diff import diff, diff_json, diff_text
from polypod.report.fold import read_outcomes
from polypod.report.outcomes import Outcomes
from polypod.report.reading import Reading, record_file
from polypod.report.recorded import Recorded, check_whole, read_recorded, renamed
from polypod.report.runs import run_json, run_text
from polypod.report.summary import summary_of
from polypod.simulate.replay import replay
from polypod.validate.halves import judge, judged_json, judged_text
from polypod.workload.traffic import Traffic
from polypod.workload.traffic_scale import Replay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "record", help="a record.jsonl, of a live or a simulated run, or its folder"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    again = parser.add_argument_group("on another plan", "docs/how-to/replay.md says what is kept of the run")  # fmt: skip
    again.add_argument("--plan", metavar="FILE", help="play the record's requests on this plan, and show both runs side by side")  # fmt: skip
    again.add_argument("--model", metavar="OLD=NEW", action="append", default=[], help="the plan's name for a model of the record; repeat for several")  # fmt: skip
    again.add_argument("--seed", type=int, default=0, metavar="N", help="of ties, and of the lengths of answers that did not end (default: 0)")  # fmt: skip
    again.add_argument("--all", action="store_true", help="also what is not told apart of models and pools")  # fmt: skip
    again.add_argument("--interval", metavar="TIME", help="of the series over time, as 10s")
    again.add_argument("--driver", choices=("compiled", "plain"), help="as of polypod simulate")
    again.add_argument("-o", dest="folder", metavar="DIR", help="write the new run's record and summary here")  # fmt: skip
    add_scenario(parser)
    foretold = parser.add_argument_group("the simulator beside the run itself")
    foretold.add_argument("--calibrate", action="store_true", help="fit step times on the run's first half, play its requests again, and judge the second half's TTFT and TPOT")  # fmt: skip
    foretold.add_argument("--beside", metavar="RECORD", help="a second live run with the same arrivals: where it is further off than 15 %%, that is the band")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.plan and not args.calibrate:
        _refuse(args, ("beside",), "without --calibrate")
        return _on_plan(args)
    if args.plan:
        msg = "--calibrate judges the run's own replicas, --plan plays on others; say one of them"
        raise InputError(msg)
    _refuse(args, _ON_PLAN, "without --plan FILE")
    if args.calibrate:
        return _judged(args)
    _refuse(args, ("beside",), "without --calibrate")
    return _asked_again(args)


_ON_PLAN: Final = (
    "model",
    "all",
    "interval",
    "driver",
    "folder",
    "faults",
    "draw_faults",
    "outside",
    "cooling",
    "power_cap",
    "prices",
    "network",
)


def _refuse(args: argparse.Namespace, flags: Sequence[str], beside: str) -> None:
    """Raise for one of these flags, which mean nothing here."""
    said = [name for name in flags if getattr(args, name)]
    if said:
        flag = "-o" if said[0] == "folder" else f"--{said[0].replace('_', '-')}"
        msg = f"{flag} means nothing {beside}; leave it out"
        raise InputError(msg)


# ---- the same questions


def _asked_again(args: argparse.Namespace) -> int:
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


# ---- the second half from the first


def _judged(args: argparse.Namespace) -> int:
    found = judge(Path(args.record), None if args.beside is None else Path(args.beside))
    print(json.dumps(judged_json(found), indent=2) if args.json else judged_text(found))
    return 0 if all(row.holds for row in found.rows) else 1


# ---- the same requests on another plan


def _on_plan(args: argparse.Namespace) -> int:
    plan, path = read_plan(Path(args.plan)), Path(args.record)
    recorded = read_recorded(path, seed=args.seed)
    share = recorded.header.sample
    check_whole(recorded, f"play polypod simulate {args.plan} --trace {args.record} --scale {1 / (share or 1):g}x")  # fmt: skip
    models = [service.model for service in plan.services]
    recorded = renamed(recorded, models, _names(args.model), "; --model OLD=NEW says which it is")
    if len(recorded.trace) > MOST_ROWS:
        msg = f"{args.record} has {len(recorded.trace):,} requests, and side by side go {MOST_ROWS:,}; polypod simulate {args.plan} --trace {args.record} plays all of them alone"
        raise InputError(msg)
    tell_recorded(recorded)
    traffic = Traffic(source=Replay(trace=recorded.trace, seed=args.seed))
    scenario, _ = scenario_for(args, plan, traffic)
    kept = 0.0 if args.folder is None else 1.0
    with RunFolder(args.folder) as record:
        played = play_run(args, scenario, traffic, kept, record)
    summary = played.summary
    if not played.is_whole:
        note(f"ended by Ctrl-C; {record.left(summary)}")
    before = _paired(read_outcomes(path), scenario.trace_sha256)
    found = diff(before, played.outcomes, seed=args.seed)
    shown = {"a": run_json(summary_of(before)), "b": run_json(summary), "diff": diff_json(found), "requests": _requests_json(recorded)}  # fmt: skip
    record.write_summary(shown["b"])
    if args.json:
        print(json.dumps(shown, indent=2))
    else:
        print(f"A: {args.record}, as it ran\nB: its requests on {args.plan}\n")
        print(diff_text(found, everything=args.all))
    return 0 if played.is_whole else 130


def _names(said: Sequence[str]) -> dict[str, str]:
    names = {}
    for text in said:
        old, equals, new = text.partition("=")
        if not (old and equals and new):
            msg = f"--model {text!r} is not OLD=NEW; give the record's name, =, and the plan's"
            raise InputError(msg)
        names[old] = new
    return names


def _paired(outcomes: Outcomes, trace_sha256: str | None) -> Outcomes:
    """The recorded run as one of the same requests, in whose numbers another run may be told apart from it."""
    assert outcomes.header is not None, "a record begins with its header"
    numbers = np.arange(1, len(outcomes) + 1)
    return replace(
        outcomes,
        header=msgspec.structs.replace(outcomes.header, trace_sha256=trace_sha256),
        requests=replace(outcomes.requests, number=numbers),
    )


def _requests_json(recorded: Recorded) -> dict[str, int]:
    return {
        "requests": len(recorded.trace),
        "drawn_lengths": int(np.count_nonzero(recorded.is_drawn)),
        "pinned": int(np.count_nonzero(recorded.is_pinned)),
    }
