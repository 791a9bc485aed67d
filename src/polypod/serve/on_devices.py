"""A plan's pools on this machine's accelerators: which devices each replica has, and the flags its engine is started with.

The flags are those of the pool's launch file (`polypod emit`), the devices the logical numbers that `polypod devices` shows, in their order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polypod.errors import InputError
from polypod.plan.emit import Wanted, launches_of
from polypod.plan.emitted import Launch
from polypod.plan.flags import TARGETS, Target
from polypod.plan.live_flags import devices_of, live_arguments, live_variables
from polypod.plan.spec import Plan, Pool
from polypod.serve.devices.fleet import lacking
from polypod.serve.devices.found import Inventory
from polypod.serve.engines.facts import platform_of


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDevices:
    """One pool: its launch, and the devices of its part of the fleet as the platform's variable counts them."""

    launch: Launch
    engine: Target
    devices: tuple[str, ...]

    def told(self, replica: int) -> dict[str, Any]:
        """What one replica's `EngineSpec` has besides what every engine's does."""
        launch = self.launch
        return {
            "platform": launch.stack,
            "devices": tuple(self.devices[n] for n in devices_of(launch, replica)),
            "arguments": tuple(live_arguments(launch, self.engine, replica)),
            "variables": tuple(live_variables(launch, self.engine).items()),
        }


def on_devices(plan: Plan, inventory: Inventory) -> dict[str, OnDevices]:
    """By pool, where the plan is on accelerators that are all here.

    Raises `InputError` for devices that are not here, an engine that is not started from a plan, a stack that is not on record of the engine,
    and as `polypod emit` does for what the engine has no flag for.
    """
    _check_devices(plan, inventory)
    by_name: dict[str, Target] = {}
    for s, service in enumerate(plan.services):
        for p, pool in enumerate(service.pools):
            by_name[pool.name or f"pool{s}.{p}"] = _target(pool, f"`$.services[{s}].pools[{p}]`")
    found = {}
    devices = _devices_by_part(plan, inventory)
    for name, (launch, engine) in launches_of(plan, Wanted(by_name=by_name)).items():
        if platform_of(engine, launch.stack) is None:
            msg = f"how {engine} is kept to its devices on {launch.chip} is not on record; launch it by the files of polypod emit - at `{launch.path}`"
            raise InputError(msg)
        one = OnDevices(launch=launch, engine=engine, devices=devices[launch.pool.on])
        for replica in range(launch.pool.replicas):
            one.told(replica)  # now, rather than when the first engines already load
        found[name] = one
    return found


def _target(pool: Pool, path: str) -> Target:
    engine = next((one for one in TARGETS if one == pool.engine), None)
    if engine is None:
        msg = f"engine {pool.engine!r} on {pool.on!r}: on accelerators {', '.join(TARGETS)} are started from a plan; say engine: in the pool - at {path}"
        raise InputError(msg)
    return engine


def _check_devices(plan: Plan, inventory: Inventory) -> None:
    missing = lacking(plan.fleet, inventory)
    if missing:
        said = "; ".join(f"{one.wanted} {one.accelerator} for {', '.join(one.parts)}, {one.found} are here" for one in missing)  # fmt: skip
        msg = f"the plan wants {said}: polypod devices --for PLAN says what fits, polypod simulate plays it, and --ghost serves it by engines that are made up"
        raise InputError(msg)


def _devices_by_part(plan: Plan, inventory: Inventory) -> Mapping[str, tuple[str, ...]]:
    """Devices of each part of the fleet, one part's after another's where both are of one chip."""
    left: dict[str, list[str]] = {}
    each: dict[str, int] = {}
    for device in inventory.devices:
        if device.is_usable and device.catalog_id is not None and device.index is not None:
            left.setdefault(device.catalog_id, []).append(str(device.index))
            each[device.catalog_id] = device.devices_per_entry
    parts = {}
    for name, source in plan.fleet.items():
        chip, count = str(source.accelerator), source.count or 0
        taken = count * each.get(chip, 1)
        parts[name] = tuple(left.get(chip, [])[:taken])
        left[chip] = left.get(chip, [])[taken:]
    return parts
