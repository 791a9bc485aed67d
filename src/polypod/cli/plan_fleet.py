"""polypod plan over a fleet: several models, several islands, and what is wanted of all of them together."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, get_args

from polypod import units
from polypod.catalog.load import load_accelerator, load_pod, pods_accelerator
from polypod.cli.asking import model_of, prices_of, tokens
from polypod.cli.emit import write_answer
from polypod.engine.native.build import prepare
from polypod.engine.settings import read_plan_args
from polypod.errors import InfeasibleError, InputError
from polypod.plan.compose_fleet import fleet_answer
from polypod.plan.fleet import Short, choose
from polypod.plan.fleet_cost import ShapeCosts
from polypod.plan.fleet_file import Fleet
from polypod.plan.fleet_offers import MAXIMISED, Aim, Objective, Spare
from polypod.plan.frontier import frontier
from polypod.plan.money import Site
from polypod.plan.place import Island, islands
from polypod.plan.search import Question
from polypod.plan.spec import Slo, Source
from polypod.report.fleet import fleet_json, fleet_text, short_text
from polypod.report.frontier import frontier_json, frontier_text

OBJECTIVES: Final[tuple[Objective, ...]] = get_args(Objective)
_KEYS: Final = ("rate", "input", "output", "ttft", "tpot")


def add_fleet(parser: argparse.ArgumentParser) -> None:
    """What only a plan over a fleet asks."""
    parser.add_argument("--objective", choices=OBJECTIVES, help="throughput (default without a rate; with one, of all demands alike), goodput (most requests inside the limits, no more than asked), fewest cards (default with a rate), least cost or energy")  # fmt: skip
    parser.add_argument("--fewest", metavar="VENDOR", help="fewest cards of this vendor; the others count a thousandth")  # fmt: skip
    parser.add_argument("--max-share", action="append", default=[], metavar="VENDOR=SHARE", help="of all cards used, as nvidia=20%%")  # fmt: skip
    parser.add_argument("--exclude", action="append", default=[], metavar="NAME", help="a chip or a vendor that is not to be used")  # fmt: skip
    parser.add_argument("--spare", metavar="WHAT", help="kept free: a share of every island as 2%%, or what may fail: card, node, rack")  # fmt: skip
    parser.add_argument("--fabric", metavar="BANDWIDTH", help="of one rank between islands, as 400Gb/s (default: the narrower of what is on record)")  # fmt: skip
    parser.add_argument("--apart", action="store_true", help="prefill and decode workers too (several models or islands always may)")  # fmt: skip
    parser.add_argument("--together", action="store_true", help="co-located replicas alone")
    parser.add_argument("--afd", action="store_true", help="also decode with attention and experts on cards of their own, of one kind or two")  # fmt: skip
    parser.add_argument("--unproven", action="store_true", help="hand caches and activations over where no source says whether it works")  # fmt: skip
    parser.add_argument("--frontier", action="store_true", help="what nothing beats in TTFT, TPOT, tokens/s per accelerator, money and energy at once, limits aside")  # fmt: skip
    parser.add_argument(
        "--stages",
        action="store_true",
        help="pipelines of unequal stages over unlike chips that a network joins (--fabric)",
    )
    parser.add_argument("--stage-tp", metavar="RANKS", help="a stage's ranks at most, cut by tp within their own fabric (default: 1)")  # fmt: skip
    parser.add_argument("--time-limit", metavar="TIME", default="30s", help="of the solver, for each time it is asked (30s)")  # fmt: skip


def is_fleet(args: argparse.Namespace, fleet: dict[str, Source]) -> bool:
    """Whether what is asked takes the whole fleet at once."""
    named = (args.objective, args.fewest, args.max_share, args.exclude, args.spare, args.fabric, args.apart, args.together, args.unproven, args.afd)  # fmt: skip
    return len(args.models) > 1 or len(fleet) > 1 or any(named) or _asked(args.models[0])[1] != {}


def run_fleet(args: argparse.Namespace, fleet: Fleet) -> int:
    if not prepare():
        print("no C compiler is here, so that emulation takes some hundred times as long; install cc, or name one in CC", file=sys.stderr)  # fmt: skip
    demands = [demand_of(args, text) for text in args.models]
    questions, slos = [one.question for one in demands], [one.slo for one in demands]
    kept = not_excluded(args.exclude, fleet.sources)
    places = islands(kept, args.backend)
    at = prices_of(args)
    aim = replace(_aim(args, questions, places, at), widths_bytes_per_s=fleet.widths_bytes_per_s)
    one_fabric(args, fleet)
    found = choose(questions, places, aim)
    if isinstance(found, Short):
        raise InfeasibleError(short_text(found, tuple(questions)))
    answer = fleet_answer(questions, places, found, kept, slos, aim.objective, at)
    write_answer(answer.plan, args)
    print(json.dumps(fleet_json(answer), indent=2) if args.json else fleet_text(answer))
    return 0


def one_fabric(args: argparse.Namespace, fleet: Fleet) -> None:
    if args.fabric is not None and fleet.widths_bytes_per_s is not None:
        msg = f"--fabric {args.fabric} and the fabrics of {args.on} contradict each other; leave one out"
        raise InputError(msg)


def aim_of(args: argparse.Namespace) -> Aim:
    """What `replace` asks of every choice."""
    fabric = None if args.fabric is None else units.parse(args.fabric, "bytes_per_s")
    return Aim(fabric_bytes_per_s=fabric, apart=not args.together)


def run_frontier(args: argparse.Namespace, fleet: dict[str, Source]) -> int:
    if len(args.models) > 1:
        msg = f"--frontier is of one model, {len(args.models)} are named"
        raise InputError(msg)
    if args.file is not None:
        msg = f"--frontier is many deployments and no plan; leave out -o {args.file}, or --frontier"
        raise InputError(msg)
    if args.afd:
        msg = "--frontier is of co-located layouts, which --afd is not; give one"
        raise InputError(msg)
    for name in (
        "objective",
        "fewest",
        "max_share",
        "spare",
        "fabric",
        "apart",
        "together",
        "unproven",
        "emit",
    ):
        if getattr(args, name):
            msg = f"--frontier is of one card's share of every layout, which --{name.replace('_', '-')} does not move; give one of them"
            raise InputError(msg)
    question = demand_of(args, args.models[0]).question
    points = frontier(
        question, islands(not_excluded(args.exclude, fleet), args.backend), prices_of(args)
    )
    if not points:
        msg = f"{question.model.name} does not run on this fleet: no layout holds its weights and one request"
        raise InfeasibleError(msg)
    print(json.dumps(frontier_json(points), indent=2) if args.json else frontier_text(points))
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """A model, what is asked of it, and what its requests are promised."""

    question: Question
    slo: Slo


def _asked(text: str) -> tuple[str, dict[str, str]]:
    """Read NAME:key=value,key=value; a path with a colon and no '=' is a name."""
    name, colon, rest = text.rpartition(":")
    if not colon or "=" not in rest:
        return text, {}
    pairs = {}
    for part in rest.split(","):
        key, equals, value = part.partition("=")
        if key.strip() not in _KEYS or not equals:
            msg = f"{text!r}: {part!r} is nothing that a model is asked for; known are {', '.join(f'{key}=' for key in _KEYS)}"
            raise InputError(msg)
        pairs[key.strip()] = value.strip()
    return name, pairs


def demand_of(args: argparse.Namespace, text: str) -> Demand:
    """One model with what is asked of it: its own words over those for all."""
    name, own = _asked(text)
    said = {key: own.get(key, getattr(args, key)) for key in _KEYS}
    slo = Slo(ttft=said["ttft"], tpot=said["tpot"], percentile=args.percentile)
    question = Question(
        model=model_of(name),
        input_tokens=tokens("input", said["input"]),
        output_tokens=tokens("output", said["output"]),
        ttft_s=slo.ttft_s,
        tpot_s=slo.tpot_s,
        percentile=slo.percentile,
        rate_per_s=None if said["rate"] is None else units.parse(said["rate"], "per_s"),
        backend=args.backend,
        engine_args=read_plan_args(args.engine_args),
    )
    return Demand(question=question, slo=slo)


def of_accelerators(fleet: dict[str, Source]) -> dict[str, Source]:
    """The fleet. Raises `InputError` for a part that is a host's cores, whose engines are timed by measurement and not by a chip's figures."""
    for name, source in fleet.items():
        if source.host is not None:
            others = [one for one in fleet if one != name]
            way = f"leave it out of the fleet and plan {', '.join(others)} here" if others else "name pods or accelerators"  # fmt: skip
            msg = f"{name!r} is cores of host {source.host!r}, which polypod up plans and serves on that machine; {way}"
            raise InputError(msg)
    return fleet


def chip_of(source: Source) -> str:
    """The accelerator of a part of a fleet that is no host."""
    if source.pod is not None:
        return pods_accelerator(load_pod(source.pod)).id
    assert source.accelerator is not None, "hosts are refused before"
    return source.accelerator


def not_excluded(excluded: Sequence[str], fleet: dict[str, Source]) -> dict[str, Source]:
    """The fleet without the chips and vendors that are not to be used."""
    chips = {name: load_accelerator(chip_of(source)) for name, source in fleet.items()}
    gone: set[str] = set()
    for what in excluded:
        folded = what.casefold()
        hit = {name for name, chip in chips.items() if folded in {chip.id.casefold(), chip.vendor.casefold(), *(one.casefold() for one in chip.names)}}  # fmt: skip
        if not hit:
            have = ", ".join(dict.fromkeys(f"{chip.id} ({chip.vendor})" for chip in chips.values()))
            msg = f"--exclude {what}: nothing of the fleet is of it; there are {have}"
            raise InputError(msg)
        gone |= hit
    left = {name: source for name, source in fleet.items() if name not in gone}
    if not left:
        msg = f"--exclude {', '.join(excluded)} and --on leave nothing: every part of the fleet is excluded"
        raise InputError(msg)
    return left


def _aim(args: argparse.Namespace, questions: Sequence[Question], places: Sequence[Island], at: Site) -> Aim:  # fmt: skip
    if args.apart and args.together:
        msg = "--apart and --together contradict each other; give one"
        raise InputError(msg)
    if args.afd and args.together:
        msg = "--afd and --together contradict each other: experts are put apart in decode workers; give one"
        raise InputError(msg)
    rated = [question.rate_per_s is not None for question in questions]
    if any(rated) and not all(rated):
        m = rated.index(False)
        msg = f"{questions[m].model.name} has no rate and others have; say rate= of every model, or of none"
        raise InputError(msg)
    if len(questions) > 1 and not all(rated):
        msg = f"{len(questions)} models share the fleet; say how much of each, as {questions[0].model.name}:rate=20/s"
        raise InputError(msg)
    objective: Objective = args.objective or ("cards" if all(rated) else "throughput")
    if objective not in MAXIMISED and not all(rated):
        msg = f"--objective {objective} needs a demand to meet; say --rate"
        raise InputError(msg)
    if args.fewest is not None and objective != "cards":
        other = f"--objective {objective}" if args.objective else "a plan without a rate"
        msg = f"--fewest {args.fewest} and {other} contradict each other: it counts cards that meet a demand; {'leave one out' if args.objective else 'say --rate'}"
        raise InputError(msg)
    aim = Aim(
        objective=objective,
        most_shares=_shares(args.max_share, places),
        fabric_bytes_per_s=None if args.fabric is None else units.parse(args.fabric, "bytes_per_s"),
        unproven=args.unproven,
        apart=not args.together,
        experts_apart=args.afd,
        time_limit_s=units.parse(args.time_limit, "s"),
    )
    return _with_costs(_with_spare(aim, args.spare), args.fewest, places, at)


def _shares(texts: Sequence[str], places: Sequence[Island]) -> dict[str, float]:
    vendors = {load_accelerator(place.rank.chip).vendor.casefold() for place in places}
    found: dict[str, float] = {}
    for text in texts:
        match = re.fullmatch(r"\s*(.+?)\s*=\s*([\d.]+)\s*(%?)\s*", text)
        share = float(match[2]) / (100 if match[3] else 1) if match else -1.0
        if match is None or not 0 <= share <= 1:
            msg = f"--max-share {text!r} is no share of a vendor; write nvidia=20% or nvidia=0.2"
            raise InputError(msg)
        vendor = match[1].casefold()
        if vendor not in vendors:
            msg = f"--max-share {text}: nothing of the fleet is {match[1]}'s; there are {', '.join(sorted(vendors))}"
            raise InputError(msg)
        found[vendor] = share
    if set(found) == vendors and sum(found.values()) < 1 - 1e-9:
        said = " and ".join(f"--max-share {vendor}={share:.0%}" for vendor, share in found.items())
        msg = f"{said} contradict each other: all cards are of these vendors, and {1 - sum(found.values()):.0%} would be nobody's"
        raise InputError(msg)
    return found


def _with_spare(aim: Aim, text: str | None) -> Aim:
    if text is None:
        return aim
    for what in get_args(Spare):
        if text == what:
            return replace(aim, spare=what)
    match = re.fullmatch(r"([\d.]+)\s*%", text)
    if match is None or not 0 <= float(match[1]) < 100:
        msg = f"--spare {text!r} is nothing to keep free; write a share as 2%, or what may fail: card, node, rack"
        raise InputError(msg)
    return replace(aim, spare_fraction=float(match[1]) / 100)


def _with_costs(aim: Aim, fewest: str | None, places: Sequence[Island], at: Site) -> Aim:
    """What a card counts in the objective."""
    if fewest is not None:
        vendor = fewest.casefold()
        chips = {
            place.rank.chip: load_accelerator(place.rank.chip).vendor.casefold() for place in places
        }
        if vendor not in chips.values():
            msg = f"--fewest {fewest}: nothing of the fleet is theirs; there are {', '.join(sorted(set(chips.values())))}"
            raise InputError(msg)
        return replace(
            aim, card_costs={chip: 1.0 if its == vendor else 1e-3 for chip, its in chips.items()}
        )
    if aim.objective in ("cost", "energy"):
        return replace(aim, shape_cost=ShapeCosts(at=at, what=aim.objective))
    return aim
