"""A plan for what is not on this machine: which cards and cores are missing, and the nearest plan for what is here."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from polypod.errors import InputError, PolypodError
from polypod.plan.spec import Plan, Source, write_plan
from polypod.serve.devices.cpu import HostCpu, find_cpu
from polypod.serve.devices.find import find_devices
from polypod.serve.devices.fleet import Lack, lacking
from polypod.serve.devices.found import Inventory
from polypod.serve.devices.measure import HostMeasurement
from polypod.serve.engines import ENGINES
from polypod.serve.local import Wishes, plan_local

Replan = Callable[[Plan], Plan]


def check_cards(plan: Plan, file: str, look: Callable[[], Inventory] = find_devices) -> None:
    """Raises `InputError` with the cards of a plan that are not here."""
    if all(source.host is None for source in plan.fleet.values()):
        lacks = lacking(plan.fleet, look())
        if lacks:
            raise InputError(_cards_text(file, lacks))


def check_cores(plan: Plan, file: str, nearest: Path, replan: Replan) -> None:
    """Raises `InputError` with the cores that are not here. `replan` lays the service out on those that are, for the file `nearest`."""
    absent = _absent_cores(plan)
    if absent:
        msg = f"{_cores_text(file, absent)}; {_nearest(plan, nearest, replan)}"
        raise InputError(msg)


def host_plan(plan: Plan, cpu: HostCpu, measured: HostMeasurement) -> Plan:
    """The first service on this machine's cores, with those of its engines that are installed."""
    service = plan.services[0]
    engines = {str(pool.engine) for one in plan.services for pool in one.pools}
    here = sorted(name for name in engines if name in ENGINES and ENGINES[name].version())
    wishes = Wishes(
        weights=None if service.weights is None else Path(service.weights),
        name=service.model,
        engines=tuple(here),
        context_tokens=service.context or 4096,
    )
    made = plan_local(cpu, measured, wishes)
    kept = msgspec.structs.replace(made.services[0], slo=service.slo, traffic=service.traffic)
    return msgspec.structs.replace(made, services=(kept,), policy=plan.policy)


def _absent_cores(plan: Plan) -> dict[str, list[int]]:
    mine = os.sched_getaffinity(0)
    found = {name: sorted(set(source.cores or ()) - mine) for name, source in plan.fleet.items()}
    return {name: cores for name, cores in found.items() if cores}


def _cards_text(file: str, lacks: Sequence[Lack]) -> str:
    missing = ", ".join(
        f"{lack.wanted - lack.found} of {lack.wanted} {lack.accelerator} (part {', '.join(lack.parts)})"
        for lack in lacks
    )
    return (
        f"{file} is for cards that are not here: {missing}; `polypod devices --for {file}` makes the nearest plan for the cards that are, "
        f"`polypod up MODEL` serves on this machine's {len(find_cpu().cores)} cores, and `--ghost` plays the plan with made-up answers"
    )


def _cores_text(file: str, absent: dict[str, list[int]]) -> str:
    parts = ", ".join(f"cores {cores} of {name!r}" for name, cores in absent.items())
    return f"{file} is for {parts}, which are not this process's to use; it may use {sorted(os.sched_getaffinity(0))}"  # fmt: skip


def _nearest(plan: Plan, nearest: Path, replan: Replan) -> str:
    try:
        made = replan(plan)
        write_plan(made, nearest)
    except PolypodError as error:
        return f"and no plan fits the cores that are here: {error}"
    pools = made.services[0].pools
    where = ", ".join(f"{pool.name} on {_cores(made.fleet[pool.on])}" for pool in pools)
    return f"the nearest plan for those has {where}: `polypod up --plan {nearest}`"


def _cores(source: Source) -> str:
    cores = source.cores or ()
    return f"core {cores[0]}" if len(cores) == 1 else f"cores {', '.join(map(str, cores))}"
