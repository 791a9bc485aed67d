"""Flags about power: what pools draw, the weather, cooling, and caps."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from polypod.cli.asking import count
from polypod.plan.energy import ENDS
from polypod.plan.money import Site as Prices
from polypod.plan.money import pue_of, site
from polypod.plan.place import Island
from polypod.plan.spec import Plan
from polypod.plan.spec import Traffic as PlanTraffic
from polypod.policy.events import ReplicaUp
from polypod.simulate.caps import WORDS, Asked, Fed, caps_of, feeds_of, needs_places, parse_cap
from polypod.simulate.cooling import KINDS, Cooling, Hall, Halls, Site, cooling, kind_of
from polypod.simulate.outside import parse_outside
from polypod.simulate.placed import Placed, placement
from polypod.simulate.power import Drawn, check_known, drawn_by
from polypod.simulate.series import Cap, Draw, Watch
from polypod.workload.traffic import Traffic
from polypod.workload.traffic_arrivals import Diurnal
from polypod.workload.traffic_loop import ClosedLoop
from polypod.workload.traffic_make import Synthetic
from polypod.workload.traffic_scale import Replay


def add_power_arguments(parser: argparse.ArgumentParser) -> None:
    """What is drawn, and what may be."""
    group = parser.add_argument_group("power")
    group.add_argument("--outside", metavar="TEMP", help="outside temperature: 35C, a day as 25C..38C, or a CSV file of hour and temperature; PUE follows it (default: each site has the PUE of its year)")  # fmt: skip
    group.add_argument("--cooling", choices=KINDS, help="of the building (default: as the PUE on record suggests)")  # fmt: skip
    group.add_argument("--power-cap", metavar="WHAT=POWER", action="append", default=[], help=f"slow replicas that would draw more: {', '.join(WORDS)}, as rack=120kW; several are held at once")  # fmt: skip
    group.add_argument("--power", choices=ENDS, default="likely", help="which end of what chips and hosts draw (default: likely)")  # fmt: skip
    group.add_argument("--prices", metavar="FILE", help="TOML with pue and kg_co2_per_kwh of your site, as for `polypod plan`")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Powered:
    """What a simulation knows of power. `taken` is what no source says."""

    draws: dict[str, Draw]
    caps: tuple[Cap, ...]
    site: Site | None
    drawn: Drawn
    taken: tuple[str, ...]

    def watch(self, interval_s: float) -> Watch:
        return Watch(interval_s=interval_s, draws=self.draws, caps=self.caps, site=self.site)

    def as_json(self) -> dict[str, Any]:
        """Watts of one replica with their ends, by pool."""
        pools = {
            pool: {name: msgspec.to_builtins(getattr(its, name)) for name in ("idle_w", "prompt_w", "decode_w")} | {"evidence": its.evidence}
            for pool, its in self.drawn.pools.items()
        }  # fmt: skip
        return {"replica_power": pools, "no_power": dict(self.drawn.missing), "power_taken": list(self.taken)}  # fmt: skip


def power_of(
    args: argparse.Namespace,
    plan: Plan,
    replicas: Sequence[ReplicaUp],
    played: Traffic | ClosedLoop,
) -> Powered:
    """Draws, caps and site of a plan's replicas; where the plan says no traffic, steps are those of what is played. Raises `InputError` where a flag asks for what is not known, `FileError` for its file."""
    drawn = drawn_by(plan, _means(played))
    asked = [parse_cap(text) for text in args.power_cap]
    for flag, said in (("--outside", args.outside), ("--cooling", args.cooling), ("--power-cap", asked)):  # fmt: skip
        if said:
            check_known(drawn, flag)
    around, taken = _site(args, drawn, _start_s(played))
    placed = _placed(args, plan) if needs_places(asked) else None
    draws = drawn.draws(args.power)
    return Powered(
        draws=draws,
        caps=_caps(asked, placed, drawn, replicas, draws, around) if around and asked else (),
        site=around,
        drawn=drawn,
        taken=tuple(dict.fromkeys((*drawn.notes, *taken, *(_assumed(placed) if placed else ())))),
    )


def _means(played: Traffic | ClosedLoop) -> PlanTraffic | None:
    """Mean lengths of a trace; drawn traffic has those of the plan."""
    if isinstance(played, ClosedLoop) or not isinstance(played.source, Replay):
        return None
    trace = played.source.trace
    means = (max(round(float(tokens.mean())), 1) for tokens in (trace.input_tokens, trace.output_tokens))  # fmt: skip
    return PlanTraffic(input=next(means), output=next(means))


def _start_s(played: Traffic | ClosedLoop) -> float:
    """Of the day, where the traffic says when its second 0 is."""
    arrivals = played.source.arrivals if isinstance(played, Traffic) and isinstance(played.source, Synthetic) else None  # fmt: skip
    return arrivals.start_s if isinstance(arrivals, Diurnal) else 0.0


def _site(args: argparse.Namespace, drawn: Drawn, start_s: float) -> tuple[Site | None, list[str]]:
    if not drawn.pools:
        return None, []
    prices = site(None if args.prices is None else Path(args.prices))
    said = None if args.cooling is None else cooling(args.cooling)
    found = {name: _hall(place, prices, said) for name, place in drawn.islands.items()}
    halls: dict[str, Halls] = {
        pool: tuple((share, found[name][0]) for name, share in its.places.items())
        for pool, its in drawn.pools.items()
    }
    outside = (
        None if args.outside is None else replace(parse_outside(args.outside), start_s=start_s)
    )
    around = Site(outside=outside, halls=halls, kg_co2_per_kwh=prices.kg_co2_per_kwh.likely)
    return around, [note for _, note in found.values() if note]


def _hall(place: Island, prices: Prices, said: Cooling | None) -> tuple[Hall, str]:
    """The building an island is in, and what was taken for it."""
    pue, unknown = pue_of(place, prices)
    if said is not None and unknown:
        middle = (said.least_ratio + said.most_ratio) / 2
        note = f"{place.rank.chip}: no PUE on record; {middle:.3g} taken over a year, of {said.name} cooling"
        return Hall(cooling=said, year_pue_ratio=middle), note
    kind = said or kind_of(pue.likely)
    note = (
        f"{place.rank.chip}: no PUE on record; {pue.likely:.3g} taken over a year"
        if unknown
        else ""
    )
    return Hall(cooling=kind, year_pue_ratio=pue.likely), note


def _placed(args: argparse.Namespace, plan: Plan) -> Placed:
    node = None if args.node_cards is None else count("--node-cards", args.node_cards)
    rack = None if args.rack_cards is None else count("--rack-cards", args.rack_cards)
    return placement(plan, node_cards=node, rack_cards=rack)


def _assumed(placed: Placed) -> list[str]:
    return [note for part in placed.parts for note in part.assumed]


def _caps(
    asked: Sequence[Asked], placed: Placed | None, drawn: Drawn, replicas: Sequence[ReplicaUp], draws: dict[str, Draw], around: Site
) -> tuple[Cap, ...]:  # fmt: skip
    fed = Fed(
        pool_of={up.replica: up.pool for up in replicas},
        parts_of={up.pool: drawn.pools[up.pool].places if up.pool in drawn.pools else {} for up in replicas},
        placed=placed,
        most_pue_ratio=around.most_pue_ratio(),
    )  # fmt: skip
    feeds = [feed for one in asked for feed in feeds_of(one, fed)]
    return caps_of(feeds, fed.pool_of, draws)
