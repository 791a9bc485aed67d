"""What `devices` says of this machine's cores: found in the kernel's files, and measured."""

import sys
from pathlib import Path
from typing import Any

import msgspec

from polypod.cli.host import measured_host
from polypod.cli.up_text import machine_text
from polypod.report.tables import entry
from polypod.serve.devices.cpu import find_cpu
from polypod.serve.engines import ENGINES

_INFO = Path("/proc/cpuinfo")


def cpu_text(*, fresh: bool) -> str:
    """The machine, its rates, and the engines that run on it."""
    if not _INFO.exists():
        return entry("machine", f"its cores are not read on {sys.platform}: there is no {_INFO}")
    cpu = find_cpu()
    lines = [machine_text(cpu, measured_host(cpu, fresh=fresh))]
    lines.append(
        entry("found in", "/proc/cpuinfo, /proc/meminfo, /sys/devices/system, cgroup limits")
    )
    for name, engine in ENGINES.items():
        state = engine.version() or f"not installed (pip install {engine.distribution})"
        lines.append(entry("engine", f"{name} {state}"))
    return "\n".join(lines)


def cpu_object(*, fresh: bool) -> dict[str, Any]:
    """The same for `--json`; nothing where there is no such file."""
    if not _INFO.exists():
        return {}
    cpu = find_cpu()
    return {
        "cpu": msgspec.to_builtins(cpu),
        "found_in": ["/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system", "cgroup"],
        "measured": msgspec.to_builtins(measured_host(cpu, fresh=fresh)),
        "engines": {name: engine.version() for name, engine in ENGINES.items()},
    }
