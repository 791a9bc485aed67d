"""polypod devices: what is on this machine, how it was found, how fast it measured."""

import argparse
import json

import msgspec

from polypod.cli.host import measured_host
from polypod.cli.up_text import machine_text
from polypod.report.tables import entry
from polypod.serve.devices.cpu import find_cpu
from polypod.serve.engines import ENGINES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--measure", action="store_true", help="measure again, even if a measurement is kept"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    cpu = find_cpu()
    measured = measured_host(cpu, fresh=args.measure)
    engines = {name: engine.version() for name, engine in ENGINES.items()}
    if args.json:
        found = {
            "cpu": msgspec.to_builtins(cpu),
            "found_in": ["/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system", "cgroup"],
            "measured": msgspec.to_builtins(measured),
            "engines": engines,
        }
        print(json.dumps(found, indent=2))
        return 0
    print(machine_text(cpu, measured))
    print(entry("found in", "/proc/cpuinfo, /proc/meminfo, /sys/devices/system, cgroup limits"))
    for name, engine in ENGINES.items():
        version = engines[name]
        state = version or f"not installed (pip install {engine.distribution})"
        print(entry("engine", f"{name} {state}"))
    print(entry("accelerators", "not looked for yet: only CPUs are found by this version"))
    return 0
