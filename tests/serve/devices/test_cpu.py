"""Machines replayed from the files their kernels show."""

import os
from pathlib import Path

import pytest

from polypod.serve.devices.cgroup import parse_cpu_list, read_limits
from polypod.serve.devices.cpu import find_cpu, parse_cpuinfo

MEMINFO = "MemTotal:       25165824 kB\nMemFree:        1048576 kB\nMemAvailable:   20971520 kB\n"
XEON_FLAGS = "fpu sse4_2 avx2 avx512f avx512_vnni avx512_bf16 avx512_fp16 avx_vnni amx_bf16 amx_tile amx_int8"
XEON = f"processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Platinum 8480+\nflags\t\t: {XEON_FLAGS}\n\nprocessor\t: 1\n"
GRAVITON = """processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes fphp asimdhp asimddp sve i8mm bf16 dgh rng
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1
"""


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def base(cpuinfo: str, online: str) -> dict[str, str]:
    return {
        "proc/cpuinfo": cpuinfo,
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        "sys/devices/system/cpu/online": f"{online}\n",
    }


def caches(cpu: int, *sizes: tuple[str, str, str]) -> dict[str, str]:
    files = {}
    for number, (level, kind, size) in enumerate(sizes):
        place = f"sys/devices/system/cpu/cpu{cpu}/cache/index{number}"
        files |= {f"{place}/level": level, f"{place}/type": f"{kind}\n", f"{place}/size": size}
    return files


def two_sockets() -> dict[str, str]:
    """Two nodes of two cores; CPUs 4 to 7 are the second threads."""
    files = base(XEON, "0-7")
    for cpu in range(8):
        siblings = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        files[siblings] = f"{cpu % 4},{cpu % 4 + 4}\n"
    for node, cpus in enumerate(("0-1,4-5", "2-3,6-7")):
        place = f"sys/devices/system/node/node{node}"
        size = f"Node {node} MemTotal: {8 + node} kB\nNode {node} MemFree: {4 + node} kB\n"
        files |= {f"{place}/cpulist": cpus, f"{place}/meminfo": size}
    sizes = (
        ("1", "Data", "48K"),
        ("1", "Instruction", "32K"),
        ("2", "Unified", "2048K"),
        ("3", "Unified", "107520K"),
    )
    return files | caches(0, *sizes)


def test_a_two_socket_xeon_is_two_groups_with_a_core_for_each_pair_of_threads(
    tmp_path: Path,
) -> None:
    cpu = find_cpu(machine(tmp_path, two_sockets()), range(8))

    assert (cpu.vendor, cpu.model) == ("GenuineIntel", "Intel(R) Xeon(R) Platinum 8480+")
    assert [(g.node, g.threads, g.cores) for g in cpu.groups] == [
        (0, (0, 1, 4, 5), (0, 1)),
        (1, (2, 3, 6, 7), (2, 3)),
    ]
    assert [(g.memory_total_bytes, g.memory_free_bytes) for g in cpu.groups] == [
        (8192, 4096),
        (9216, 5120),
    ]
    assert cpu.cores == (0, 1, 2, 3)
    assert cpu.usable_cores == 4
    assert cpu.cache_bytes == {"L1d": 48 << 10, "L2": 2 << 20, "L3": 105 << 20}
    assert cpu.last_level_cache_bytes == 105 << 20
    assert {"avx512_vnni", "avx_vnni", "amx_int8"} <= set(cpu.features)
    assert "neon" not in cpu.features
    assert cpu.notes == ()


def test_only_the_cpus_this_process_may_use_count(tmp_path: Path) -> None:
    cpu = find_cpu(machine(tmp_path, two_sockets()), {5, 6, 7})

    assert [(g.node, g.threads, g.cores) for g in cpu.groups] == [
        (0, (5,), (5,)),
        (1, (6, 7), (6, 7)),
    ]


