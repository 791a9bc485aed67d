"""From this machine to a plan that can run on it: its cores, its engines, a model in a file, predictions from a calibration."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from polypod.cost.cpu import CpuCalibration, HostRates, calibration_for, cpu_class
from polypod.errors import FileError, InputError, UnknownNameError
from polypod.plan.host import CoreGroup, LocalEngine, LocalModel, plan_host
from polypod.plan.host_apart import host_apart, that_hand_over
from polypod.plan.host_stages import ENGINES as STAGED
from polypod.plan.host_stages import plan_host_stages
from polypod.plan.predict import policy_settings, pool_replicas
from polypod.plan.spec import Plan, Source
from polypod.serve.devices.cpu import HostCpu
from polypod.serve.devices.find import find_devices
from polypod.serve.devices.found import Inventory
from polypod.serve.devices.measure import HostMeasurement, measure_host
from polypod.serve.engines import ENGINES, USUAL
from polypod.serve.engines.embedded import MODEL_NAME, embedded_weights
from polypod.serve.engines.facts import WeightsFormat, facts_of, how_to_install
from polypod.serve.engines.python import variable_of
from polypod.serve.ghosts import ghost_plan
from polypod.serve.node import Prepared
from polypod.serve.on_devices import on_devices
from polypod.workload.checkpoint import read_checkpoint
from polypod.workload.config import read_model
from polypod.workload.gguf import read_header

_NO_TEMPLATE: Final = (
    "has no chat template, so it cannot answer chat requests; use an instruct model"
)

MOST_GROUPS: Final = 2
"""Replicas on one machine: one per half of its cores."""


def split_cores(cpu: HostCpu) -> list[tuple[int, ...]]:
    """The cores in two halves: by NUMA node where there are several, else down the middle; one core is one group.

    A container's quota counts: of 8 cores of which 2 may be busy, two are used.
    """
    cores = cpu.cores[: cpu.usable_cores]
    if len(cores) < MOST_GROUPS:
        return [cores]
    nodes = [tuple(core for core in group.cores if core in cores) for group in cpu.groups]
    nodes = [node for node in nodes if node]
    if len(nodes) >= MOST_GROUPS:
        middle = len(nodes) // 2
        return [sum(nodes[:middle], ()), sum(nodes[middle:], ())]
    middle = (len(cores) + 1) // 2
    return [cores[:middle], cores[middle:]]


def core_groups(cpu: HostCpu, measured: HostMeasurement) -> list[CoreGroup]:
    """The halves with the rates they are planned by.

    Rates were measured on one core and on all; between the two, the rate per core is taken to fall in a straight line.
    """
    return [
        CoreGroup(
            cores=cores,
            rates=HostRates(
                cpu_class=cpu_class(cpu.features, cpu.architecture),
                cpu=cpu.model,
                cores=len(cores),
                gemm_flops_per_s=_between(_gemm(measured), len(cores)),
                read_bytes_per_s=_between(_read(measured), len(cores)),
                measured_utc=measured.at.isoformat(timespec="seconds"),
            ),
        )
        for cores in split_cores(cpu)
    ]


def local_model(weights: Path | None, name: str | None = None) -> LocalModel:
    """The embedded model, or one in a GGUF file or a folder with safetensors, served under this name or that of its file.

    Raises `FileError` for what is not whole or not modelled.
    """
    path = weights if weights is not None else embedded_weights()
    if path.is_dir():
        return _in_folder(path, name or path.resolve().name)
    if not path.is_file():
        problem = "does not exist; give the path of a GGUF file or of a folder with safetensors, or nothing for the embedded model"
        raise FileError(path, problem)
    header = read_header(path)
    if not header.has_chat_template:
        raise FileError(path, _NO_TEMPLATE)
    served = name or (MODEL_NAME if weights is None else path.stem)
    model = read_model(header.config(), name=served, path=path)
    return LocalModel(
        model=model,
        weights=str(path),
        weight_format=header.quantisation.lower(),
        served_name=served,
    )


def _in_folder(folder: Path, served: str) -> LocalModel:
    """A checkpoint, which the engines that read one widen to fp32 on a CPU."""
    checkpoint = read_checkpoint(folder)
    if not checkpoint.has_chat_template:
        raise FileError(folder, _NO_TEMPLATE)
    model = read_model(checkpoint.config, name=served, path=folder / "config.json")
    return LocalModel(model=model, weights=str(folder), weight_format="fp32", served_name=served)


def local_engines(
    wanted: Sequence[str], weights_format: WeightsFormat | None = None
) -> list[LocalEngine]:
    """Those asked for; else the usual ones that are installed and read the format.

    Raises for a name nobody has, for one that is not installed, for one that does not read the format, and where none reads safetensors.
    """
    for name in wanted:
        _check_engine(name, weights_format)
    found = []
    for name in wanted or USUAL[weights_format or "gguf"]:
        engine = ENGINES[name]
        version = engine.version()
        if version is None and wanted:
            msg = f"engine {name!r} is not installed; install it with: {how_to_install(name, engine.distribution)}"
            raise InputError(msg)
        if version is not None:
            found.append(
                LocalEngine(
                    name=name,
                    version=version,
                    kv_bytes_per_element=engine.kv_bytes_per_element,
                    max_step_tokens=engine.max_step_tokens,
                )
            )
    if not found and weights_format == "safetensors":
        ways = " or ".join(how_to_install(name, ENGINES[name].distribution) for name in USUAL["safetensors"])  # fmt: skip
        msg = f"no engine that reads safetensors is installed; {ways}, or say with {variable_of('vllm')} which Python has vLLM"
        raise InputError(msg)
    return found


def _check_engine(name: str, weights_format: WeightsFormat | None) -> None:
    if name not in ENGINES:
        raise UnknownNameError(kind="engine", name=name, known=ENGINES)
    facts = facts_of(name)
    if facts is None or weights_format is None or weights_format in facts.formats:
        return
    others = [other for other in ENGINES if (known := facts_of(other)) and weights_format in known.formats]  # fmt: skip
    msg = f"engine {name!r} reads {' and '.join(facts.formats)}, not {weights_format}; engines that do: {', '.join(others)}"
    raise InputError(msg)


def format_of(local: LocalModel) -> WeightsFormat:
    """A folder holds safetensors, a file GGUF."""
    return _format(local.weights)


def _format(weights: str) -> WeightsFormat:
    return "safetensors" if Path(weights).is_dir() else "gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the person asked of `up`."""

    weights: Path | None = None
    name: str | None = None  # to serve it under; None: its file's
    engines: tuple[str, ...] = ()
    context_tokens: int = 4096
    is_apart: bool = False  # prompts on one half of the cores, answers on the other
    is_staged: bool = False  # one model over both halves, with as many layers on each as it is fast


