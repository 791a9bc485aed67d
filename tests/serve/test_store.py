"""Measurements are kept, found again only where they hold, and never trusted blindly."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from polypod.serve.devices import find_cpu
from polypod.serve.devices.measure import HostMeasurement
from polypod.serve.store import (
    MeasurementStore,
    host_measurement,
    measurement_key,
    state_directory,
)

MEASUREMENT = HostMeasurement(
    at=datetime(2026, 1, 2, tzinfo=UTC),
    cpu="a CPU",
    kernel="6.1",
    cores=(0,),
    versions={"numpy": "2"},
    gemm=(),
    bandwidth=(),
    absent={"bf16": "no kernel"},
    seconds=1.0,
)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, warnings: list[str]) -> MeasurementStore:
    return MeasurementStore(tmp_path, warnings.append)


def test_what_was_kept_is_found_again(store: MeasurementStore, tmp_path: Path, warnings) -> None:
    assert store.load("k") is None
    store.save("k", MEASUREMENT)

    assert store.load("k") == MEASUREMENT
    assert store.load("other") is None
    assert [path.name for path in (tmp_path / "measurements").iterdir()] == ["k.json"]
    assert warnings == []


@pytest.mark.parametrize("text", [b"", b"{}", b'{"kind": "measured", "at"', b'{"kind": "guessed"}'])
def test_a_broken_file_is_reported_and_measured_again(
    store: MeasurementStore, tmp_path: Path, warnings: list[str], text: bytes
) -> None:
    path = tmp_path / "measurements" / "k.json"
    path.parent.mkdir()
    path.write_bytes(text)

    assert store.load("k") is None
    (warning,) = warnings
    assert str(path) in warning
    assert "measuring again" in warning


def test_a_place_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, warnings: list[str]
) -> None:
    (tmp_path / "file").touch()
    MeasurementStore(tmp_path / "file", warnings.append).save("k", MEASUREMENT)

    (warning,) = warnings
    assert "cannot be written" in warning


def test_a_full_disk_leaves_no_half_of_a_file(
    store: MeasurementStore, tmp_path: Path, warnings
) -> None:
    """The file is renamed into a directory of its name: the last step fails, as it does on a full disk."""
    (tmp_path / "measurements" / "k.json" / "in the way").mkdir(parents=True)
    store.save("k", MEASUREMENT)

    assert [path.name for path in (tmp_path / "measurements").iterdir()] == ["k.json"]
    assert len(warnings) == 1


def test_the_key_changes_with_what_a_measurement_depends_on() -> None:
    cpu = find_cpu()
    others = [
        msgspec.structs.replace(cpu, model="another"),
        msgspec.structs.replace(cpu, features=()),
        msgspec.structs.replace(cpu, limits=msgspec.structs.replace(cpu.limits, quota_cores=0.5)),
    ]

    keys = {measurement_key(each, (0,)) for each in (cpu, *others)} | {measurement_key(cpu, (0, 1))}
    assert len(keys) == 5
    more_memory = msgspec.structs.replace(cpu, memory_available_bytes=1)
    assert measurement_key(more_memory, (0,)) == measurement_key(cpu, (0,))


def test_a_kept_measurement_is_used_without_measuring(tmp_path: Path, warnings: list[str]) -> None:
    cpu = find_cpu()
    MeasurementStore(tmp_path, warnings.append).save(measurement_key(cpu, (0,)), MEASUREMENT)

    assert host_measurement(cpu, (0,), directory=tmp_path, warn=warnings.append) == MEASUREMENT


def test_a_quiet_measurement_is_kept_and_a_disturbed_one_is_used_once(
    tmp_path: Path, warnings: list[str]
) -> None:
    cpu = find_cpu()
    asked: list[tuple[int, ...]] = []

    def measured(busy_elsewhere: float, *, fresh: bool = False) -> HostMeasurement:
        result = msgspec.structs.replace(MEASUREMENT, busy_elsewhere=busy_elsewhere)
        return host_measurement(
            cpu,
            (0, 1),
            directory=tmp_path,
            fresh=fresh,
            warn=warnings.append,
            measure=lambda cores: asked.append(tuple(cores)) or result,
        )

    assert measured(0.4).busy_elsewhere == 0.4
    assert warnings.pop().startswith("other processes took 40% of the cores")
    assert measured(0.2).busy_elsewhere == 0.2, "the disturbed one was not kept"
    assert measured(0.0).busy_elsewhere == 0.2, "the quiet one was"
    assert measured(0.1, fresh=True).busy_elsewhere == 0.1
    assert measured(0.0).busy_elsewhere == 0.1
    assert asked == [(0, 1)] * 3
    assert warnings == []


def test_the_state_directory_is_the_one_the_desktop_standard_names(monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert state_directory() == Path("/var/state/polypod")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert state_directory() == Path.home() / ".local/state/polypod"
