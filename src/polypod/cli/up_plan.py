"""The plan that `up` serves: read from a file and held against this machine, or made for it."""

import argparse
from pathlib import Path

import msgspec

from polypod.cli.asking import note, tokens
from polypod.cli.up_absent import check_cards, check_cores, host_plan
from polypod.plan.spec import Plan, read_plan
from polypod.serve.devices.cpu import HostCpu
from polypod.serve.devices.measure import HostMeasurement
from polypod.serve.local import Wishes, plan_local
from polypod.serve.weights import Weights, find_weights


def read_for_here(args: argparse.Namespace) -> Plan | None:
    """The plan file, where one is given. Raises `InputError` where its cards are not here, before anything takes time."""
    if not args.plan:
        return None
    plan = read_plan(Path(args.plan))
    check_cards(plan, args.plan)
    return plan


def plan_for(
    args: argparse.Namespace,
    given: Plan | None,
    state: Path,
    cpu: HostCpu,
    measured: HostMeasurement,
) -> Plan:
    """With the weights of every model found, fetched and checked. Raises `InputError` where its cores are not here."""
    if given is not None:
        nearest = state / "nearest-plan.yaml"
        check_cores(given, args.plan, nearest, lambda one: host_plan(_with_weights(args, one, state), cpu, measured))  # fmt: skip
        return _with_weights(args, given, state)
    weights = _weights(args, args.model, state)
    wishes = Wishes(
        weights=weights.path if weights else None,
        name=weights.name if weights else None,
        engines=tuple(args.engine),
        context_tokens=tokens("--context", args.context),
        is_apart=args.apart,
        is_staged=args.stages,
    )
    return plan_local(cpu, measured, wishes)


def _weights(args: argparse.Namespace, text: str | None, state: Path) -> Weights | None:
    return None if text is None else find_weights(text, state=state, say=note, whole=args.verify)


def _with_weights(args: argparse.Namespace, plan: Plan, state: Path) -> Plan:
    services = []
    for service in plan.services:
        found = _weights(args, service.weights, state)
        path = None if found is None else str(found.path)
        services.append(msgspec.structs.replace(service, weights=path))
    return msgspec.structs.replace(plan, services=tuple(services))