def plan_local(cpu: HostCpu, measured: HostMeasurement, wishes: Wishes) -> Plan:
    """Plan one replica per half of the cores, on the engines that are installed; apart, on one that hands caches on.

    In stages, one replica over both halves, each of which is measured by itself, now.
    """
    local = local_model(wishes.weights, wishes.name)
    free_bytes = float(cpu.usable_memory_bytes)
    if wishes.is_staged:
        (engine,) = local_engines(wishes.engines[:1] or STAGED[:1], format_of(local))
        groups = measured_groups(cpu)
        return plan_host_stages(
            local,
            groups,
            engine,
            free_memory_bytes=free_bytes,
            context_tokens=wishes.context_tokens,
        )
    engines = local_engines(wishes.engines, format_of(local))
    plan = plan_host(
        local,
        core_groups(cpu, measured),
        that_hand_over(engines) if wishes.is_apart else engines,
        free_memory_bytes=free_bytes,
        context_tokens=wishes.context_tokens,
    )
    return host_apart(plan) if wishes.is_apart else plan


def measured_groups(cpu: HostCpu) -> list[CoreGroup]:
    """The halves of the cores, each measured by itself as it is now: beside a busy neighbour, less is left."""
    groups = []
    for cores in split_cores(cpu):
        measured = measure_host(cores)
        rates = HostRates(
            cpu_class=cpu_class(cpu.features, cpu.architecture),
            cpu=cpu.model,
            cores=len(cores),
            gemm_flops_per_s=_gemm(measured)[len(cores)],
            read_bytes_per_s=_read(measured)[len(cores)],
            measured_utc=measured.at.isoformat(timespec="seconds"),
        )
        groups.append(CoreGroup(cores=cores, rates=rates))
    return groups


