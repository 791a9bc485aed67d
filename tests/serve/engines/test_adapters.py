"""What adapters say on a command line and in an environment: documented flags, the right devices, and no secret where others see it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polypod.errors import InputError
from polypod.plan.emitted import VISIBLE
from polypod.plan.flags import flags_of
from polypod.serve.engines import ENGINES, USUAL, EngineSpec
from polypod.serve.engines.facts import facts_of, listens_on_port, platform_of
from polypod.serve.engines.mindie import CONFIG_VARIABLE
from polypod.serve.engines.python import python_of, version_in
from polypod.serve.engines.spec import SECRET_VARIABLE, StageSpec

SECRET = "open sesame"
FOREIGN = ("vllm", "sglang", "lmdeploy")
MINDIE_CONFIG = {
    "ServerConfig": {"ipAddress": "0.0.0.0", "port": 1025, "httpsEnabled": True, "maxLinkNum": 300},
    "BackendConfig": {"ModelDeployConfig": {"ModelConfig": [{"modelWeightPath": "MODEL", "tp": 8}]}},
}  # fmt: skip


def spec(**said: Any) -> EngineSpec:
    usual = {
        "replica": "r-0", "model": "smol", "weights": Path("/models/smol"), "cores": (2, 3), "context_tokens": 2048, "max_sequences": 4,
        "socket": Path("/run/p/r-0.sock"), "secret": SECRET, "log": Path("/logs/r-0.log"), "port": 4321,
    }  # fmt: skip
    return EngineSpec(**usual | said)


def after(command: list[str], flag: str) -> str:
    assert command.count(flag) == 1, command
    return command[command.index(flag) + 1]


def documented(engine: str) -> set[str]:
    facts = facts_of(engine)
    planned = flags_of(engine).names if engine in FOREIGN else ()
    return {*planned, *facts.flags}


@pytest.mark.parametrize("engine", FOREIGN)
@pytest.mark.parametrize("stages", [(), (StageSpec(cores=(2,), layers=20), StageSpec(cores=(3,), layers=10))])  # fmt: skip
def test_every_flag_is_documented(engine: str, stages: tuple[StageSpec, ...]) -> None:
    command = ENGINES[engine].command(spec(stages=stages, cache_bytes=1 << 30))
    ours = {"--cores", "--secret-flag"}  # of bootstrap.py
    flags = {word for word in command if word.startswith("--")} - ours

    assert flags
    assert flags <= documented(engine)


@pytest.mark.parametrize("engine", [*ENGINES])
def test_the_secret_is_in_the_environment_and_on_no_command_line(engine: str) -> None:
    made = spec(variables=((CONFIG_VARIABLE, json.dumps(MINDIE_CONFIG)),))
    command, environment = ENGINES[engine].command(made), ENGINES[engine].environment(made)

    assert not any(SECRET in word for word in command)
    named = {name for name, value in environment.items() if SECRET in value}
    assert named == {"vllm": {"VLLM_API_KEY"}, "mindie": set()}.get(engine, {SECRET_VARIABLE})


def test_vllm_serves_on_our_socket_with_what_was_planned() -> None:
    command = ENGINES["vllm"].command(spec(port=None, cache_bytes=12345))

    assert command[1].endswith("bootstrap.py")
    assert after(command, "--cores") == "2,3"
    assert after(command, "--uds") == "/run/p/r-0.sock"
    assert after(command, "--model") == "/models/smol"
    assert after(command, "--max-model-len") == "2048"
    assert after(command, "--max-num-seqs") == "4"
    assert after(command, "--kv-cache-memory-bytes") == "12345"
    assert after(command, "--dtype") == "float32"
    assert "--enforce-eager" in command
    assert "VLLM_PP_LAYER_PARTITION" not in ENGINES["vllm"].environment(spec(port=None))
    assert json.loads(after(command, "--override-generation-config"))["temperature"] == 0.8


def test_vllm_in_stages_has_a_process_on_each_ones_cores_with_its_layers() -> None:
    stages = (StageSpec(cores=(0, 1), layers=20), StageSpec(cores=(2,), layers=10))
    made = spec(stages=stages, cores=(0, 1, 2))
    command, environment = ENGINES["vllm"].command(made), ENGINES["vllm"].environment(made)

    assert after(command, "--pipeline-parallel-size") == "2"
    assert after(command, "--distributed-executor-backend") == "mp"
    assert "--enforce-eager" not in command  # fails there, on its first request
    assert environment["VLLM_PP_LAYER_PARTITION"] == "20,10"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0,1|2"


def test_of_an_accelerator_nothing_is_said_that_is_a_cpus() -> None:
    arguments = ("--tensor-parallel-size", "2", "--kv-cache-dtype", "fp8")
    made = spec(platform="cann", devices=("6", "7"), cores=(), arguments=arguments)
    command, environment = ENGINES["vllm"].command(made), ENGINES["vllm"].environment(made)

    assert tuple(command[-4:]) == arguments
    assert not {"--enforce-eager", "--dtype", "--no-enable-prefix-caching", "--cores"} & {*command}
    assert environment["ASCEND_RT_VISIBLE_DEVICES"] == "6,7"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment


@pytest.mark.parametrize("engine", FOREIGN)
def test_processes_that_an_engine_starts_keep_the_mark_they_are_found_by(engine: str) -> None:
    """A process title is written over the environment unless setproctitle is told not to."""
    assert ENGINES[engine].environment(spec())["SPT_NOENV"] == "1"


@pytest.mark.parametrize("engine", [*FOREIGN, "mindie"])
def test_each_platform_keeps_the_process_to_its_devices(engine: str) -> None:
    rows = [row for row in facts_of(engine).platforms if row.stack != "cpu"]

    assert rows
    for row in rows:
        said = ((CONFIG_VARIABLE, json.dumps(MINDIE_CONFIG)),)
        made = spec(platform=row.stack, devices=("1", "3"), cores=(), variables=said)
        environment = ENGINES[engine].environment(made)
        assert environment[str(row.visible)] == "1,3"
        assert row.variables.items() <= environment.items()
        everything = ENGINES[engine].environment(replace(made, devices=()))
        assert row.visible not in everything  # all that are there


def test_platforms_agree_with_the_launch_files_of_plans() -> None:
    for engine in (*FOREIGN, "mindie"):
        for stack, variable in VISIBLE.items():
            row = platform_of(engine, stack)
            assert row is None or row.visible == variable, (engine, stack)


def test_vllms_table_has_every_kind_of_device_that_it_is_started_on() -> None:
    rows = {row.name for row in facts_of("vllm").platforms}
    assert rows >= {"cuda", "rocm", "cpu", "ascend", "mlu", "metax", "kunlun", "musa", "gaudi", "tpu"}  # fmt: skip


@pytest.mark.parametrize("engine", [*ENGINES])
def test_what_is_on_record_of_an_engine_has_its_sources(engine: str) -> None:
    facts = facts_of(engine)

    assert facts.engine == engine
    named = {facts.load_source, facts.flags_source, *(row.source for row in facts.platforms)}
    assert named - {None} <= facts.sources.keys()
    assert facts.load is not None
    assert facts.evidence == "run" or facts.engine not in {*USUAL["gguf"]}


def test_an_engine_without_a_file_has_nothing_on_record() -> None:
    assert facts_of("no such engine") is None
    assert not listens_on_port("no such engine")


def test_sglang_and_lmdeploy_listen_on_loopback_with_a_key_that_bootstrap_hands_on() -> None:
    sglang, lmdeploy = ENGINES["sglang"].command(spec()), ENGINES["lmdeploy"].command(spec())

    assert (after(sglang, "--host"), after(sglang, "--port")) == ("127.0.0.1", "4321")
    assert after(sglang, "--secret-flag") == "--api-key"
    assert (after(lmdeploy, "--server-name"), after(lmdeploy, "--server-port")) == ("127.0.0.1", "4321")  # fmt: skip
    assert after(lmdeploy, "--secret-flag") == "--api-keys"
    assert after(ENGINES["lmdeploy"].command(spec(platform="cann")), "--device") == "ascend"


def test_mindies_configuration_is_the_plans_at_this_starts_port_on_loopback() -> None:
    made = spec(variables=((CONFIG_VARIABLE, json.dumps(MINDIE_CONFIG)),))
    environment = ENGINES["mindie"].environment(made)
    config = json.loads(environment[CONFIG_VARIABLE])

    server, (model,) = config["ServerConfig"], config["BackendConfig"]["ModelDeployConfig"]["ModelConfig"]  # fmt: skip
    assert (server["ipAddress"], server["port"], server["httpsEnabled"]) == ("127.0.0.1", 4321, False)  # fmt: skip
    assert (server["managementPort"], server["metricsPort"], server["maxLinkNum"]) == (4322, 4323, 300)  # fmt: skip
    assert model == {"modelWeightPath": "/models/smol", "modelName": "smol", "tp": 8}
    assert environment["MIES_CONFIG_JSON_PATH"] == "/logs/r-0.mindie.json"


def test_mindie_without_a_plan_says_how_it_is_configured() -> None:
    with pytest.raises(InputError, match="configured by a plan's pool; serve it with --plan"):
        ENGINES["mindie"].environment(spec())


def test_an_engine_may_have_a_python_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n[ $3 = vllm-cpu ] && echo 9.9\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setenv("POLYPOD_PYTHON_VLLM", str(python))

    assert ENGINES["vllm"].version() == "9.9"
    assert ENGINES["vllm"].command(spec())[0] == str(python)

    monkeypatch.setenv("POLYPOD_PYTHON_VLLM", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"POLYPOD_PYTHON_VLLM=.*none is no program"):
        python_of("vllm")


def test_a_python_that_does_not_answer_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    python.chmod(0o755)

    with pytest.raises(InputError, match=r"python did not say which packages it has: .*3"):
        version_in(str(python), ("vllm",))
