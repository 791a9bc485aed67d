"""What a container allows: CPU quota, CPU set and memory, from cgroup version 2 or 1, or a mix of both.

A limit may sit on the group itself or on any group above it; the tightest holds.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

_NO_LIMIT_BYTES = 1 << 60  # version 1 writes a huge number for "none"


class CgroupLimits(msgspec.Struct, frozen=True, kw_only=True):
    """None where there is no limit."""

    quota_cores: float | None = None
    cpus: tuple[int, ...] | None = None
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None

    @property
    def memory_room_bytes(self) -> int | None:
        """What is left below the memory limit."""
        if self.memory_bytes is None:
            return None
        return max(0, self.memory_bytes - (self.memory_used_bytes or 0))


def read_limits(root: Path = Path("/")) -> CgroupLimits:
    """The limits on this process below `root`."""
    groups = parse_cgroups(_text(root / "proc/self/cgroup") or "")
    mount = root / "sys/fs/cgroup"
    quotas = [*_quotas_v2(mount, groups), *_quotas_v1(mount, groups)]
    memories = [*_memories_v2(mount, groups), *_memories_v1(mount, groups)]
    limit, used = min(memories, default=(None, None))
    return CgroupLimits(
        quota_cores=min(quotas, default=None),
        cpus=_cpus(root, mount, groups),
        memory_bytes=limit,
        memory_used_bytes=used,
    )


def parse_cgroups(text: str) -> dict[str, str]:
    """The path of this process in each hierarchy; version 2 has the empty name.

    >>> parse_cgroups("4:memory:/a\\n1:cpu,cpuacct:/b\\n0::/c")
    {'memory': '/a', 'cpu': '/b', 'cpuacct': '/b', '': '/c'}
    """
    groups = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        groups.update(dict.fromkeys(names.split(","), path))
    return groups


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """The kernel's way to write sets of CPUs.

    >>> parse_cpu_list("0-2,8,10-11"), parse_cpu_list("")
    ((0, 1, 2, 8, 10, 11), ())
    """
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)


def _quotas_v2(mount: Path, groups: dict[str, str]) -> Iterator[float]:
    for directory in _upward(mount, groups.get("")):
        quota, _, period = (_text(directory / "cpu.max") or "max").partition(" ")
        if quota != "max":
            yield int(quota) / int(period)


def _quotas_v1(mount: Path, groups: dict[str, str]) -> Iterator[float]:
    for directory in _upward(mount / "cpu", groups.get("cpu")):
        quota = int(_text(directory / "cpu.cfs_quota_us") or -1)
        if quota > 0:
            yield quota / int(_text(directory / "cpu.cfs_period_us") or 100_000)


def _memories_v2(mount: Path, groups: dict[str, str]) -> Iterator[tuple[int, int]]:
    for directory in _upward(mount, groups.get("")):
        limit = _text(directory / "memory.max") or "max"
        if limit != "max":
            yield int(limit), int(_text(directory / "memory.current") or 0)


def _memories_v1(mount: Path, groups: dict[str, str]) -> Iterator[tuple[int, int]]:
    for directory in _upward(mount / "memory", groups.get("memory")):
        limit = int(_text(directory / "memory.limit_in_bytes") or _NO_LIMIT_BYTES)
        if limit < _NO_LIMIT_BYTES:
            yield limit, int(_text(directory / "memory.usage_in_bytes") or 0)


def _cpus(root: Path, mount: Path, groups: dict[str, str]) -> tuple[int, ...] | None:
    """The set in force on the nearest group that has one; None where it is the whole machine."""
    places = [(directory, "cpuset.cpus.effective") for directory in _upward(mount, groups.get(""))]
    old = _upward(mount / "cpuset", groups.get("cpuset"))
    places += [(directory, "cpuset.effective_cpus") for directory in old]
    found = next(filter(None, (_text(directory / name) for directory, name in places)), None)
    online = _text(root / "sys/devices/system/cpu/online")
    if not found or found == online:
        return None
    return parse_cpu_list(found)


def _upward(mount: Path, group: str | None) -> Iterator[Path]:
    """The group's directory and all above it. Inside a container the mount may begin at the group itself."""
    if group is None:
        return
    path = PurePosixPath(group)
    for step in (path, *path.parents):
        directory = mount / str(step).lstrip("/")
        if directory.is_dir():
            yield directory


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
