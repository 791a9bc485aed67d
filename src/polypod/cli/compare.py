"""polypod compare: the best deployment of a model on each of several pods, side by side."""

import argparse
import json

import msgspec

from polypod.catalog.load import listing
from polypod.cli.asking import (
    add_engine,
    add_lengths,
    add_limits,
    add_prices,
    count,
    model_of,
    percentile,
    prices_of,
    tokens,
)
from polypod.engine.native.build import prepare
from polypod.engine.settings import read_plan_args
from polypod.errors import InputError
from polypod.plan.compare import BYS, TRIED, compare
from polypod.plan.place import parse_fleet
from polypod.plan.search import Question
from polypod.plan.spec import Slo, Source
from polypod.report.compare import compare_csv, compare_json, compare_markdown, compare_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model of the catalog, or a path to a config.json")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--on", action="append", metavar="POD", help="a pod, or chip:count; once for each"
    )
    which.add_argument("--all", action="store_true", help="every pod of the catalog")
    parser.add_argument(
        "--count", metavar="N", help="of so many accelerators of each pod (default: all it has)"
    )
    add_limits(parser)
    add_lengths(parser)
    parser.add_argument(
        "--by",
        choices=BYS,
        default="accelerator",
        help="the order: tokens/s per accelerator, per kilowatt with cooling, per dollar an hour, of the pod, or of one stream (default: accelerator)",
    )
    parser.add_argument(
        "--tries",
        metavar="N",
        help=f"layouts of each pod that are emulated (default: {TRIED}, as polypod plan; with --all 1)",
    )
    add_engine(parser)
    add_prices(parser)
    parser.add_argument("--why", action="store_true", help="a block for each pod: layout, ends, reasons, sources")  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--csv", action="store_true", help="print CSV with SI numbers")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table")


def _places(args: argparse.Namespace) -> dict[str, Source]:
    """Each place by the name it was given with."""
    names = args.on or [one.id for one in listing() if one.kind == "pod"]
    number = None if args.count is None else count("--count", args.count)
    places = {}
    for name in names:
        fleet = list(parse_fleet(name).values())
        if len(fleet) > 1:
            msg = f"--on {name!r} is several; compare plans each by itself: give --on once for each"
            raise InputError(msg)
        places[name] = _sized(fleet[0], number)
    return places


def _sized(source: Source, number: int | None) -> Source:
    if number is None:
        return source
    size = {"accelerators": number} if source.pod is not None else {"count": number}
    return msgspec.structs.replace(source, **size)


def run(args: argparse.Namespace) -> int:
    prepare()
    slo = Slo(ttft=args.ttft, tpot=args.tpot, percentile=percentile(args.percentile))
    question = Question(
        model=model_of(args.model),
        input_tokens=tokens("--input", args.input),
        output_tokens=tokens("--output", args.output),
        ttft_s=slo.ttft_s,
        tpot_s=slo.tpot_s,
        percentile=slo.percentile,
        backend=args.backend,
        engine_args=read_plan_args(args.engine_args),
    )
    tries = count("--tries", args.tries) if args.tries is not None else 1 if args.all else TRIED
    if slo.ttft_s is None and slo.tpot_s is None:
        tries = TRIED  # without limits the first one emulated is the best
    found = compare(question, _places(args), prices_of(args), args.by, tries)
    if args.json:
        print(json.dumps(compare_json(found), indent=2))
    elif args.csv:
        print(compare_csv(found))
    else:
        print(compare_markdown(found) if args.markdown else compare_text(found, why=args.why))
    return 0
