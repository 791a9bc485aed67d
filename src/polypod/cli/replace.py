"""polypod replace: the chips that hold the same traffic when others go."""

import argparse
import json
import re

from polypod.catalog.dates import parse_date
from polypod.catalog.load import load_accelerator
from polypod.cli.asking import add_lengths, add_limits, add_prices, percentile, prices_of
from polypod.cli.plan_fleet import aim_of, chip_of, demand_of, of_accelerators
from polypod.engine.native.build import prepare
from polypod.errors import InfeasibleError, InputError
from polypod.plan.fleet_file import fleet_of
from polypod.plan.place import Island, island, islands, parse_fleet
from polypod.plan.replace import replaced
from polypod.plan.spec import Source
from polypod.report.replace import replaced_json, replaced_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", metavar="MODEL[,MODEL]", help="models that are served, each with what is asked of it, as qwen3-32b:rate=20/s")  # fmt: skip
    parser.add_argument("--from", dest="source", metavar="CHIP:N", help="what goes: a chip and how many, or a pod")  # fmt: skip
    parser.add_argument("--what-if", metavar="VENDOR=0", help="all of a vendor goes, out of the fleet of --on")  # fmt: skip
    parser.add_argument("--on", metavar="FLEET", help="today's whole fleet, for --what-if")
    parser.add_argument("--with", dest="chips", metavar="CHIP,CHIP", default="", help="what may come; each is tried alone, and all together")  # fmt: skip
    parser.add_argument("--keep", type=int, default=0, metavar="N", help="of the chips of --from, how many stay")  # fmt: skip
    parser.add_argument("--by", metavar="DATE", help="events until then count, as 2026-06 (default: all)")  # fmt: skip
    add_limits(parser)
    add_lengths(parser)
    parser.add_argument("--rate", metavar="RATE", help="requests that are served today (default: as many as today's fleet can)")  # fmt: skip
    parser.add_argument("--fabric", metavar="BANDWIDTH", help="of one rank between islands, as 400Gb/s")  # fmt: skip
    add_prices(parser)
    parser.add_argument("--together", action="store_true", help="co-located replicas alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(backend=None, engine_args="")


def run(args: argparse.Namespace) -> int:
    prepare()
    percentile(args.percentile)
    goes, stays = _fleet(args)
    if args.by is not None:
        parse_date(args.by)
    chips = [load_accelerator(name.strip()).id for name in args.chips.split(",") if name.strip()]
    leaving = {one.rank.chip for one in goes}
    if both := leaving & set(chips):
        msg = f"--with {', '.join(both)} is what goes; name chips that may come instead"
        raise InputError(msg)
    if not chips and not stays:
        msg = "nothing stays and nothing may come; say --with CHIP,CHIP, or --keep N"
        raise InputError(msg)
    demands = [demand_of(args, text) for text in _models(args.models)]
    answer = replaced([one.question for one in demands], (goes, stays), chips, aim_of(args), prices_of(args), args.by)  # fmt: skip
    print(json.dumps(replaced_json(answer), indent=2) if args.json else replaced_text(answer))  # fmt: skip
    if not any(option.holds for option in answer.options):
        msg = "none of these holds the traffic inside its limits"
        raise InfeasibleError(msg)
    return 0


def _models(text: str) -> list[str]:
    """Split at commas that begin another model: those after which no key=value follows."""
    return re.split(r",(?!\s*(?:rate|input|output|ttft|tpot)=)", text)


def _fleet(args: argparse.Namespace) -> tuple[list[Island], list[Island]]:
    if (args.source is None) == (args.what_if is None):
        msg = "say what goes: --from CHIP:N, or --what-if VENDOR=0 with --on FLEET"
        raise InputError(msg)
    if args.what_if is not None:
        return _vendor_gone(args)
    sources = parse_fleet(args.source)
    if len(sources) > 1:
        msg = f"--from {args.source} names {len(sources)} parts; say one, or --what-if for a vendor"
        raise InputError(msg)
    (source,) = sources.values()
    whole = island("today", source)
    if not 0 <= args.keep < whole.accelerators:
        msg = f"--keep {args.keep} of {whole.accelerators}: keep from 0 to {whole.accelerators - 1}, the others go"
        raise InputError(msg)
    if not args.keep:
        return [whole], []
    chip = chip_of(source)
    gone = island("goes", Source(accelerator=chip, count=whole.accelerators - args.keep))
    return [gone], [island("stays", Source(accelerator=chip, count=args.keep))]


def _vendor_gone(args: argparse.Namespace) -> tuple[list[Island], list[Island]]:
    match = re.fullmatch(r"\s*(.+?)\s*=\s*0\s*", args.what_if)
    if match is None or args.on is None:
        msg = f"--what-if {args.what_if!r}: write VENDOR=0, and today's fleet with --on"
        raise InputError(msg)
    places = islands(of_accelerators(fleet_of(args.on).sources))
    vendor = match[1].casefold()
    goes = [one for one in places if load_accelerator(one.rank.chip).vendor.casefold() == vendor]
    if not goes:
        have = ", ".join(sorted({load_accelerator(one.rank.chip).vendor for one in places}))
        msg = f"--what-if {args.what_if}: nothing of the fleet is of {match[1]}; there are {have}"
        raise InputError(msg)
    return goes, [one for one in places if one not in goes]
