"""From a plan and a jobs file to a scenario of jobs beside services."""

import math
from pathlib import Path
from typing import Annotated

import msgspec

from polypod.catalog.load import load_accelerator, load_pod
from polypod.catalog.schema import Strict, Tier
from polypod.catalog.topology import loose_tiers
from polypod.errors import FileError, InputError
from polypod.plan.spec import Plan, Pool, Source, read_yaml
from polypod.policy.job_events import ServiceWants, Within
from polypod.policy.job_fleet import Fleet, IslandCards, JobRules, Tenant
from polypod.simulate.job_trace import Drawn, Jobs, draw_jobs, read_jobs
from polypod.simulate.jobs import CardFault, JobScenario

More = Annotated[float, msgspec.Meta(ge=0)]


class Swing(Strict, frozen=True, kw_only=True):
    """A service whose replicas follow the hour: a cosine between `low` at second 0 and `high` half a period later, looked at every `every_s`."""

    service: str
    cards: Annotated[int, msgspec.Meta(ge=1)]
    low: Annotated[int, msgspec.Meta(ge=0)]
    high: Annotated[int, msgspec.Meta(ge=0)]
    kinds: tuple[str, ...] = ()
    within: Within = "node"
    period_s: Annotated[float, msgspec.Meta(gt=0)] = 86400.0
    every_s: Annotated[float, msgspec.Meta(gt=0)] = 3600.0


class JobsFile(Strict, frozen=True, kw_only=True):
    """A jobs file: where jobs come from (`trace` or `draw`), who submits them, and what else happens.

    `rules` takes the keys of `JobRules` but tenants. `islands` says how cards are joined, in place of what the catalog has of the plan's fleet.
    `swings` replace the replicas that the plan has for the pools of that name.
    """

    trace: str | None = None  # a path, from the file's own folder
    draw: Drawn | None = None
    limit_ratio: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    tenants: tuple[Tenant, ...] = ()
    rules: JobRules = msgspec.field(default_factory=JobRules)
    islands: tuple[IslandCards, ...] = ()
    services: tuple[ServiceWants, ...] = ()
    swings: tuple[Swing, ...] = ()
    faults: tuple[CardFault, ...] = ()


def job_scenario(plan: Plan, path: Path) -> tuple[JobScenario, Jobs]:
    """The plan's fleet and replicas, and the jobs of a file: YAML as `JobsFile` has it, or a trace with nothing else.

    Raises `FileError` for a file that cannot be read, and `InputError` for a plan whose cards or pools cannot be played beside jobs.
    """
    found = _read(path)
    fleet = Fleet(islands=found.islands) if found.islands else fleet_of_plan(plan)
    jobs = _jobs(found, path, fleet)
    rules = msgspec.structs.replace(found.rules, tenants=found.tenants or found.rules.tenants)
    last_s = max((job.asked.at_s for job in jobs.jobs), default=0.0)
    told = {wants.service for wants in found.services} | {swing.service for swing in found.swings}
    services = [
        *(wants for wants in replicas_of_plan(plan) if wants.service not in told),
        *found.services,
        *(wants for swing in found.swings for wants in _swung(swing, last_s)),
    ]
    scenario = JobScenario(
        fleet=fleet, jobs=jobs.jobs, rules=rules, services=tuple(services), faults=found.faults
    )
    return scenario, jobs


def _read(path: Path) -> JobsFile:
    if path.suffix not in {".yaml", ".yml"}:
        return JobsFile(trace=path.name)
    try:
        return msgspec.convert(read_yaml(path), JobsFile)
    except (msgspec.ValidationError, InputError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(path, str(error)) from error


def _jobs(found: JobsFile, path: Path, fleet: Fleet) -> Jobs:
    if (found.trace is None) == (found.draw is None):
        raise FileError(path, "needs jobs from one place: give `trace` or `draw`")
    if found.draw is not None:
        return draw_jobs(found.draw, fleet.cards)
    return read_jobs(path.parent / str(found.trace), limit_ratio=found.limit_ratio)


def _swung(swing: Swing, last_s: float) -> list[ServiceWants]:
    """What a service wants time after time; replicas are rounded to the nearest, halves up."""
    wants = []
    for step in range(math.floor(last_s / swing.every_s) + 1):
        phase = 2 * math.pi * step * swing.every_s / swing.period_s
        middle, half = (swing.low + swing.high) / 2, (swing.high - swing.low) / 2
        wants.append(
            ServiceWants(
                at_s=swing.every_s * step,
                service=swing.service,
                replicas=math.floor(middle - half * math.cos(phase) + 0.5),
                cards=swing.cards,
                kinds=swing.kinds,
                within=swing.within,
            )
        )
    return wants


def fleet_of_plan(plan: Plan) -> Fleet:
    """The plan's accelerators as islands. A node is the nearest tier that joins several accelerators, a rack the next, an island a whole part.

    Raises `InputError` for a part that is cores of a host: jobs run on accelerators.
    """
    return Fleet(islands=tuple(_island(name, source) for name, source in plan.fleet.items()))


def _island(name: str, source: Source) -> IslandCards:
    if source.pod is not None:
        pod = load_pod(source.pod)
        kind, cards, tiers = pod.accelerator, source.accelerators or pod.accelerators, pod.tiers
    elif source.accelerator is not None:
        chip = load_accelerator(source.accelerator)
        kind, cards, tiers = chip.id, source.count or 1, loose_tiers(chip.id)
    else:
        msg = f"part {name!r} of the fleet is cores of a host, and jobs run on accelerators; play it without --jobs, or say `islands` in the jobs file"
        raise InputError(msg)
    if kind is None:
        msg = f"the maker of pod {source.pod!r} does not say which accelerator it has; say `islands` in the jobs file"
        raise InputError(msg)
    joined = _joined(tiers, load_accelerator(kind).ranks, cards)
    node = joined[0] if joined else 1
    rack = joined[1] if len(joined) > 1 else None
    return IslandCards(name=name, kind=kind, cards=cards, node_cards=node, rack_cards=rack)


def _joined(tiers: tuple[Tier, ...], ranks: int, cards: int) -> list[int]:
    """How many accelerators each tier joins, those left out that join one alone, or all that there are."""
    counts = [tier.ranks // ranks for tier in tiers if tier.ranks is not None]
    return [min(count, cards) for count in counts if count > 1 and count < max(cards, 2)] or [cards]


def replicas_of_plan(plan: Plan) -> list[ServiceWants]:
    """What the plan's pools hold from second 0 on, each pool a service of its own name."""
    found = []
    for s, service in enumerate(plan.services):
        for p, pool in enumerate(service.pools):
            found.append(_held(plan, pool, pool.name or f"pool{s}.{p}"))
    return found


def _held(plan: Plan, pool: Pool, name: str) -> ServiceWants:
    if pool.stages or pool.experts_on is not None:
        msg = f"pool {name!r} is over several parts of the fleet, which is not played beside jobs; say what it holds under `services` in the jobs file"
        raise InputError(msg)
    island = _island(pool.on, plan.fleet[pool.on])
    cards = math.ceil(pool.layout.world / load_accelerator(island.kind).ranks)
    within: Within = "node" if cards <= island.node_cards else "island"
    return ServiceWants(
        at_s=0.0,
        service=name,
        replicas=pool.replicas,
        cards=cards,
        kinds=(island.kind,),
        within=within,
    )
