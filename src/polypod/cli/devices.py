"""polypod devices: what is on this machine, how it was found, what can use it, how fast the cores measured."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from polypod.cli.devices_text import accelerators_text, conformance_text, fleet_text
from polypod.errors import InputError
from polypod.serve.devices.conformance import read_counts
from polypod.serve.devices.find import find_devices
from polypod.serve.devices.fleet import fleet_yaml, found_fleet
from polypod.serve.devices.found import Inventory
from polypod.serve.devices.vendor import shipped_vendors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument(
        "--measure",
        action="store_true",
        help="measure the cores again, even if a measurement is kept",
    )
    one_of.add_argument(
        "--accelerators", action="store_true", help="accelerators only; nothing is measured"
    )
    one_of.add_argument(
        "--fleet",
        action="store_true",
        help="what was found as a fleet file, for `polypod plan --on`",
    )
    one_of.add_argument(
        "--for",
        dest="plan",
        metavar="PLAN",
        help="what of a plan's fleet is not on this machine, and the nearest plan for what is",
    )
    one_of.add_argument(
        "--conformance",
        action="store_true",
        help="which vendors' outputs the probes were tried on, and where those are from",
    )
    parser.add_argument("-o", dest="file", metavar="FILE", help="write the file of --fleet here")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    if args.file and not args.fleet:
        msg = f"-o {args.file} is where --fleet writes; say --fleet too"
        raise InputError(msg)
    if args.conformance:
        return _conformance(as_json=args.json)
    inventory = find_devices()
    if args.plan:
        from polypod.cli.devices_for import print_for  # the planner, a second to import

        return print_for(args.plan, inventory, as_json=args.json)
    if args.fleet:
        return _fleet(inventory, args.file, as_json=args.json)
    if args.json:
        print(json.dumps(_object(args, inventory), indent=2))
        return 0
    if not args.accelerators:
        from polypod.cli.devices_cpu import cpu_text  # what measures, half a second to import

        print(cpu_text(fresh=args.measure))
    print(accelerators_text(inventory, shipped_vendors()))
    if inventory.devices:
        print(f"\n{fleet_text(found_fleet(inventory))}")
    return 0


def _conformance(*, as_json: bool) -> int:
    counts = read_counts()
    if as_json:
        print(json.dumps(msgspec.to_builtins(counts), indent=2))
    else:
        print(conformance_text(counts, shipped_vendors()))
    return 0


def _fleet(inventory: Inventory, file: str | None, *, as_json: bool) -> int:
    fleet = found_fleet(inventory)
    if as_json:
        print(json.dumps(msgspec.to_builtins(fleet), indent=2))
        return 0 if fleet.sources else 1
    if not fleet.sources:
        for reason, names in fleet.left_out.items():
            print(f"left out: {', '.join(names)}: {reason}", file=sys.stderr)
        print("polypod: no device here that a plan can be made for", file=sys.stderr)
        return 1
    text = fleet_yaml(fleet)
    if file is None:
        print(text, end="")
    else:
        Path(file).write_text(text, encoding="utf-8")
    return 0


def _object(args: argparse.Namespace, inventory: Inventory) -> dict[str, Any]:
    found: dict[str, Any] = {
        "accelerators": msgspec.to_builtins(inventory.devices),
        "vendors": msgspec.to_builtins(inventory.reports),
        "fleet": msgspec.to_builtins(found_fleet(inventory).sources),
    }
    if args.accelerators:
        return found
    from polypod.cli.devices_cpu import cpu_object

    return {**cpu_object(fresh=args.measure), **found}
