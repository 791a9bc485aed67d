"""A plan on this machine's accelerators: devices, flags, and what is refused before anything starts."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from polypod.catalog.load import load_model
from polypod.errors import InputError
from polypod.plan.flags import flags_of
from polypod.plan.spec import Plan, read_plan
from polypod.serve.devices.found import Device, Inventory, Visible
from polypod.serve.engines import ENGINES
from polypod.serve.engines.facts import facts_of
from polypod.serve.engines.mindie import CONFIG_VARIABLE
from polypod.serve.launching import Places, engine_spec
from polypod.serve.listen import bind
from polypod.serve.local import prepare
from polypod.serve.node import LiveNode, run_folder

QWEN = "Qwen/Qwen3-32B"


def device(chip: str, index: int) -> Device:
    return Device(
        vendor="v", name=chip, index=index, physical_id=index, uuid=None, pci_address=None, memory_total_bytes=None, memory_used_bytes=None,
        is_memory_shared=False, health="ok", reason=None, slices=(), found_by="cli", found_with="x", catalog_id=chip, catalog_note="",
        devices_per_entry=2 if chip == "huawei-ascend-910c" else 1, engines=(), visible=Visible(), nodes=(),
    )  # fmt: skip


def machine(**chips: list[int]) -> Inventory:
    found = [device(chip.replace("_", "-"), index) for chip, indices in chips.items() for index in indices]  # fmt: skip
    return Inventory(devices=tuple(found), reports=())


def checkpoint(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(load_model("qwen3-32b").config))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}}).encode()
    (folder / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    return folder


def plan_of(folder: Path, *pools: dict[str, Any], weights: bool = True, **fleet: str) -> Plan:
    sources = {name: text.split(":") for name, text in fleet.items()}
    usual = {"role": "both", "replicas": 1, "precision": {"weights": "bf16", "kv": "bf16"}, "state": "launchable", "max_sequences": 32, "max_step_tokens": 2048}  # fmt: skip
    raw = {
        "polypod": 1,
        "fleet": {name: {"accelerator": chip, "count": int(count)} for name, (chip, count) in sources.items()},
        "services": [{"model": QWEN, "context": 8192, "pools": [usual | pool for pool in pools]}],
    }  # fmt: skip
    if weights:
        raw["services"][0]["weights"] = str(checkpoint(folder / "m"))
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return read_plan(path)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pythons that say they have every engine, and a MindIE on the path."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 9.9\n")
    python.chmod(0o755)
    for engine in ("VLLM", "SGLANG", "LMDEPLOY"):
        monkeypatch.setenv(f"POLYPOD_PYTHON_{engine}", str(python))
    (tmp_path / "mindie_llm_server").write_text("#!/bin/sh\n")
    (tmp_path / "mindie_llm_server").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def started(plan: Plan, inventory: Inventory, folder: Path) -> list[tuple[list[str], dict[str, str]]]:  # fmt: skip
    """Command and environment of every replica."""
    ready = prepare(plan, folder, lambda: inventory)
    found = []
    for service in ready.plan.services:
        for pool in service.pools:
            for index in range(pool.replicas):
                up = next(up for up in ready.ups if up.replica == f"{pool.name}-{index}")
                engine = ENGINES[str(pool.engine)]
                spec = engine_spec(ready.plan, service, pool, up, engine, Places(folder, folder, None))  # fmt: skip
                spec = replace(spec, **ready.on_devices[str(pool.name)].told(index))
                spec = spec if spec.port is None else replace(spec, port=4321)
                found.append((engine.command(spec), engine.environment(spec)))
    return found


def after(command: list[str], flag: str) -> str:
    assert command.count(flag) == 1, command
    return command[command.index(flag) + 1]


@pytest.mark.usefixtures("installed")
def test_each_replica_gets_its_devices_by_the_numbers_they_were_found_with(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"on": "a", "engine": "vllm", "layout": {"tp": 2}, "replicas": 2}, a="nvidia-h200-sxm:4")  # fmt: skip
    first, second = started(plan, machine(nvidia_h200_sxm=[5, 6, 7, 4]), tmp_path)

    assert first[1]["CUDA_VISIBLE_DEVICES"] == "5,6"
    assert second[1]["CUDA_VISIBLE_DEVICES"] == "7,4"
    assert first[1]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert after(first[0], "--tensor-parallel-size") == "2"
    assert after(first[0], "--model") == str(tmp_path / "m")
    assert after(first[0], "--served-model-name") == QWEN
    assert after(first[0], "--max-model-len") == "8192"
    assert after(first[0], "--dtype") == "bfloat16"
    assert "$" not in " ".join(first[0])
    assert "--enforce-eager" not in first[0]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("engine", ["vllm", "sglang", "lmdeploy"])
def test_every_flag_from_a_plan_is_documented(tmp_path: Path, engine: str) -> None:
    pool = {"on": "a", "engine": engine, "layout": {"tp": 4}, "engine_args": {"prefix_hits": 0.5}}
    ((command, _),) = started(plan_of(tmp_path, pool, a="nvidia-h200-sxm:4"), machine(nvidia_h200_sxm=[0, 1, 2, 3]), tmp_path)  # fmt: skip

    flags = {word for word in command if word.startswith("--")} - {"--secret-flag"}
    assert flags <= {*flags_of(engine).names, *facts_of(engine).flags}
    assert len(flags) > 8


@pytest.mark.usefixtures("installed")
def test_mindie_gets_the_plans_configuration_and_dies_of_a_package_are_devices(tmp_path: Path) -> None:  # fmt: skip
    pool = {"on": "b", "engine": "mindie", "layout": {"tp": 4}, "engine_args": {"prefill": "exclusive"}}  # fmt: skip
    plan = plan_of(tmp_path, pool, b="huawei-ascend-910c:2")
    ((command, environment),) = started(plan, machine(huawei_ascend_910c=[0, 1, 2, 3]), tmp_path)

    config = json.loads(environment[CONFIG_VARIABLE])
    (model,) = config["BackendConfig"]["ModelDeployConfig"]["ModelConfig"]
    assert (model["tp"], model["modelWeightPath"]) == (4, str(tmp_path / "m"))
    assert config["ServerConfig"]["port"] == 4321
    assert environment["ASCEND_RT_VISIBLE_DEVICES"] == "0,1,2,3"
    assert command[:2] == ["bash", "-c"]


@pytest.mark.usefixtures("installed")
def test_devices_that_are_not_here_are_counted(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"on": "a", "engine": "vllm", "layout": {"tp": 4}}, a="nvidia-h200-sxm:4")  # fmt: skip
    with pytest.raises(InputError, match=r"the plan wants 4 nvidia-h200-sxm for a, 2 are here: polypod devices --for PLAN"):  # fmt: skip
        prepare(plan, tmp_path, lambda: machine(nvidia_h200_sxm=[0, 1]))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("pool", "says"),
    [
        ({"engine": "llama.cpp"}, r"engine 'llama\.cpp' on 'a': on accelerators vllm, sglang, lmdeploy, mindie are started"),
        ({"engine": "mindie"}, r"MindIE on nvidia-h200-sxm"),
    ],
)  # fmt: skip
def test_an_engine_that_does_not_run_there_is_refused(tmp_path: Path, pool: dict[str, Any], says: str) -> None:  # fmt: skip
    plan = plan_of(tmp_path, {"on": "a", "layout": {"tp": 2}} | pool, a="nvidia-h200-sxm:2")
    with pytest.raises(InputError, match=says):
        prepare(plan, tmp_path, lambda: machine(nvidia_h200_sxm=[0, 1]))


@pytest.mark.usefixtures("installed")
def test_roles_apart_are_left_to_launch_files(tmp_path: Path) -> None:
    pools = [{"on": "a", "engine": "vllm", "layout": {"tp": 2}, "role": role, "name": role} for role in ("prefill", "decode")]  # fmt: skip
    plan = plan_of(tmp_path, *pools, a="nvidia-h200-sxm:4")
    with pytest.raises(InputError, match=r"role prefill: a cache handed on by NixlConnector is not driven by this node"):  # fmt: skip
        prepare(plan, tmp_path, lambda: machine(nvidia_h200_sxm=[0, 1, 2, 3]))


@pytest.mark.usefixtures("installed")
def test_a_plan_without_weights_says_what_is_missing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {"on": "a", "engine": "vllm", "layout": {"tp": 2}}, weights=False, a="nvidia-h200-sxm:2")  # fmt: skip
    with pytest.raises(InputError, match=r"needs weights: the folder with its checkpoint - at `\$\.services\[0\]\.weights`"):  # fmt: skip
        prepare(plan, tmp_path, lambda: machine(nvidia_h200_sxm=[0, 1]))


STAND_IN = r"""#!{python}
import asyncio, json, os, sys

