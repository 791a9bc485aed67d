"""Flags about the network that caches and exchanges share: of `polypod simulate`."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from polypod import units
from polypod.cli.asking import note
from polypod.errors import InputError, QuantityError, nearest_names
from polypod.plan.spec import Plan, wait_s
from polypod.policy.settings import PolicySettings
from polypod.simulate.fabric import Network, fabric_of
from polypod.simulate.neighbours import slowdowns
from polypod.simulate.way_plan import PlacedWays, ways_of

_KV_WAIT_S: Final = PolicySettings(services=()).kv_wait_s
_KEYS: Final = ("leaf", "node-blocking", "leaf-blocking")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What a run's replicas share: ways of their caches, and how much neighbours slow their steps."""

    ways: PlacedWays | None = None
    slowdowns: Mapping[str, float] = field(default_factory=dict)


def add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the network")
    group.add_argument("--network", metavar="KEY=N", action="append", default=[], help="what no catalog says of the scale-out network: leaf=CARDS under one leaf switch; node-blocking=N, a node's ports over its way into the network; leaf-blocking=N, the ports below a leaf over its way to the spine (default: one switch for all, blocking as the catalog and the plan say)")  # fmt: skip

    group.add_argument("--kv-wait", metavar="TIME", help=f"until a cache that does not come is given up and its prompt computed again (default: policy.kv_wait of the plan, else {_KV_WAIT_S:g}s)")  # fmt: skip


def waiting(args: argparse.Namespace, settings: PolicySettings, plan: Plan) -> PolicySettings:
    """The policy's limits with what the flags say of caches on their way. Raises `InputError`, also where no cache is handed on."""
    if args.kv_wait is None:
        return settings
    if not _is_apart(plan):
        msg = f"--kv-wait {args.kv_wait} is of caches on their way, and no pool of this plan hands any on; leave it out"
        raise InputError(msg)
    try:
        kv_wait_s = wait_s(args.kv_wait)
    except QuantityError as error:
        msg = f"--kv-wait: {error}"
        raise QuantityError(msg) from error
    except InputError as error:
        msg = f"--kv-wait {error}"
        raise InputError(msg) from error
    return msgspec.structs.replace(settings, kv_wait_s=kv_wait_s)


def shared_of(args: argparse.Namespace, plan: Plan) -> Shared:
    """The fabric's ways where prefill and decode are apart, and what neighbours cost where a ratio is said. Raises `InputError`."""
    network = _network(args.network)
    if network is None and not _is_apart(plan):
        return Shared()
    try:
        made, placed = fabric_of(plan, network)
    except InputError as error:
        if network is not None:
            raise
        note(f"caches share nothing but their replicas' own links here, since {error}")
        return Shared()
    slowed = slowdowns(plan, made, placed)
    if slowed:
        note(_slowed_text(slowed))
    return Shared(ways=ways_of(plan, made, placed), slowdowns=slowed)


def _is_apart(plan: Plan) -> bool:
    return any(pool.role != "both" for service in plan.services for pool in service.pools)


def _slowed_text(slowed: Mapping[str, float]) -> str:
    least, most = (units.significant(at(slowed.values())) for at in (min, max))
    by = least if least == most else f"{least} to {most}"
    which = next(iter(slowed)) if len(slowed) == 1 else f"{len(slowed)} replicas"
    return f"steps of {which} take {by} times what the plan says, since all exchange over links that block more than it was charged for"


def _network(said: list[str]) -> Network | None:
    if not said:
        return None
    found: dict[str, float] = {}
    for text in said:
        key, _, value = text.partition("=")
        if key not in _KEYS:
            near = ", ".join(nearest_names(key, _KEYS) or _KEYS)
            msg = f"--network {text}: nothing is called {key!r} there; nearest: {near}"
            raise InputError(msg)
        found[key] = _number(text, value, is_whole=key == "leaf")
    if "leaf-blocking" in found and "leaf" not in found:
        msg = "--network leaf-blocking is of leaf switches; say how many cards one has, as leaf=256"
        raise InputError(msg)
    return Network(
        leaf_cards=int(found["leaf"]) if "leaf" in found else None,
        node_blocking_ratio=found.get("node-blocking"),
        leaf_blocking_ratio=found.get("leaf-blocking"),
    )


def _number(text: str, value: str, *, is_whole: bool) -> float:
    try:
        number = float(int(value) if is_whole else float(value))
    except ValueError:
        number = 0.0
    if not 1 <= number < 1e9:
        what = "a number of cards, as leaf=256" if is_whole else "a ratio of 1 or more, 2 for 2:1"
        msg = f"--network {text}: give {what}"
        raise InputError(msg)
    return number
