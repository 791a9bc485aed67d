"""What is worth keeping between runs: measurements of this host, below `$XDG_STATE_HOME/polypod`.

A measurement is found again only for the same CPU, cores, quota and library versions. A file that cannot be read
is reported and measured anew, one taken while the cores were busy is used once; a directory that cannot be written costs a warning, never the measurement.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from polypod.serve.devices.cpu import HostCpu
from polypod.serve.devices.measure import HostMeasurement, measure_host, versions

Warn = Callable[[str], None]

_QUIET: Final = 0.2  # share of the measured cores' time that others may take


def to_stderr(text: str) -> None:
    """Where warnings go unless the caller wants them."""
    sys.stderr.write(f"polypod: {text}\n")


def state_directory() -> Path:
    """`$XDG_STATE_HOME/polypod`, by default `~/.local/state/polypod`."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local/state") / "polypod"


def host_measurement(
    cpu: HostCpu,
    cores: Sequence[int],
    *,
    directory: Path | None = None,
    fresh: bool = False,
    warn: Warn = to_stderr,
    measure: Callable[[Sequence[int]], HostMeasurement] = measure_host,
) -> HostMeasurement:
    """The kept measurement of these cores, or a new one, which is kept; `fresh` asks for a new one."""
    store = MeasurementStore(directory or state_directory(), warn)
    key = measurement_key(cpu, cores)
    kept = None if fresh else store.load(key)
    if kept is not None:
        return kept
    measured = measure(cores)
    if measured.busy_elsewhere <= _QUIET:
        store.save(key, measured)
    else:
        warn(
            f"other processes took {measured.busy_elsewhere:.0%} of the cores while they were measured: "
            "the rates are too low, and not kept for the next time"
        )
    return measured


def measurement_key(cpu: HostCpu, cores: Sequence[int]) -> str:
    """A name that changes with everything a measurement depends on and we can see."""
    what = (
        cpu.vendor,
        cpu.model,
        cpu.features,
        cpu.cache_bytes,
        cpu.limits.quota_cores,
        tuple(cores),
        sorted(versions().items()),
    )
    return hashlib.sha256(msgspec.json.encode(what)).hexdigest()[:16]


class MeasurementStore:
    """One JSON file per measurement."""

    def __init__(self, directory: Path, warn: Warn) -> None:
        self._directory = directory / "measurements"
        self._warn = warn

    def load(self, key: str) -> HostMeasurement | None:
        """The measurement kept under `key`; None where there is none that can be read."""
        path = self._path(key)
        try:
            return msgspec.json.decode(path.read_bytes(), type=HostMeasurement)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            self._warn(f"{path}: cannot be read ({error}); measuring again")
            return None

    def save(self, key: str, measurement: HostMeasurement) -> None:
        """Keep it: a reader sees the old file or the new one, never half of one."""
        path = self._path(key)
        text = msgspec.json.format(msgspec.json.encode(measurement))
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            _write_whole(path, text)
        except OSError as error:
            self._warn(
                f"{path}: cannot be written ({error.strerror}); it will be measured again next time"
            )

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.json"


def _write_whole(path: Path, data: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