if sys.argv[1] == "-c":
    print("9.9")
    sys.exit()
told = dict(zip(sys.argv, sys.argv[1:]))
keys = "Bearer " + os.environ["VLLM_API_KEY"]

async def answer(reader, writer):
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    if head.startswith("GET /health "):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    elif keys.lower() not in head.lower():
        writer.write(b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n")
    else:
        said = told["--served-model-name"] + " on " + os.environ["CUDA_VISIBLE_DEVICES"]
        chunks = [{{"choices": [{{"index": 0, "delta": {{"content": said}}, "finish_reason": "stop"}}]}}]
        chunks.append({{"choices": [], "usage": {{"prompt_tokens": 5, "completion_tokens": 2}}}})
        body = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks) + b"data: [DONE]\n\n"
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_unix_server(answer, told["--uds"])
    await server.serve_forever()

asyncio.run(main())
"""


def test_a_node_serves_a_plan_on_accelerators_each_replica_on_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM is a stand-in that says which devices it was shown."""
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable))
    python.chmod(0o755)
    monkeypatch.setenv("POLYPOD_PYTHON_VLLM", str(python))
    pool = {"on": "a", "engine": "vllm", "layout": {"tp": 2}, "replicas": 2}
    plan = plan_of(tmp_path, pool, a="nvidia-h200-sxm:4")
    ready = prepare(plan, run_folder(tmp_path), lambda: machine(nvidia_h200_sxm=[2, 3, 0, 1]))

    async def run() -> dict[str | None, str]:
        stop = asyncio.Event()
        async with LiveNode(ready, bind("127.0.0.1", 0)) as live:
            serving = asyncio.create_task(live.serve(stop))
            names = ("pool0.0-0", "pool0.0-1")
            said = [await live.ask("who?", max_tokens=4, replica=name) for name in names]
            stop.set()
            await serving
        return {one.replica: one.text for one in said}

    assert asyncio.run(run()) == {
        "pool0.0-0": f"{QWEN} on 2,3",
        "pool0.0-1": f"{QWEN} on 0,1",
    }