def prepare(plan: Plan, folder: Path, look: Callable[[], Inventory] = find_devices) -> Prepared:
    """Check that a plan can run on this machine, on its cores or on its accelerators, and predict its replicas.

    Raises `InputError` for what is not here: cores, devices, an engine.
    """
    if all(source.host is None for source in plan.fleet.values()):
        return _prepare_devices(plan, folder, look())
    for s, service in enumerate(plan.services):
        for p, pool in enumerate(service.pools):
            path = f"`$.services[{s}].pools[{p}]`"
            for name in (pool.on, *(stage.on for stage in pool.stages)):
                _check_cores(name, plan.fleet[name], path)
            if service.weights is None:
                msg = f"service {service.model!r} names no weights; give it the path of a GGUF file or of a folder with safetensors - at `$.services[{s}]`"
                raise InputError(msg)
            local_engines((str(pool.engine),), _format(service.weights))
    ups = tuple(pool_replicas(plan))
    calibrations: dict[str, CpuCalibration] = {}
    for pool in (pool for service in plan.services for pool in service.pools):
        rates = plan.fleet[pool.on].measured
        assert rates is not None, "checked above"
        calibration, _ = calibration_for(str(pool.engine), rates.cpu_class)
        calibrations |= {up.replica: calibration for up in ups if up.pool == pool.name}
    return Prepared(
        plan=plan, settings=policy_settings(plan), ups=ups, calibrations=calibrations, folder=folder
    )


def _prepare_devices(plan: Plan, folder: Path, inventory: Inventory) -> Prepared:
    for s, service in enumerate(plan.services):
        if service.weights is None or not Path(service.weights).is_dir():
            msg = f"service {service.model!r} needs weights: the folder with its checkpoint - at `$.services[{s}].weights`"
            raise InputError(msg)
        read_checkpoint(Path(service.weights))
    named = with_pool_names(plan)
    found = on_devices(named, inventory)
    for pool in (pool for service in named.services for pool in service.pools):
        local_engines((str(pool.engine),), "safetensors")
    return Prepared(
        plan=named,
        settings=policy_settings(named),
        ups=tuple(pool_replicas(named)),
        calibrations={},
        folder=folder,
        on_devices=found,
    )


def with_pool_names(plan: Plan) -> Plan:
    """Pools without a name get the one that everything else calls them by."""
    return msgspec.structs.replace(
        plan,
        services=tuple(
            msgspec.structs.replace(
                service,
                pools=tuple(
                    msgspec.structs.replace(pool, name=pool.name or f"pool{s}.{p}")
                    for p, pool in enumerate(service.pools)
                ),
            )
            for s, service in enumerate(plan.services)
        ),
    )


def _check_cores(name: str, source: Source, path: str) -> None:
    if source.measured is None or source.cores is None:
        msg = f"pool on {name!r} is not on this machine's cores; `polypod simulate` plays it, `up` runs hosts - at {path}"
        raise InputError(msg)
    absent = sorted(set(source.cores) - os.sched_getaffinity(0))
    if absent:
        msg = f"cores {absent} of {name!r} are not this process's to use; it may use {sorted(os.sched_getaffinity(0))} - at {path}"
        raise InputError(msg)


def prepare_ghosts(
    plan: Plan, folder: Path, *, speed_ratio: float = 1.0, processes: int = 1
) -> Prepared:
    """A plan for any fleet, to be served by ghosts. Raises `InputError` as `ghost_plan` does."""
    ghosts = ghost_plan(plan, speed_ratio=speed_ratio, processes=processes)
    return Prepared(
        plan=plan,
        settings=policy_settings(plan),
        ups=ghosts.ups,
        calibrations={},
        folder=folder,
        ghosts=ghosts,
    )


def _between(rates: dict[int, float], cores: int) -> float:
    few, many = min(rates), max(rates)
    if few == many:
        return rates[few] * cores / few
    share = (cores - few) / (many - few)
    each = rates[few] / few * (1 - share) + rates[many] / many * share
    return each * cores


def _gemm(measured: HostMeasurement) -> dict[int, float]:
    return {rate.threads: rate.flops_per_s.median for rate in measured.gemm if rate.dtype == "fp32"}


def _read(measured: HostMeasurement) -> dict[int, float]:
    sizes = [rate.buffer_bytes for rate in measured.bandwidth if rate.kind == "read"]
    return {
        rate.threads: rate.bytes_per_s.median
        for rate in measured.bandwidth
        if rate.kind == "read" and rate.buffer_bytes == min(sizes)
    }
