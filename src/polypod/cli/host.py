"""This machine's measurement, said to be under way when it is."""

from collections.abc import Sequence

from polypod.cli.asking import note
from polypod.serve.devices.cpu import HostCpu
from polypod.serve.devices.measure import HostMeasurement, measure_host
from polypod.serve.store import host_measurement


def measured_host(cpu: HostCpu, *, fresh: bool) -> HostMeasurement:
    """The kept measurement of the cores that may be used, or a new one; `fresh` asks for a new one."""
    cores = cpu.cores[: cpu.usable_cores]
    return host_measurement(cpu, cores, fresh=fresh, measure=_measure, warn=note)


def _measure(cores: Sequence[int]) -> HostMeasurement:
    note("measuring this machine, which takes a few seconds ...")
    return measure_host(cores)