def test_an_arm_with_sve_is_known_by_its_numbers(tmp_path: Path) -> None:
    cpu = find_cpu(machine(tmp_path, base(GRAVITON, "0-1")), range(2))

    assert (cpu.vendor, cpu.model, cpu.architecture) == ("ARM", "Neoverse-V1", "aarch64")
    assert cpu.features == ("neon", "dotprod", "fp16", "i8mm", "bf16", "sve")
    assert [(g.node, g.cores) for g in cpu.groups] == [(None, (0, 1))]
    assert cpu.groups[0].memory_total_bytes == 24 << 30
    assert (cpu.cache_bytes, cpu.last_level_cache_bytes) == ({}, None)


def test_an_arm_that_no_table_knows_shows_its_numbers() -> None:
    assert parse_cpuinfo("CPU implementer : 0x99\nCPU part : 0x123")[:2] == (
        "implementer 0x99",
        "part 0x123",
    )


def container(tmp_path: Path) -> Path:
    """Version 2: a quota of 1.5 cores on the group, one of 2 above it, CPUs 1 to 3, 2 GiB of which half is used."""
    group = "sys/fs/cgroup/kubepods/pod7"
    files = two_sockets() | {
        "proc/self/cgroup": "0::/kubepods/pod7\n",
        f"{group}/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/kubepods/cpu.max": "200000 100000\n",
        "sys/fs/cgroup/cpu.max": "max 100000\n",
        f"{group}/cpuset.cpus.effective": "1-3\n",
        f"{group}/memory.max": f"{2 << 30}\n",
        f"{group}/memory.current": f"{1 << 30}\n",
        "sys/fs/cgroup/kubepods/memory.max": f"{4 << 30}\n",
    }
    return machine(tmp_path, files)


def test_a_container_has_its_quota_its_cpus_and_its_memory(tmp_path: Path) -> None:
    cpu = find_cpu(container(tmp_path), range(8))

    assert cpu.cores == (1, 2, 3)
    assert cpu.limits.quota_cores == 1.5
    assert cpu.usable_cores == 1
    assert cpu.limits.memory_bytes == 2 << 30
    assert cpu.usable_memory_bytes == 1 << 30
    assert cpu.notes == (
        "a CPU quota of 1.5 cores (cgroup)",
        "restricted to 3 of the machine's threads (cpuset)",
        "a memory limit of 2.15 GB (cgroup)",
    )


def test_a_quota_below_one_core_still_leaves_one(tmp_path: Path) -> None:
    files = base(XEON, "0-7") | {"sys/fs/cgroup/cpu.max": "50000 100000\n"}

    assert find_cpu(machine(tmp_path, files), range(8)).usable_cores == 1


def test_version_1_limits_are_read_inside_a_container_and_out(tmp_path: Path) -> None:
    """Inside a container the paths are the host's, and the mount begins at the group itself."""
    files = {
        "proc/self/cgroup": "4:memory:/docker/5f\n3:cpuset:/docker/5f\n1:cpu,cpuacct:/docker/5f\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpuset/cpuset.effective_cpus": "0,2\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1200\n",
        "sys/devices/system/cpu/online": "0-3\n",
    }
    limits = read_limits(machine(tmp_path, files))

    assert (limits.quota_cores, limits.cpus, limits.memory_bytes) == (2.5, (0, 2), 1000)
    assert limits.memory_room_bytes == 0


def test_without_limits_there_are_none(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/\n3:cpuset:/\n1:cpu:/\n0::/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpuset/cpuset.effective_cpus": "0-3\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/devices/system/cpu/online": "0-3\n",
    }
    limits = read_limits(machine(tmp_path, files))

    assert (limits.quota_cores, limits.cpus, limits.memory_bytes) == (None, None, None)
    assert limits.memory_room_bytes is None


def test_this_machine_is_found() -> None:
    cpu = find_cpu()

    assert set(cpu.cores) <= os.sched_getaffinity(0)
    assert 1 <= cpu.usable_cores <= len(cpu.cores)
    assert 0 < cpu.usable_memory_bytes <= cpu.memory_total_bytes
    assert cpu.model != "unknown"


@pytest.mark.parametrize("text", ["0", "0-3", "0-1,4,6-7"])
def test_a_cpu_list_is_read_as_the_kernel_means_it(text: str) -> None:
    cpus = parse_cpu_list(text)

    assert list(cpus) == sorted(set(cpus))
    assert str(cpus[0]) == text[0]
    assert str(cpus[-1]) == text[-1]
