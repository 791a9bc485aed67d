"""polypod plan --stages: pipelines of unequal stages over unlike chips."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Final

from polypod import units
from polypod.cli.asking import count
from polypod.cli.plan_fleet import demand_of, not_excluded, one_fabric
from polypod.errors import InputError
from polypod.plan.compose_stages import staged_plan
from polypod.plan.fleet_file import Fleet
from polypod.plan.place import Island, joined_by_network
from polypod.plan.spec import write_plan
from polypod.plan.stages import plan_stages
from polypod.plan.workers import fabric_bytes_per_s, workers_of
from polypod.report.stages import stages_json, stages_text

_UNASKED: Final = {
    "objective": "the most output tokens/s is all that is looked for",
    "rate": "a pipeline carries as much as it can",
    "fewest": "cards are not weighed",
    "max_share": "cards are not weighed",
    "spare": "nothing is kept free",
    "afd": "every stage holds whole layers",
    "prices": "money is not told of stages",
    "apart": "every stage computes prompts and answers",
    "together": "every stage computes prompts and answers",
    "unproven": "no cache is handed over",
    "frontier": "one answer is looked for",
    "emit": "no engine on record is launched over unlike chips; -o writes the stages down",
    "engine_args": "every step takes its share of the prompts",
}
"""What else `plan` asks and has no meaning here, and why."""


def run_stages(args: argparse.Namespace, fleet: Fleet) -> int:
    """Raises `InputError` for what does not go with stages."""
    _refuse_what_has_no_meaning(args)
    one_fabric(args, fleet)
    demand = demand_of(args, args.models[0])
    question = demand.question
    if question.rate_per_s is not None:
        msg = f"{args.models[0]}: rate= does not go with --stages: {_UNASKED['rate']}"
        raise InputError(msg)
    kept = not_excluded(args.exclude, fleet.sources)
    places = [joined_by_network(name, source, args.backend) for name, source in kept.items()]
    workers = workers_of(question, places, count("--stage-tp", args.stage_tp or "1"))
    found = plan_stages(question, workers, _fabric_bytes_per_s(args.fabric, places, fleet.widths_bytes_per_s), units.parse(args.time_limit, "s"))  # fmt: skip
    if args.file:
        write_plan(staged_plan(question, kept, found, demand.slo), Path(args.file))
        print(f"wrote {args.file}", file=sys.stderr)
    print(json.dumps(stages_json(question, places, found), indent=2) if args.json else stages_text(question, places, found))  # fmt: skip
    return 0


def _refuse_what_has_no_meaning(args: argparse.Namespace) -> None:
    for name, why in _UNASKED.items():
        if getattr(args, name):
            msg = f"--{name.replace('_', '-')} does not go with --stages: {why}"
            raise InputError(msg)
    if len(args.models) > 1:
        msg = f"--stages is of one model, {len(args.models)} are named"
        raise InputError(msg)


def _fabric_bytes_per_s(
    text: str | None, places: Sequence[Island], widths: Mapping[frozenset[str], float] | None
) -> float:
    """Any two islands may hold stages side by side, so the narrowest way between two counts."""
    pairs = [frozenset(place.name for place in pair) for pair in combinations(places, 2)]
    if widths is not None and pairs:
        for pair in pairs:
            if not widths.get(pair, 0.0) > 0:
                msg = f"no fabric joins {' and '.join(sorted(pair))}, whose chips may hold stages side by side; join them, or --exclude one"
                raise InputError(msg)
        return min(widths[pair] for pair in pairs)
    if text is None:
        return fabric_bytes_per_s(places)
    said = units.parse(text, "bytes_per_s")
    if not said > 0:
        msg = f"--fabric {text} joins nothing; give a bandwidth above 0, as 10Gb/s"
        raise InputError(msg)
    return said
