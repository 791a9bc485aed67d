"""This machine's CPU, from the files of the kernel: nothing is run, nothing is guessed.

`find_cpu(root)` reads below any directory, so a machine can be replayed from a handful of files. A *group* is a NUMA node,
or the whole machine where the kernel names none. `threads` are logical CPUs this process may run on; `cores` has one
thread of each physical core, the ones to pin engines to.
"""

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from polypod.serve.devices.cgroup import CgroupLimits, parse_cpu_list, read_limits
from polypod.units import significant

# What changes how fast a model runs: the kernel's words, and ours.
_FEATURES: Final = {
    "avx2": "avx2",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_bf16": "amx_bf16",
    "amx_int8": "amx_int8",
    "amx_fp16": "amx_fp16",
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fp16",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
    "lsx": "lsx",
    "lasx": "lasx",
}

# ARM's cpuinfo has numbers where others have names; the numbers are those of util-linux' lscpu.
_ARM_VENDORS: Final = {
    0x41: "ARM",
    0x48: "HiSilicon",
    0x61: "Apple",
    0x70: "Phytium",
    0xC0: "Ampere",
}
_ARM_PARTS: Final = {
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x48, 0xD01): "TaiShan-v110 (Kunpeng 920)",
    (0x70, 0x662): "FTC662",
    (0x70, 0x663): "FTC663",
    (0xC0, 0xAC3): "Ampere-1",
}


class CpuGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The CPUs that share a memory."""

    node: int | None
    threads: tuple[int, ...]
    cores: tuple[int, ...]
    memory_total_bytes: int
    memory_free_bytes: int


class HostCpu(msgspec.Struct, frozen=True, kw_only=True):
    """The CPU as this process may use it."""

    vendor: str
    model: str
    architecture: str
    features: tuple[str, ...]
    cache_bytes: dict[str, int]  # of one instance: "L1d", "L2", "L3"
    groups: tuple[CpuGroup, ...]
    memory_total_bytes: int
    memory_available_bytes: int
    limits: CgroupLimits

    @property
    def cores(self) -> tuple[int, ...]:
        """One thread of each physical core, group after group."""
        return tuple(core for group in self.groups for core in group.cores)

    @property
    def usable_cores(self) -> int:
        """How many cores can be busy at once: a quota of a container counts as so many whole cores, at least one."""
        if self.limits.quota_cores is None:
            return len(self.cores)
        return max(1, min(len(self.cores), int(self.limits.quota_cores)))

    @property
    def usable_memory_bytes(self) -> int:
        """What is free to use, a container's limit considered."""
        room = self.limits.memory_room_bytes
        return (
            self.memory_available_bytes if room is None else min(self.memory_available_bytes, room)
        )

    @property
    def last_level_cache_bytes(self) -> int | None:
        """Of one instance; None where the kernel does not say."""
        return list(self.cache_bytes.values())[-1] if self.cache_bytes else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What keeps this process from the whole machine, in words."""
        limits = self.limits
        quota = limits.quota_cores
        threads = sum(len(group.threads) for group in self.groups)
        found = {
            f"a CPU quota of {significant(quota or 0)} cores (cgroup)": quota is not None,
            f"restricted to {threads} of the machine's threads (cpuset)": limits.cpus is not None,
            f"a memory limit of {(limits.memory_bytes or 0) / 1e9:.3g} GB (cgroup)": limits.memory_bytes
            is not None,
        }
        return tuple(note for note, applies in found.items() if applies)


def find_cpu(root: Path = Path("/"), affinity: Iterable[int] | None = None) -> HostCpu:
    """Read the machine below `root`; `affinity` are the logical CPUs this process may run on (None: ask the kernel)."""
    info = (root / "proc/cpuinfo").read_text()
    memory = parse_meminfo((root / "proc/meminfo").read_text())
    allowed = set(os.sched_getaffinity(0) if affinity is None else affinity)
    limits = read_limits(root)
    if limits.cpus is not None:
        allowed &= set(limits.cpus)
    vendor, model, flags = parse_cpuinfo(info)
    system = root / "sys/devices/system"
    return HostCpu(
        vendor=vendor,
        model=model,
        architecture=platform.machine() if root == Path("/") else _architecture(flags),
        features=tuple(ours for theirs, ours in _FEATURES.items() if theirs in flags),
        cache_bytes=_caches(system / f"cpu/cpu{min(allowed)}/cache"),
        groups=_groups(system, allowed, memory),
        memory_total_bytes=memory["MemTotal"],
        memory_available_bytes=memory["MemAvailable"],
        limits=limits,
    )


def parse_cpuinfo(text: str) -> tuple[str, str, frozenset[str]]:
    """Vendor, model name and feature flags of the first CPU.

    >>> vendor, model, flags = parse_cpuinfo("CPU implementer : 0x48\\nCPU part : 0xd01\\nFeatures : fp asimd")
    >>> vendor, model, sorted(flags)
    ('HiSilicon', 'TaiShan-v110 (Kunpeng 920)', ['asimd', 'fp'])
    """
    first = text.split("\n\n")[0]
    fields = dict(_field(line) for line in first.splitlines() if ":" in line)
    flags = frozenset((fields.get("flags") or fields.get("Features", "")).split())
    if "CPU implementer" in fields:
        return *_arm_name(int(fields["CPU implementer"], 16), int(fields["CPU part"], 16)), flags
    return fields.get("vendor_id", "unknown"), fields.get("model name", "unknown"), flags


def parse_meminfo(text: str) -> dict[str, int]:
    """Bytes by name, of `/proc/meminfo` or of a NUMA node's.

    >>> parse_meminfo("Node 0 MemTotal:  4 kB\\nHugePages_Total:  0")
    {'MemTotal': 4096, 'HugePages_Total': 0}
    """
    sizes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number, _, unit = value.strip().partition(" ")
        sizes[name.split()[-1]] = int(number) * (1024 if unit == "kB" else 1)
    return sizes


def parse_size(text: str) -> int:
    """A cache's size as the kernel writes it.

    >>> parse_size("48K"), parse_size("32M")
    (49152, 33554432)
    """
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    text = text.strip()
    return int(text[:-1]) * scale[text[-1]] if text[-1] in scale else int(text)


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _arm_name(implementer: int, part: int) -> tuple[str, str]:
    vendor = _ARM_VENDORS.get(implementer, f"implementer {implementer:#x}")
    return vendor, _ARM_PARTS.get((implementer, part), f"part {part:#x}")


def _architecture(flags: frozenset[str]) -> str:
    return "aarch64" if "asimd" in flags else "loongarch64" if "lsx" in flags else "x86_64"


def _groups(system: Path, allowed: set[int], memory: dict[str, int]) -> tuple[CpuGroup, ...]:
    nodes = sorted((system / "node").glob("node[0-9]*"), key=lambda path: int(path.name[4:]))
    if (
        len(nodes) < 2
    ):  # the machine's own count is the better one: a node's leaves out memory added later
        sizes = memory["MemTotal"], memory["MemAvailable"]
        return (_group(system, 0 if nodes else None, sorted(allowed), sizes),)
    groups = []
    for path in nodes:
        cpus = parse_cpu_list((path / "cpulist").read_text())
        usable = [cpu for cpu in cpus if cpu in allowed]
        own = parse_meminfo((path / "meminfo").read_text())
        sizes = own["MemTotal"], own["MemFree"]
        if usable:
            groups.append(_group(system, int(path.name[4:]), usable, sizes))
    return tuple(groups)


def _group(
    system: Path, node: int | None, threads: list[int], memory_bytes: tuple[int, int]
) -> CpuGroup:
    cores: list[int] = []
    seen: set[int] = set()
    for cpu in threads:
        if cpu not in seen:
            cores.append(cpu)
        seen |= _siblings(system, cpu)
    return CpuGroup(
        node=node,
        threads=tuple(threads),
        cores=tuple(cores),
        memory_total_bytes=memory_bytes[0],
        memory_free_bytes=memory_bytes[1],
    )


def _siblings(system: Path, cpu: int) -> set[int]:
    path = system / f"cpu/cpu{cpu}/topology/thread_siblings_list"
    return set(parse_cpu_list(path.read_text())) if path.exists() else {cpu}


def _caches(directory: Path) -> dict[str, int]:
    """The size of one instance of each data cache, nearest first."""
    sizes: dict[str, int] = {}
    for path in sorted(directory.glob("index[0-9]*")):
        kind = (path / "type").read_text().strip()
        level = (path / "level").read_text().strip()
        if kind != "Instruction" and (path / "size").exists():
            name = f"L{level}d" if kind == "Data" else f"L{level}"
            sizes[name] = parse_size((path / "size").read_text())
    return sizes
