"""Flags about what breaks: of `polypod simulate` and `polypod availability`."""

import argparse
from functools import cache
from pathlib import Path

from polypod import units
from polypod.cli.asking import count
from polypod.errors import InputError, QuantityError
from polypod.plan.spec import Plan
from polypod.simulate.exchange_share import pool_share
from polypod.simulate.failure_rates import KINDS, Of, Rate, rates_of
from polypod.simulate.fault_files import read_faults
from polypod.simulate.faults import Broken, Resolved, ShareOf, of_timeline, resolve
from polypod.simulate.scenario import Fault
from polypod.simulate.seats import Recovery, Seated, read_spares, seat
from polypod.simulate.spots import Domains, Spot
from polypod.simulate.timeline import draw
from polypod.simulate.way_plan import PlacedWays

_KINDS = ", ".join(KINDS)


def add_fault_arguments(parser: argparse.ArgumentParser) -> None:
    """What breaks in a simulation: a file, a draw, or both."""
    group = parser.add_argument_group("what breaks")
    group.add_argument("--faults", metavar="FILE", help="YAML or JSON: `- {at: 10min, what: crash, where: rack a/3, repair: 2h}`; docs/how-to/faults-and-availability.md lists what can be said")  # fmt: skip
    group.add_argument("--draw-faults", action="store_true", help="draw failures by the rates on record and those of --mtbf, from --seed")  # fmt: skip
    add_rates(group)
    add_recovery(group)


def add_rates(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """How often things fail and how long a repair takes."""
    group.add_argument("--mtbf", metavar="KIND=TIME", action="append", default=[], help=f"mean time between failures of one component, as card=50000h, or card=never; kinds: {_KINDS} (default: what is on record)")  # fmt: skip
    group.add_argument("--mttr", metavar="KIND=TIME", action="append", default=[], help="mean time to repair, as node=4h")  # fmt: skip
    group.add_argument("--shape", metavar="KIND=N", action="append", default=[], help="Weibull shape of its lives: 1 never ages, below it fails early, above it wears out (default: 1)")  # fmt: skip
    group.add_argument("--factor", metavar="KIND=N", action="append", default=[], help="of what is slow, times as long, as slow-card=1.5")  # fmt: skip
    group.add_argument("--burst", metavar="KIND=TIME/TIME", action="append", default=[], help="of a link that flaps: slow for so long, once in so long, as flap=2s/30s")  # fmt: skip


def add_recovery(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """How what broke comes back."""
    known = Recovery()
    group.add_argument("--spares", metavar="CARDS", default="0", help="cards of each part of the fleet that stand by beside the plan's, a number or a share, as 16 or 2%% (default: 0)")  # fmt: skip
    group.add_argument("--crews", metavar="N", help="repairs at a time in each part of the fleet (default: as many as are needed)")  # fmt: skip
    group.add_argument("--failover", metavar="TIME", default=f"{known.failover_s:g}s", help="until a spare has the place of what broke (default: %(default)s, assumed)")  # fmt: skip
    group.add_argument("--detect", metavar="TIME", default=f"{known.detect_s / 60:g}min", help="until a hang is noticed (default: %(default)s)")  # fmt: skip
    group.add_argument("--restart", metavar="TIME", default=f"{known.restart_s:g}s", help="of an engine, before it loads its weights (default: %(default)s)")  # fmt: skip
    group.add_argument("--storage", metavar="BANDWIDTH", default=units.show(known.storage_bytes_per_s, "bytes_per_s").replace(" ", ""), help="into each card, weights are loaded at (default: %(default)s, assumed)")  # fmt: skip
    group.add_argument("--node-cards", metavar="N", help="cards of a node (default: the catalog's)")
    group.add_argument("--rack-cards", metavar="N", help="cards of a rack (default: the catalog's)")
    group.add_argument("--cooling-racks", metavar="N", default="1", help="racks on one cooling unit (default: 1)")  # fmt: skip
    group.add_argument("--power-racks", metavar="N", default="1", help="racks on one power feed (default: 1)")  # fmt: skip


def rates_in(args: argparse.Namespace) -> dict[str, Rate]:
    """The rates on record with those of the flags in their place. Raises `InputError`."""
    return rates_of(args.mtbf, args.mttr, args.shape, args.factor, args.burst)


def seated_of(args: argparse.Namespace, plan: Plan) -> Seated:
    """The plan's replicas on cards, and how they come back. Raises `InputError`."""
    spares, spare_fraction = read_spares(args.spares)
    recovery = Recovery(
        detect_s=_time("--detect", args.detect),
        failover_s=_time("--failover", args.failover),
        restart_s=_time("--restart", args.restart),
        storage_bytes_per_s=_parsed("--storage", args.storage, "bytes_per_s"),
        crews=0 if args.crews is None else count("--crews", args.crews),
        spares=spares,
        spare_fraction=spare_fraction,
    )
    domains = Domains(
        cooling_racks=count("--cooling-racks", args.cooling_racks),
        power_racks=count("--power-racks", args.power_racks),
    )
    node = None if args.node_cards is None else count("--node-cards", args.node_cards)
    rack = None if args.rack_cards is None else count("--rack-cards", args.rack_cards)
    return seat(plan, recovery, domains, (node, rack))


def faults_of(args: argparse.Namespace, plan: Plan, duration_s: float, ways: PlacedWays | None = None) -> Resolved:  # fmt: skip
    """What a simulation plays: the file's faults, and those drawn over `duration_s` from `args.seed`, over these ways.

    Raises `InputError` for rates without --draw-faults, `FileError` for what the file says that cannot be.
    """
    said = [flag for flag in ("mtbf", "mttr", "shape", "factor", "burst") if getattr(args, flag)]
    if said and not args.draw_faults:
        msg = f"--{said[0]} is of failures that are drawn; say --draw-faults as well"
        raise InputError(msg)
    if not args.faults and not args.draw_faults:
        return Resolved(faults=(), notes=())
    seated = seated_of(args, plan)
    broken: list[Broken] = []
    played: list[Fault] = []
    if args.faults:
        broken, played = read_faults(
            Path(args.faults),
            seated.placed,
            seated.domains,
            () if ways is None else ways.ways.names,
        )
    if args.draw_faults:
        drawn = draw(seated.placed, rates_in(args), duration_s, seed=args.seed, domains=seated.domains)  # fmt: skip
        broken += of_timeline(drawn, seated)
    found = resolve(seated, broken, share_by_plan(plan, seated), ways)
    faults = sorted([*played, *found.faults], key=lambda fault: fault.at_s)
    return Resolved(faults=tuple(faults), notes=found.notes)


def share_by_plan(plan: Plan, seated: Seated) -> ShareOf:
    """What of a step passes over a link, by the plan's own cost model; each answer is kept."""

    @cache
    def asked(part: int, pool: int, of: Of) -> float:
        return pool_share(plan, seated.placed.parts[part], pool, of)

    def share_of(part: int, pool: int, spot: Spot) -> float:
        assert spot.of is not None, "a replica is no link"
        return asked(part, pool, spot.of)

    return share_of


def _time(flag: str, text: str) -> float:
    return _parsed(flag, text, "s")


def _parsed(flag: str, text: str, unit: units.Unit) -> float:
    try:
        return units.parse(text, unit)
    except QuantityError as error:
        msg = f"{flag}: {error}"
        raise QuantityError(msg) from error
