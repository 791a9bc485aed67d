"""polypod plan: the best deployment of a model on an island, or of several models on a fleet."""

import argparse
import json

from polypod import units
from polypod.cli.asking import (
    add_engine,
    add_lengths,
    add_limits,
    add_prices,
    model_of,
    percentile,
    prices_of,
    published_beside,
    tokens,
)
from polypod.cli.emit import add_writing, write_answer
from polypod.cli.found_fleet import fleet_named
from polypod.cli.plan_fleet import (
    add_fleet,
    is_fleet,
    of_accelerators,
    run_fleet,
    run_frontier,
)
from polypod.cli.plan_stages import run_stages
from polypod.engine.settings import read_plan_args
from polypod.errors import InputError
from polypod.plan.compose import plan_model
from polypod.plan.flags import TARGETS
from polypod.plan.search import Question
from polypod.plan.spec import Slo
from polypod.report.plans import plan_json, plan_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a model of the catalog, or a path to a config.json; several each with what is asked of it, as qwen3-32b:rate=20/s,ttft=2s")  # fmt: skip
    parser.add_argument(
        "--on",
        required=True,
        metavar="FLEET",
        help="a pod, chip:count terms joined by +, a fleet file (.yaml), or found: what is on this machine",
    )
    add_limits(parser)
    add_lengths(parser)
    parser.add_argument(
        "--rate",
        metavar="RATE",
        help="requests to carry, as '20 /s' (default: as many as the fleet can)",
    )
    add_engine(parser)
    add_prices(parser)
    add_fleet(parser)
    parser.add_argument(
        "-o",
        dest="file",
        metavar="FILE",
        help="write the plan file here; with --emit, the folder of plan.yaml and of the launch files",
    )
    parser.add_argument(
        "--emit",
        action="append",
        default=[],
        metavar="ENGINE",
        help=f"write launch files too, for {', '.join(TARGETS)}; PART=ENGINE for one part of the fleet; may be repeated",
    )
    add_writing(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    if args.emit and not args.file:
        msg = "--emit writes a folder; say which, with -o DIR"
        raise InputError(msg)
    if not args.emit and (args.force or args.overwrite or args.node_ranks is not None):
        msg = "--force, --overwrite and --node-ranks are of launch files; say --emit ENGINE too"
        raise InputError(msg)
    percentile(args.percentile)
    whole = fleet_named(args.on)
    fleet = of_accelerators(whole.sources)
    if args.stages:
        return run_stages(args, whole)
    if args.stage_tp is not None:
        msg = "--stage-tp cuts the stages of --stages, which is not asked for; say --stages as well"
        raise InputError(msg)
    if args.frontier:
        return run_frontier(args, fleet)
    if is_fleet(args, fleet):
        return run_fleet(args, whole)
    slo = Slo(ttft=args.ttft, tpot=args.tpot, percentile=args.percentile)
    question = Question(
        model=model_of(args.models[0]),
        input_tokens=tokens("--input", args.input),
        output_tokens=tokens("--output", args.output),
        ttft_s=slo.ttft_s,
        tpot_s=slo.tpot_s,
        percentile=slo.percentile,
        rate_per_s=None if args.rate is None else units.parse(args.rate, "per_s"),
        backend=args.backend,
        engine_args=read_plan_args(args.engine_args),
    )
    answer = plan_model(question, fleet, slo, prices_of(args))
    beside = published_beside(question.model, [choice.island for choice in answer.choices])
    write_answer(answer.plan, args)
    print(
        json.dumps(plan_json(answer, beside), indent=2) if args.json else plan_text(answer, beside)
    )
    return 0
