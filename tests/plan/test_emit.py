"""Launch files: started with stand-ins for the engines, they must say what the plan says, in flags that the engines document."""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from polypod.cost.deployment import Deployment
from polypod.errors import InputError
from polypod.plan.emit import Wanted, emit, read_wanted
from polypod.plan.flags import TARGETS, Target, flags_of
from polypod.plan.place import island
from polypod.plan.predict import service_model
from polypod.plan.spec import Plan, read_plan

DEEPSEEK = "deepseek-ai/DeepSeek-V3"
QWEN = "Qwen/Qwen3-32B"
FP8 = {"weights": "fp8", "kv": "bf16"}

ADDRESSES = {
    "MODEL": "/models/the one", "HEAD_ADDR": "10.0.0.1", "NODE_ADDR": "10.0.0.2", "RANK_TABLE_FILE": "/ranks.json",
    "PROXY": "proxy.py", "PREFILL_HOSTS": "p0 p1", "DECODE_HOSTS": "d0",
}  # fmt: skip


def pool(**said: Any) -> dict[str, Any]:
    usual = {
        "role": "both", "on": "a", "layout": {"tp": 2}, "replicas": 1, "precision": {"weights": "bf16", "kv": "bf16"}, "state": "modelled",
        "max_sequences": 64, "max_step_tokens": 2048,
    }  # fmt: skip
    return usual | said


def plan_of(
    folder: Path, *pools: dict[str, Any], model: str = QWEN, context: int = 16384, **fleet: str
) -> Plan:
    """A plan file with these pools; `fleet` by name, as chip:count."""
    sources = {name: text.split(":") for name, text in (fleet or {"a": "nvidia-h200-sxm:8"}).items()}  # fmt: skip
    raw = {
        "polypod": 1,
        "fleet": {name: {"accelerator": chip, "count": int(count)} for name, (chip, count) in sources.items()},
        "services": [{"model": model, "context": context, "pools": list(pools)}],
    }  # fmt: skip
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return read_plan(path)


def deepseek(role: str = "both", **said: Any) -> dict[str, Any]:
    """Over several nodes of 910C."""
    usual = {"layout": {"tp": 2, "dp": 32, "ep": 64}, "precision": {"weights": "int8", "kv": "bf16"}, "max_sequences": 1000, "max_step_tokens": 256}  # fmt: skip
    return pool(role=role, **usual | said)


def apart(**said: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two replicas of prefill, one of decode, on one node."""
    first = pool(role="prefill", name="p", replicas=2, max_step_tokens=8192, **said)
    return first, pool(role="decode", name="d", layout={"tp": 4}, **said)


class Started:
    """What the stand-in engine was given: its arguments, and part of its environment."""

    def __init__(self, text: str) -> None:
        words, variables = text.split("\0\0")
        self.words = words.split("\0")
        self.env = dict(line.split("=", 1) for line in variables.splitlines() if "=" in line)

    def __getitem__(self, flag: str) -> str:
        return self.words[self.words.index(flag) + 1]

    def get(self, flag: str) -> str | None:
        return self[flag] if flag in self.words else None

    def __contains__(self, flag: str) -> bool:
        return flag in self.words


def start(files: Mapping[str, str], name: str, folder: Path, *arguments: str, **env: str) -> Started:  # fmt: skip
    """Run a script with engines that only say what they were given."""
    stand_in = "#!/bin/bash\nprintf '%s\\0' \"$@\"\nprintf '\\0'\nenv\n"
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    for program in ("vllm", "python3", "lmdeploy", "mindie_llm_server"):
        (bin_folder / program).write_text(stand_in, encoding="utf-8")
        (bin_folder / program).chmod(0o755)
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    said = {"PATH": f"{bin_folder}:/usr/bin:/bin", "TMPDIR": str(folder), **ADDRESSES, **env}
    done = subprocess.run(["/bin/bash", str(folder / name), *arguments], env=said, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Started(done.stdout)


def config(files: Mapping[str, str], name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files[name])
    return found


def wanted(engine: Target, *, force: bool = False, node_ranks: int | None = None) -> Wanted:
    return Wanted(default=engine, force=force, node_ranks=node_ranks)


SPREAD: tuple[Target, ...] = ("vllm", "sglang", "mindie")
"""Engines that spread one replica over nodes."""


def many(tmp_path: Path) -> list[tuple[Target, dict[str, str]]]:
    """Launch files of many kinds of pool."""
    drafts = {"num_speculative_tokens": 1, "acceptance": 0.7}
    ascend = {"a": "huawei-ascend-910c:64"}
    plans: list[tuple[Plan, tuple[Target, ...]]] = [
        (plan_of(tmp_path, pool(replicas=4)), ("vllm", "sglang", "lmdeploy")),
        (plan_of(tmp_path, pool(layout={"tp": 8}), a="huawei-ascend-910c:8"), TARGETS),
        (plan_of(tmp_path, deepseek(engine_args=drafts | {"prefix_hits": 0.5}), model=DEEPSEEK, **ascend), SPREAD),
        (plan_of(tmp_path, deepseek("prefill", name="p"), deepseek("decode", name="d"), model=DEEPSEEK, a="huawei-ascend-910c:64"), SPREAD),
        (plan_of(tmp_path, *apart()), ("vllm", "sglang")),
        (plan_of(tmp_path, pool(layout={"tp": 8, "pp": 2}, engine="sglang"), a="nvidia-h20:16"), ("vllm", "sglang")),
        (plan_of(tmp_path, pool(engine_args=drafts | {"prefix_hits": 0.0, "prefill": "chunked"})), ("vllm", "sglang")),
        (plan_of(tmp_path, pool(precision={"weights": "fp8", "kv": "fp8"})), ("vllm", "sglang", "lmdeploy")),
        (plan_of(tmp_path, deepseek(layout={"tp": 16}, engine_args=drafts), model=DEEPSEEK, a="huawei-ascend-910c:16"), ("lmdeploy",)),
        (plan_of(tmp_path, pool(precision={"weights": "int8", "kv": "bf16"})), ("vllm", "sglang")),
        (plan_of(tmp_path, pool(engine_args={"prefill": "exclusive", "prefix_hits": 0.3}, max_step_tokens=16384)), ("vllm", "sglang")),
        (plan_of(tmp_path, pool(layout={"dp": 4})), ("vllm", "sglang")),
        (plan_of(tmp_path, *(deepseek(role, layout={"dp": 16, "ep": 16}, precision=FP8, name=role) for role in ("prefill", "decode")), model=DEEPSEEK, a="nvidia-h200-sxm:32"), ("vllm", "sglang")),
    ]  # fmt: skip
    return [(engine, emit(plan, wanted(engine))) for plan, engines in plans for engine in engines]


def test_every_script_parses_and_every_flag_is_documented(tmp_path: Path) -> None:
    """Referee: the engines' own sources, as flags-*.toml has them."""
    seen: dict[Target, set[str]] = {engine: set() for engine in TARGETS}
    for engine, files in many(tmp_path):
        for name, text in files.items():
            if name.endswith(".sh"):
                subprocess.run(["/bin/bash", "-n", "-c", text], check=True)
                seen[engine] |= _flags(text)
            elif name.endswith(".json"):
                seen[engine] |= set(_keys(json.loads(text)))
    for engine, flags in seen.items():
        assert flags <= flags_of(engine).names, engine
        assert len(flags) >= (15 if engine == "lmdeploy" else 25)
    assert {"--headless", "--nnodes", "--kv-transfer-config", "--all2all-backend"} <= seen["vllm"]
    assert {"--disaggregation-mode", "--moe-a2a-backend", "--pp-size"} <= seen["sglang"]


def _flags(script: str) -> set[str]:
    code = [re.sub(r"  # .*", "", line) for line in script.splitlines() if not line.startswith("#")]
    return {word for line in code for word in re.findall(r"(?<![\w-])--[a-z][\w-]*", line)}


def _keys(value: Any, place: str = "") -> list[str]:
    if isinstance(value, list):
        return [key for one in value for key in _keys(one, place)]
    if not isinstance(value, dict):
        return []
    return [found for key, inner in value.items() for found in (f"{place}{key}", *_keys(inner, f"{place}{key}."))]  # fmt: skip


@pytest.mark.parametrize("engine", TARGETS)
def test_every_documented_flag_names_a_source_and_is_listed_once(engine: Target) -> None:
    flags = flags_of(engine)
    assert flags.engine == engine
    for kind in (flags.flags, flags.router, flags.environment):
        names = [one.name for one in kind]
        assert len(names) == len(set(names))
        assert {one.source for one in kind} <= set(flags.sources)
    assert all(url.startswith("https://") for url in flags.sources.values())


def test_one_node_of_vllm_says_what_the_plan_says(tmp_path: Path) -> None:
    files = emit(plan_of(tmp_path, pool(replicas=4)), wanted("vllm"))
    started = start(files, "pool0.0-both.sh", tmp_path, "3")

    assert started.words[:2] == ["serve", "/models/the one"]
    assert started["--tensor-parallel-size"] == "2"
    assert started["--max-num-seqs"] == "64"
    assert started["--max-num-batched-tokens"] == "2048"
    assert started["--max-model-len"] == "16384"
    assert started["--gpu-memory-utilization"] == "0.9"
    assert started["--dtype"] == "bfloat16"
    assert started["--port"] == "8003"
    assert started.env["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert "--data-parallel-size" not in started
    assert "--enable-expert-parallel" not in started


def test_replicas_of_two_pools_share_a_node_without_sharing_devices_or_ports(tmp_path: Path) -> None:  # fmt: skip
    files = emit(plan_of(tmp_path, *apart()), wanted("vllm"))
    runs = [start(files, name, tmp_path, replica) for name, replica in (("p-prefill.sh", "0"), ("p-prefill.sh", "1"), ("d-decode.sh", "0"))]  # fmt: skip

    assert [run.env["CUDA_VISIBLE_DEVICES"] for run in runs] == ["0,1", "2,3", "4,5,6,7"]
    assert len({run["--port"] for run in runs}) == 3
    assert len({run.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] for run in runs}) == 3
    connector = json.loads(runs[0]["--kv-transfer-config"])
    assert connector == {"kv_connector": "NixlConnector", "kv_role": "kv_both"}


def test_data_parallel_ranks_of_vllm_cover_all_nodes_once(tmp_path: Path) -> None:
    files = emit(plan_of(tmp_path, deepseek(), model=DEEPSEEK, a="huawei-ascend-910c:64"), wanted("vllm"))  # fmt: skip
    nodes = sorted(name for name in files if name.endswith(".sh"))
    runs = [start(files, f"pool0.0-both-node{node}.sh", tmp_path) for node in range(len(nodes))]

    assert len(nodes) == 4  # 64 ranks over nodes of 16
    firsts = [int(run["--data-parallel-start-rank"]) for run in runs]
    sizes = [int(run["--data-parallel-size-local"]) for run in runs]
    covered = [rank for first, size in zip(firsts, sizes, strict=True) for rank in range(first, first + size)]  # fmt: skip
    assert covered == list(range(32))
    assert {run["--data-parallel-size"] for run in runs} == {"32"}
    assert ["--headless" in run for run in runs] == [False, True, True, True]
    assert {run["--data-parallel-address"] for run in runs} == {"10.0.0.1"}
    assert runs[0]["--max-num-seqs"] == "32"  # 1000 / 32, rounded up
    assert runs[0]["--max-num-batched-tokens"] == "256"
    assert runs[0]["--quantization"] == "ascend"
    assert "--enable-expert-parallel" in runs[0]


def test_pipeline_stages_over_nodes_are_numbered(tmp_path: Path) -> None:
    files = emit(plan_of(tmp_path, pool(layout={"tp": 8, "pp": 2}), a="nvidia-h200-sxm:16"), wanted("vllm"))  # fmt: skip
    runs = [start(files, f"pool0.0-both-node{node}.sh", tmp_path) for node in (0, 1)]

    assert [(run["--nnodes"], run["--node-rank"], "--headless" in run) for run in runs] == [("2", "0", False), ("2", "1", True)]  # fmt: skip
    assert runs[1]["--master-addr"] == "10.0.0.1"
    assert runs[1]["--pipeline-parallel-size"] == "2"


def test_sglang_counts_tensor_ranks_budgets_and_requests_of_all_attention_groups(tmp_path: Path) -> None:  # fmt: skip
    """Referee: SGLang's own division of --chunked-prefill-size and --max-running-requests by its attention groups."""
    files = emit(plan_of(tmp_path, deepseek(), model=DEEPSEEK, a="huawei-ascend-910c:64"), wanted("sglang"))  # fmt: skip
    run = start(files, "pool0.0-both-node3.sh", tmp_path)

    assert run.words[:2] == ["-m", "sglang.launch_server"]
    assert (run["--tp-size"], run["--dp-size"], run["--ep-size"]) == ("64", "32", "64")
    assert "--enable-dp-attention" in run
    assert int(run["--chunked-prefill-size"]) // int(run["--dp-size"]) == 256
    assert int(run["--max-running-requests"]) // int(run["--dp-size"]) == 32
    assert int(run["--max-prefill-tokens"]) == 256
    assert (run["--nnodes"], run["--node-rank"], run["--dist-init-addr"]) == ("4", "3", "10.0.0.1:25000")  # fmt: skip
    assert (run["--device"], run["--quantization"], run["--moe-a2a-backend"]) == ("npu", "modelslim", "deepep")  # fmt: skip
    assert "--enable-mixed-chunk" in run
    assert 0.88 < float(run["--mem-fraction-static"]) < 0.9


def test_copies_of_a_model_without_experts_are_no_attention_groups(tmp_path: Path) -> None:
    run = start(emit(plan_of(tmp_path, pool(layout={"dp": 4})), wanted("sglang")), "pool0.0-both.sh", tmp_path)  # fmt: skip
    assert (run["--tp-size"], run["--dp-size"]) == ("1", "4")
    assert "--enable-dp-attention" not in run
    assert (run["--max-running-requests"], run["--chunked-prefill-size"]) == ("16", "2048")


def test_lmdeploy_gets_the_cache_as_its_part_of_what_weights_and_activations_leave(tmp_path: Path) -> None:  # fmt: skip
    """Referee: `_get_runtime_size` and `_update_num_gpu_blocks` of LMDeploy 0.18, which multiply what is free by it."""
    plan = plan_of(tmp_path, pool(replicas=4, max_step_tokens=4096))
    run = start(emit(plan, wanted("lmdeploy")), "pool0.0-both.sh", tmp_path, "2")

    assert run.words[:3] == ["serve", "api_server", "/models/the one"]
    assert (run["--tp"], run["--device"], run["--backend"]) == ("2", "cuda", "pytorch")
    assert (run["--session-len"], run["--max-batch-size"]) == ("16384", "64")
    assert (run["--max-prefill-token-num"], run["--quant-policy"]) == ("4096", "none")
    assert run["--server-port"] == "23335"
    assert run.env["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert "--enable-prefix-caching" in run
    memory = Deployment(
        model=service_model(plan.services[0]),
        layout=plan.services[0].pools[0].layout,
        precision=plan.services[0].pools[0].precision,
        rank=island("a", plan.fleet["a"], None).rank,
    ).memory()
    free_bytes = 141e9 - memory.weight_bytes - memory.activation_bytes
    assert float(run["--cache-max-entry-count"]) * free_bytes == pytest.approx(memory.kv_bytes, rel=2e-3)  # fmt: skip


def test_lmdeploy_drafts_with_the_models_own_layers(tmp_path: Path) -> None:
    drafts = {"num_speculative_tokens": 2, "acceptance": 0.7}
    plan = plan_of(tmp_path, deepseek(layout={"tp": 16}, engine_args=drafts), model=DEEPSEEK, a="huawei-ascend-910c:16")  # fmt: skip
    run = start(emit(plan, wanted("lmdeploy")), "pool0.0-both.sh", tmp_path)
    assert (run["--speculative-algorithm"], run["--speculative-num-draft-tokens"]) == ("deepseek_mtp", "2")  # fmt: skip
    assert run["--device"] == "ascend"


@pytest.mark.parametrize(
    ("said", "fleet", "says"),
    [
        ({"layout": {"dp": 4}}, "nvidia-h200-sxm:8", r"dp=4, ep=1: LMDeploy's data-parallel ranks are servers"),
        ({"layout": {"tp": 8, "pp": 2}}, "nvidia-h200-sxm:16", "pp=2: LMDeploy has no pipeline stages"),
        ({"layout": {"tp": 16}}, "nvidia-h200-sxm:16", "16 ranks on nodes of 8 devices"),
        ({"precision": {"weights": "mxfp4", "kv": "bf16"}}, "nvidia-h200-sxm:8", "weights in mxfp4"),
        ({"engine_args": {"prefill": "chunked"}}, "nvidia-h200-sxm:8", "prefill=chunked: LMDeploy computes prompts"),
        ({"engine_args": {"num_speculative_tokens": 1, "acceptance": 0.7}}, "nvidia-h200-sxm:8", "1 drafts: with layers of its own LMDeploy drafts for deepseek_v3"),
        ({"role": "prefill", "name": "p"}, "nvidia-h200-sxm:8", "a prefill pool without a decode pool"),
    ],
)  # fmt: skip
def test_what_lmdeploy_has_no_flag_for_is_refused_with_the_way_out(tmp_path: Path, said: dict[str, Any], fleet: str, says: str) -> None:  # fmt: skip
    with pytest.raises(InputError, match=says):
        emit(plan_of(tmp_path, pool(**said), a=fleet), wanted("lmdeploy"))


def test_mindie_gets_a_config_of_the_same_world_and_budget(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, pool(layout={"tp": 8}, replicas=2), a="huawei-ascend-910c:8")
    files = emit(plan, wanted("mindie"))
    backend = config(files, "pool0.0-both.json")["BackendConfig"]
    model = backend["ModelDeployConfig"]["ModelConfig"][0]
    schedule = backend["ScheduleConfig"]

    assert model["worldSize"] == model["tp"] == 8
    assert backend["npuDeviceIds"] == [list(range(8))]
    assert backend["ModelDeployConfig"]["maxSeqLen"] == 16384
    assert schedule["maxBatchSize"] == 64
    assert (schedule["templateType"], schedule["prefillChunkSize"]) == ("Mix", 2048)
    assert schedule["maxPrefillTokens"] >= backend["ModelDeployConfig"]["maxInputTokenLen"]
    assert json.loads(model["plugin_params"]) == {"plugin_type": "splitfuse"}
    run = start(files, "pool0.0-both.sh", tmp_path, "1", MODEL="/models/a|b & c")
    used = json.loads(Path(run.env["MIES_CONFIG_JSON_PATH"]).read_text(encoding="utf-8"))
    assert used["BackendConfig"]["ModelDeployConfig"]["ModelConfig"][0]["modelWeightPath"] == "/models/a|b & c"  # fmt: skip
    assert used["ServerConfig"]["port"] == config(files, "pool0.0-both.json")["ServerConfig"]["port"] + 3  # fmt: skip
    assert run.env["ASCEND_RT_VISIBLE_DEVICES"] == "8,9,10,11,12,13,14,15"
    assert run.env["NPU_MEMORY_FRACTION"] == "0.9"


def test_experts_and_drafts_of_mindie_are_cut_as_planned(tmp_path: Path) -> None:
    drafts = {"num_speculative_tokens": 2, "acceptance": 0.7, "prefix_hits": 0.5}
    plan = plan_of(tmp_path, deepseek(engine_args=drafts), model=DEEPSEEK, a="huawei-ascend-910c:64")  # fmt: skip
    files = emit(plan, wanted("mindie"))
    model = config(files, "pool0.0-both.json")["BackendConfig"]["ModelDeployConfig"]["ModelConfig"][0]  # fmt: skip

    assert model["tp"] * model["dp"] == model["worldSize"] == 64
    assert model["moe_ep"] * model["moe_tp"] == 64
    assert model["models"]["deepseekv2"] == {"ep_level": 2, "kv_cache_options": {"enable_nz": True}}
    assert json.loads(model["plugin_params"]) == {"plugin_type": "mtp,prefix_cache", "num_speculative_tokens": 2}  # fmt: skip
    run = start(files, "pool0.0-both.sh", tmp_path)
    assert (run.env["RANK_TABLE_FILE"], run.env["MASTER_IP"], run.env["MIES_CONTAINER_IP"]) == ("/ranks.json", "10.0.0.1", "10.0.0.2")  # fmt: skip
    assert "predicted with chunked prefill; MindIE computes prompts of deepseek_v3 in steps of their own" in files["README.md"]  # fmt: skip


def test_drafts_of_the_model_itself_or_of_another_are_said_in_each_engines_way(tmp_path: Path) -> None:  # fmt: skip
    drafts = {"num_speculative_tokens": 3, "acceptance": 0.7}
    own = plan_of(tmp_path, deepseek(engine_args=drafts), model=DEEPSEEK, a="huawei-ascend-910c:64")
    run = start(emit(own, wanted("vllm")), "pool0.0-both-node0.sh", tmp_path)
    assert json.loads(run["--speculative-config"]) == {"method": "mtp", "num_speculative_tokens": 3}
    run = start(emit(own, wanted("sglang")), "pool0.0-both-node0.sh", tmp_path)
    assert (run["--speculative-algorithm"], run["--speculative-num-steps"], run["--speculative-num-draft-tokens"]) == ("NEXTN", "3", "4")  # fmt: skip
    other = plan_of(tmp_path, pool(engine_args=drafts))
    run = start(emit(other, wanted("vllm")), "pool0.0-both.sh", tmp_path, DRAFT_MODEL="/models/draft")  # fmt: skip
    assert json.loads(run["--speculative-config"]) == {"method": "eagle3", "model": "/models/draft", "num_speculative_tokens": 3}  # fmt: skip
    run = start(emit(other, wanted("sglang")), "pool0.0-both.sh", tmp_path, DRAFT_MODEL="/models/draft")  # fmt: skip
    assert (run["--speculative-algorithm"], run["--speculative-draft-model-path"]) == ("EAGLE3", "/models/draft")  # fmt: skip


def test_prefill_on_ascend_is_told_of_decode_and_drafts_one_token(tmp_path: Path) -> None:
    """Referee: vllm-ascend's guide of prefill and decode apart."""
    drafts = {"num_speculative_tokens": 3, "acceptance": 0.7}
    first = deepseek("prefill", name="p", engine_args=drafts, layout={"dp": 32, "ep": 32})
    plan = plan_of(tmp_path, first, deepseek("decode", name="d", engine_args=drafts), model=DEEPSEEK, a="huawei-ascend-910c:48")  # fmt: skip
    files = emit(plan, wanted("vllm"))
    prefill = start(files, "p-prefill-node0.sh", tmp_path)
    decode = start(files, "d-decode-node0.sh", tmp_path)

    sizes = {"prefill": {"dp_size": 32, "tp_size": 1}, "decode": {"dp_size": 32, "tp_size": 2}}
    assert json.loads(prefill["--kv-transfer-config"]) == {
        "kv_connector": "MooncakeConnectorV1", "kv_role": "kv_producer", "kv_port": "36000", "kv_connector_extra_config": sizes,
    }  # fmt: skip
    taken = json.loads(decode["--kv-transfer-config"])
    assert (taken["kv_role"], taken["kv_port"]) == ("kv_consumer", "37000")
    assert [json.loads(run["--speculative-config"])["num_speculative_tokens"] for run in (prefill, decode)] == [1, 3]  # fmt: skip


def test_routers_send_to_every_replica_of_both_roles(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *apart())
    run = start(emit(plan, wanted("vllm")), "router.sh", tmp_path)
    assert run.words[0] == "proxy.py"
    ports = run.words.index("--prefiller-ports")
    assert run.words[ports + 1 : ports + 3] == ["8000", "8001"]
    assert run["--decoder-ports"] == "8100"
    files = emit(plan, wanted("sglang"))
    run = start(files, "router.sh", tmp_path)
    ends = [run.words[i + 1] for i, word in enumerate(run.words) if word in ("--prefill", "--decode")]  # fmt: skip
    assert ends == ["http://p0:30000", "http://p1:30001", "http://d0:30100"]
    boots = [run.words[i + 2] for i, word in enumerate(run.words) if word == "--prefill"]
    assert boots == [start(files, "p-prefill.sh", tmp_path, n)["--disaggregation-bootstrap-port"] for n in "01"]  # fmt: skip


def test_a_plan_of_three_chips_is_written_for_three_engines(tmp_path: Path) -> None:
    pools = (pool(on="a"), pool(on="b", layout={"tp": 8}), pool(on="c", layout={"tp": 8}))
    plan = plan_of(tmp_path, *pools, a="nvidia-h200-sxm:8", b="huawei-ascend-910c:8", c="hygon-bw1000:8")  # fmt: skip
    files = emit(plan, read_wanted(["vllm", "b=mindie", "pool0.2=sglang"]))

    assert sorted(files) == ["README.md", "pool0.0-both.sh", "pool0.1-both.json", "pool0.1-both.sh", "pool0.2-both.sh"]  # fmt: skip
    assert "exec vllm serve" in files["pool0.0-both.sh"]
    assert "exec mindie_llm_server" in files["pool0.1-both.sh"]
    assert "exec python3 -m sglang.launch_server" in files["pool0.2-both.sh"]
    assert "a node of hygon-bw1000 is taken to have 8 devices" in files["README.md"]
    assert "SGLang on hygon-bw1000: reported" in files["README.md"]


@pytest.mark.parametrize("axis", ["tp", "max_sequences", "max_step_tokens"])
@pytest.mark.parametrize("engine", TARGETS)
def test_one_more_in_the_plan_is_another_launch(tmp_path: Path, engine: Target, axis: str) -> None:
    """Nothing that the plan sets is written from a default."""
    fleet = {"a": "huawei-ascend-910c:8"}
    before = emit(plan_of(tmp_path, pool(), **fleet), wanted(engine))
    more = {"layout": {"tp": 4}} if axis == "tp" else {axis: pool()[axis] + 1}
    after = emit(plan_of(tmp_path, pool(**more), **fleet), wanted(engine))
    changed = [name for name in before if name != "README.md" and before[name] != after[name]]
    assert changed
    value = "4" if axis == "tp" else str(pool()[axis] + 1)
    assert any(re.search(rf"\b{value}\b", after[name]) for name in changed)


@pytest.mark.parametrize(
    ("replica", "says"), [("4", "the plan has replicas 0 to 3"), ("-1", "-1 is no number of a replica"), ("x", "x is no number of a replica")]
)  # fmt: skip
def test_a_replica_that_is_not_planned_is_not_started(tmp_path: Path, replica: str, says: str) -> None:  # fmt: skip
    text = emit(plan_of(tmp_path, pool(replicas=4)), wanted("vllm"))["pool0.0-both.sh"]
    done = subprocess.run(["/bin/bash", "-c", text, "script", replica], capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 2
    assert says in done.stderr


def test_a_checkpoint_that_must_be_quantised_has_to_be_named(tmp_path: Path) -> None:
    text = emit(plan_of(tmp_path, pool(precision={"weights": "int8", "kv": "bf16"})), wanted("vllm"))["pool0.0-both.sh"]  # fmt: skip
    done = subprocess.run(["/bin/bash", "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "the path of Qwen/Qwen3-32B, quantised to int8" in done.stderr


H200 = {"a": "nvidia-h200-sxm:64"}
ASCEND = {"a": "huawei-ascend-910c:64"}


@pytest.mark.parametrize(
    ("engine", "model", "fleet", "change", "says"),
    [
        ("mindie", QWEN, H200, {}, r"MindIE on nvidia-h200-sxm is unknown: no source .* on record for nvidia-h200-sxm: vLLM \(supported, .*--force .* at `\$\.services\[0\]\.pools\[0\]`"),
        ("vllm", DEEPSEEK, H200, {"layout": {"tp": 4, "dp": 4, "ep": 8}, "precision": FP8}, r"ep=8: vLLM spreads experts over all tp\*dp=16 ranks .* plan with ep=16 or ep=1"),
        ("vllm", QWEN, H200, {"precision": {"weights": "q4_0", "kv": "bf16"}}, "weights in q4_0: a GGUF format, which polypod up serves"),
        ("sglang", QWEN, H200, {"precision": {"weights": "q4_0", "kv": "bf16"}}, "weights in q4_0: a GGUF format"),
        ("mindie", QWEN, ASCEND, {"precision": {"weights": "mxfp4", "kv": "bf16"}}, "weights in mxfp4: MindIE serves bf16, fp16, int8, int4"),
        ("vllm", QWEN, H200, {"precision": {"weights": "bf16", "kv": "int8"}}, "cache in int8: no --kv-cache-dtype of vLLM is written for it"),
        ("sglang", QWEN, H200, {"precision": {"weights": "bf16", "kv": "int8"}}, "cache in int8: --kv-cache-dtype of SGLang"),
        ("mindie", QWEN, ASCEND, {"precision": {"weights": "bf16", "kv": "int8"}}, "cache in int8: of a quantised cache MindIE"),
        ("vllm", QWEN, H200, {"max_step_tokens": 63}, "max_step_tokens=63 for 64 sequences .* raise max_step_tokens to 64"),
        ("vllm", QWEN, H200, {"engine_args": {"prefill": "exclusive"}}, r"prefill=exclusive with max_step_tokens=2048: .* the whole context, 16384; set the service's context to 2048"),
        ("vllm", QWEN, H200, {"layout": {"tp": 8, "pp": 2, "dp": 2}}, r"tp\*pp=16 on nodes of 8 devices: with data parallelism vLLM keeps"),
        ("vllm", QWEN, H200, {"layout": {"tp": 4, "pp": 3}}, r"tp\*pp=12 on nodes of 8 devices: vLLM takes as many on every node"),
        ("sglang", DEEPSEEK, H200, {"layout": {"pp": 2, "dp": 8, "ep": 8}, "precision": FP8}, r"pp=2 with dp=8: SGLang .*issues/9805.* plan with pp=1 or dp=1, or emit for vllm"),
        ("sglang", QWEN, H200, {"layout": {"pp": 2}, "engine_args": {"num_speculative_tokens": 1}}, "pp=2 with 1 drafts: SGLang refuses"),
        ("sglang", QWEN, H200, {"layout": {"pp": 2}, "engine_args": {"prefill": "chunked"}}, "prefill=chunked with pp=2: SGLang mixes no prompts"),
        ("sglang", QWEN, H200, {"layout": {"tp": 4, "dp": 4}}, "dp=4 over 2 nodes: SGLang runs copies of Qwen/Qwen3-32B, .* plan with dp=1 and more replicas"),
        ("mindie", QWEN, ASCEND, {"layout": {"pp": 2}}, "pp=2: MindIE's documents have no pipeline stages"),
        ("mindie", "Qwen/Qwen3-235B-A22B", ASCEND, {"layout": {"tp": 4, "dp": 4, "ep": 16}}, "ep=16: MindIE spreads the experts of deepseek_v2, .* is qwen3_moe"),
        ("mindie", QWEN, ASCEND, {"layout": {"tp": 8, "dp": 3}}, "24 ranks on nodes of 16 devices: MindIE takes whole nodes; plan with a multiple of 16"),
        ("mindie", DEEPSEEK, ASCEND, {"layout": {"dp": 32, "ep": 32}, "precision": {"weights": "int8", "kv": "bf16"}, "engine_args": {"prefill": "chunked"}}, "prefill=chunked: MindIE's SplitFuse mixes prompts with decode for llama"),
        ("mindie", DEEPSEEK, ASCEND, {"layout": {"dp": 32, "ep": 32}, "precision": {"weights": "int8", "kv": "bf16"}, "engine_args": {"num_speculative_tokens": 3}}, "3 drafts: MindIE's MTP takes 1 or 2"),
        ("mindie", QWEN, ASCEND, {"engine_args": {"num_speculative_tokens": 1}}, "1 drafts: MindIE drafts with the MTP layers of"),
        ("vllm", QWEN, H200, {"role": "prefill"}, "a prefill pool without a decode pool of its service; add one, or make its role both"),
        ("vllm", QWEN, {"a": "thead-zhenwu-810e:16"}, {"layout": {"tp": 8, "cp": 2}}, "cp=2: no launch file is written with context parallelism"),
    ],
)  # fmt: skip
def test_what_an_engine_has_no_flag_for_is_refused_with_the_way_out(
    tmp_path: Path, engine: Target, model: str, fleet: dict[str, str], change: dict[str, Any], says: str
) -> None:  # fmt: skip
    plan = plan_of(tmp_path, pool(**change), model=model, **fleet)
    with pytest.raises(InputError, match=says):
        emit(plan, wanted(engine))


def test_what_nobody_says_is_written_only_when_forced(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, pool(layout={"tp": 4}), a="google-tpu-v6e:8")
    with pytest.raises(InputError, match=r"SGLang on google-tpu-v6e is unknown: .*--force"):
        emit(plan, wanted("sglang"))
    files = emit(plan, wanted("sglang", force=True))
    assert "SGLang on google-tpu-v6e: unknown" in files["README.md"]
    assert "takes 4 of a node's 8 devices: which ones, your container must say" in files["pool0.0-both.sh"]  # fmt: skip


def test_what_a_source_rules_out_is_refused_even_when_forced(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *apart(on="a"), a="thead-zhenwu-810e:8")
    with pytest.raises(InputError, match=r"role prefill on thead-zhenwu-810e: no connector of vLLM is documented"):  # fmt: skip
        emit(plan, wanted("vllm", force=True))


def test_prefill_and_decode_on_engines_or_stacks_of_different_kinds_are_refused(tmp_path: Path) -> None:  # fmt: skip
    first, second = pool(role="prefill", name="p"), pool(role="decode", name="d", on="b")
    plan = plan_of(tmp_path, first, second, a="nvidia-h200-sxm:8", b="nvidia-h20:8")
    with pytest.raises(InputError, match=r"prefill by vllm and decode by sglang: engines of different kinds .* give both pools one engine"):  # fmt: skip
        emit(plan, read_wanted(["vllm", "d=sglang"]))
    plan = plan_of(tmp_path, first, second, a="huawei-ascend-910c:8", b="nvidia-h20:8")
    with pytest.raises(InputError, match=r"huawei-ascend-910c hands a cache on with MooncakeConnectorV1, nvidia-h20 takes it with NixlConnector; on record: "):  # fmt: skip
        emit(plan, wanted("vllm"))


def test_a_node_is_as_large_as_it_is_said_to_be(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, pool(layout={"tp": 8}), a="nvidia-gb200:8")
    assert (
        len([name for name in emit(plan, wanted("vllm")) if name.endswith(".sh")]) == 2
    )  # trays of 4
    assert "pool0.0-both.sh" in emit(plan, wanted("vllm", node_ranks=8))


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (
            ["trtllm"],
            "--engine 'trtllm': launch files are written for vllm, sglang, lmdeploy, mindie",
        ),
        (["vllm", "sglang"], "--engine is said twice, vllm and sglang; say POOL=sglang"),
        (["z=vllm"], "no engine is given for pool 'pool0.0' on 'a'"),
        (
            ["vllm", "z=vllm"],
            "--engine z=...: the plan has no pool and no part .* it has a, pool0.0",
        ),
    ],
)
def test_an_engine_for_a_pool_that_is_not_there_is_refused(tmp_path: Path, texts: list[str], says: str) -> None:  # fmt: skip
    plan = plan_of(tmp_path, pool())
    with pytest.raises(InputError, match=says):
        emit(plan, read_wanted(texts))


def test_arguments_of_vllm_are_these_and_no_others(tmp_path: Path) -> None:
    run = start(emit(plan_of(tmp_path, pool()), wanted("vllm")), "pool0.0-both.sh", tmp_path)
    assert run.words == [
        "serve", "/models/the one", "--served-model-name", QWEN, "--host", "0.0.0.0", "--port", "8000", "--dtype", "bfloat16",
        "--kv-cache-dtype", "auto", "--tensor-parallel-size", "2", "--max-model-len", "16384", "--max-num-seqs", "64",
        "--max-num-batched-tokens", "2048", "--gpu-memory-utilization", "0.9",
    ]  # fmt: skip


def test_arguments_of_sglang_are_these_and_no_others(tmp_path: Path) -> None:
    run = start(emit(plan_of(tmp_path, pool()), wanted("sglang")), "pool0.0-both.sh", tmp_path)
    assert run.words == [
        "-m", "sglang.launch_server", "--model-path", "/models/the one", "--served-model-name", QWEN, "--host", "0.0.0.0", "--port", "30000",
        "--dtype", "bfloat16", "--kv-cache-dtype", "auto", "--tp-size", "2", "--context-length", "16384", "--max-running-requests", "64",
        "--chunked-prefill-size", "2048", "--max-prefill-tokens", "2048", "--mem-fraction-static", run["--mem-fraction-static"],
        "--enable-mixed-chunk",
    ]  # fmt: skip


def test_what_a_plan_does_not_say_stands_as_mindies_own_config_has_it(tmp_path: Path) -> None:
    """Referee: src/server/conf/config.json of MindIE-LLM 3.0.0."""
    plan = plan_of(tmp_path, pool(layout={"tp": 8}, max_sequences=64), a="huawei-ascend-910c:8")
    found = config(emit(plan, wanted("mindie")), "pool0.0-both.json")
    server, backend = found["ServerConfig"], found["BackendConfig"]

    assert found["Version"] == "1.0.0"
    assert server == {
        "ipAddress": "127.0.0.1", "managementIpAddress": "127.0.0.2", "port": 1025, "managementPort": 1026, "metricsPort": 1027,
        "allowAllZeroIpListening": False, "maxLinkNum": 300, "httpsEnabled": True, "inferMode": "standard", "openAiSupport": "vllm",
        "tokenTimeout": 600, "e2eTimeout": 600,
    }  # fmt: skip
    usual = {
        "backendName": "mindieservice_llm_engine", "modelInstanceNumber": 1, "tokenizerProcessNumber": 8, "multiNodesInferEnabled": False,
        "multiNodesInferPort": 1120, "interNodeTLSEnabled": True,
    }  # fmt: skip
    assert usual.items() <= backend.items()
    usual = {
        "templateName": "Standard_LLM", "cacheBlockSize": 128, "maxPrefillBatchSize": 50, "prefillTimeMsPerReq": 150, "prefillPolicyType": 0,
        "decodeTimeMsPerReq": 50, "decodePolicyType": 0, "maxPreemptCount": 0, "supportSelectBatch": False, "maxQueueDelayMicroseconds": 5000,
        "maxFirstTokenWaitTime": 2500, "maxBatchSize": 64, "maxIterTimes": 16384,
    }  # fmt: skip
    assert usual.items() <= backend["ScheduleConfig"].items()
    assert backend["ModelDeployConfig"]["ModelConfig"] == [
        {
            "modelInstanceType": "Standard", "modelName": "Qwen3-32B", "modelWeightPath": "MODEL", "worldSize": 8, "cpuMemSize": 0, "npuMemSize": -1,
            "backendType": "atb", "trustRemoteCode": False, "tp": 8, "dp": -1, "cp": 1, "sp": 1, "plugin_params": '{"plugin_type":"splitfuse"}',
        }
    ]  # fmt: skip


@pytest.mark.parametrize(("sequences", "links"), [(64, 300), (301, 301), (5000, 4096)])
def test_mindie_takes_as_many_connections_as_sequences_between_its_limits(tmp_path: Path, sequences: int, links: int) -> None:  # fmt: skip
    plan = plan_of(tmp_path, pool(layout={"tp": 8}, max_sequences=sequences), a="huawei-ascend-910c:8")  # fmt: skip
    found = config(emit(plan, wanted("mindie")), "pool0.0-both.json")
    assert found["ServerConfig"]["maxLinkNum"] == links


@pytest.mark.parametrize(("engine", "first"), [("vllm", 8000), ("sglang", 30000)])
def test_every_replica_of_every_pool_has_a_port_of_its_own(tmp_path: Path, engine: Target, first: int) -> None:  # fmt: skip
    pools = (pool(replicas=2), pool(replicas=2))
    files = emit(plan_of(tmp_path, *pools), wanted(engine))
    runs = [start(files, f"pool0.{p}-both.sh", tmp_path, r)["--port"] for p in (0, 1) for r in "01"]
    assert runs == [str(first), str(first + 1), str(first + 100), str(first + 101)]


def test_ports_of_mindies_pools_are_a_hundred_apart(tmp_path: Path) -> None:
    files = emit(plan_of(tmp_path, *(pool(layout={"tp": 4}),) * 2, a="huawei-ascend-910c:8"), wanted("mindie"))  # fmt: skip
    ports = [config(files, f"pool0.{p}-both.json")["ServerConfig"]["port"] for p in (0, 1)]
    assert ports == [1025, 1125]
    run = start(files, "pool0.1-both.sh", tmp_path)
    used = json.loads(Path(run.env["MIES_CONFIG_JSON_PATH"]).read_text(encoding="utf-8"))
    server = used["ServerConfig"]
    assert (server["port"], server["managementPort"], server["metricsPort"]) == (1125, 1126, 1127)
    runs = [start(files, f"pool0.{p}-both.sh", tmp_path).env["ASCEND_RT_VISIBLE_DEVICES"] for p in (0, 1)]  # fmt: skip
    assert runs == ["0,1,2,3", "4,5,6,7"]


def test_side_channels_leave_a_port_for_every_data_parallel_rank(tmp_path: Path) -> None:
    """Referee: vLLM adds the rank to VLLM_NIXL_SIDE_CHANNEL_PORT."""
    first = pool(role="prefill", name="p", replicas=2, layout={"dp": 4}, max_step_tokens=8192)
    plan = plan_of(tmp_path, first, pool(role="decode", name="d", replicas=1), a="nvidia-h200-sxm:16")  # fmt: skip
    files = emit(plan, wanted("vllm"))
    ports = [int(start(files, name, tmp_path, r).env["VLLM_NIXL_SIDE_CHANNEL_PORT"]) for name, r in (("p-prefill.sh", "0"), ("p-prefill.sh", "1"), ("d-decode.sh", "0"))]  # fmt: skip
    assert ports[1] - ports[0] == 4
    assert ports[2] - ports[1] >= 4
    bootstraps = [start(emit(plan, wanted("sglang")), "p-prefill.sh", tmp_path, r)["--disaggregation-bootstrap-port"] for r in "01"]  # fmt: skip
    assert bootstraps == ["8998", "8999"]


@pytest.mark.parametrize(
    ("model", "chip", "weights", "vllm", "sglang", "must"),
    [
        (QWEN, "nvidia-h200-sxm", "bf16", None, None, False),
        (QWEN, "nvidia-h200-sxm", "fp8", "fp8", "fp8", False),
        (QWEN, "nvidia-h200-sxm", "int8", None, "w8a8_int8", True),
        (QWEN, "nvidia-h200-sxm", "int4", None, None, True),
        (QWEN, "huawei-ascend-910c", "bf16", None, None, False),
        (QWEN, "huawei-ascend-910c", "int8", "ascend", "modelslim", True),
        (DEEPSEEK, "nvidia-h200-sxm", "fp8", None, None, False),
    ],
)
def test_weights_are_quantised_while_loading_or_in_the_checkpoint(
    tmp_path: Path, model: str, chip: str, weights: str, vllm: str | None, sglang: str | None, must: bool
) -> None:  # fmt: skip
    said = pool(layout={"tp": 8}, precision={"weights": weights, "kv": "bf16"})
    plan = plan_of(tmp_path, said, model=model, a=f"{chip}:8")
    for engine, flag in (("vllm", vllm), ("sglang", sglang)):
        files = emit(plan, wanted(engine))  # type: ignore[arg-type]
        run = start(files, "pool0.0-both.sh", tmp_path)
        assert run.get("--quantization") == flag
        assert ("MODEL:?" in files["pool0.0-both.sh"]) is must
        assert must or f'MODEL="${{MODEL:-{model}}}"' in files["pool0.0-both.sh"]


@pytest.mark.parametrize(
    ("role", "ep", "chip", "vllm", "sglang"),
    [
        ("prefill", 16, "nvidia-h200-sxm", "deepep_high_throughput", "deepep"),
        ("decode", 16, "nvidia-h200-sxm", "deepep_low_latency", "deepep"),
        ("both", 16, "nvidia-h200-sxm", None, "deepep"),
        ("both", 8, "nvidia-h200-sxm", None, None),
        ("decode", 8, "nvidia-h200-sxm", None, None),
        ("decode", 32, "huawei-ascend-910c", None, "deepep"),
    ],
)
def test_an_all_to_all_is_chosen_above_eight_ranks_of_experts(
    tmp_path: Path, role: str, ep: int, chip: str, vllm: str | None, sglang: str | None
) -> None:
    weights = "fp8" if chip.startswith("nvidia") else "int8"
    said: dict[str, Any] = {"layout": {"tp": 2, "dp": ep // 2, "ep": ep}, "precision": {"weights": weights, "kv": "bf16"}}  # fmt: skip
    other = {"prefill": ["decode"], "decode": ["prefill"], "both": []}[role]
    pools = [pool(role=one, name=one, **said) for one in (role, *other)]
    for engine, flag, value in (("vllm", "--all2all-backend", vllm), ("sglang", "--moe-a2a-backend", sglang)):  # fmt: skip
        files = emit(plan_of(tmp_path, *pools, model=DEEPSEEK, a=f"{chip}:64"), wanted(engine))  # type: ignore[arg-type]
        name = next(name for name in sorted(files) if name.startswith(f"{role}-"))
        run = start(files, name, tmp_path)
        assert run.get(flag) == value


def test_the_readme_says_where_a_launch_differs_and_nothing_where_it_does_not(tmp_path: Path) -> None:  # fmt: skip
    differs = "## Where this differs from what was predicted"
    plain = plan_of(tmp_path, pool())
    assert all(differs not in emit(plain, wanted(engine))["README.md"] for engine in ("vllm", "sglang"))  # type: ignore[arg-type]  # fmt: skip
    as_sglang = plan_of(tmp_path, pool(engine="sglang"))
    assert "pool0.0: predicted with exclusive prefill, sglang's default; vLLM mixes" in emit(as_sglang, wanted("vllm"))["README.md"]  # fmt: skip
    files = emit(as_sglang, wanted("sglang"))
    assert differs not in files["README.md"]
    assert "--enable-mixed-chunk" not in files["pool0.0-both.sh"]
    staged = plan_of(tmp_path, pool(layout={"pp": 2}))
    assert "in pipeline stages SGLang mixes no prompts" in emit(staged, wanted("sglang"))["README.md"]  # fmt: skip
    assert differs not in emit(staged, wanted("vllm"))["README.md"]
    said = plan_of(tmp_path, pool(engine_args={"prefill": "exclusive"}, max_step_tokens=16384))
    assert differs not in emit(said, wanted("vllm"))["README.md"]
    copies = plan_of(tmp_path, pool(layout={"dp": 2}))
    assert "vLLM runs the 2 data-parallel ranks of a model without experts" in emit(copies, wanted("vllm"))["README.md"]  # fmt: skip


@pytest.mark.parametrize(("context", "noted"), [(16384, True), (2050, True), (2049, False)])
def test_mindie_notes_a_budget_below_the_longest_prompt(tmp_path: Path, context: int, noted: bool) -> None:  # fmt: skip
    said = pool(layout={"tp": 8}, engine_args={"prefill": "exclusive"})
    plan = plan_of(tmp_path, said, context=context, a="huawei-ascend-910c:8")
    files = emit(plan, wanted("mindie"))
    schedule = config(files, "pool0.0-both.json")["BackendConfig"]["ScheduleConfig"]
    assert schedule["templateType"] == "Standard"
    assert schedule["maxPrefillTokens"] == max(2048, context - 1)
    assert ("MindIE computes a prompt whole" in files["README.md"]) is noted


def test_the_readme_starts_prefill_before_decode_and_ends_with_the_router(tmp_path: Path) -> None:
    first, second = apart()
    text = emit(plan_of(tmp_path, second, first), wanted("vllm"))["README.md"]
    steps = [line for line in text.splitlines() if re.match(r"\d\.", line)]
    assert steps == [
        "1. `bash p-prefill.sh REPLICA` for every REPLICA from 0 to 1.",
        "2. `bash d-decode.sh REPLICA`.",
        "3. `bash router.sh`, with PREFILL_HOSTS and DECODE_HOSTS: requests go to its port.",
    ]
    assert "put a balancer" not in text
    spread = emit(plan_of(tmp_path, deepseek(), model=DEEPSEEK, a="huawei-ascend-910c:64"), wanted("vllm"))["README.md"]  # fmt: skip
    assert "1. `bash pool0.0-both-node0.sh REPLICA` to `bash pool0.0-both-node3.sh REPLICA`, one on each of 4 nodes, with HEAD_ADDR" in spread  # fmt: skip
    assert "put a balancer" in spread
    assert "| pool0.0 | both | 1 | tp2 dp32 ep64 | huawei-ascend-910c | vLLM | 64, 4 nodes of 16 |" in spread  # fmt: skip
    assert "| d | decode | 1 | tp4 | nvidia-h200-sxm | vLLM | 4 |" in text


def test_roles_of_mindie_are_left_to_its_motor(tmp_path: Path) -> None:
    pools = (deepseek("prefill", name="p"), deepseek("decode", name="d"))
    files = emit(plan_of(tmp_path, *pools, model=DEEPSEEK, a="huawei-ascend-910c:64"), wanted("mindie"))  # fmt: skip
    assert sorted(files) == ["README.md", "d-decode.json", "d-decode.sh", "p-prefill.json", "p-prefill.sh"]  # fmt: skip
    assert {config(files, name)["ServerConfig"]["inferMode"] for name in ("d-decode.json", "p-prefill.json")} == {"dmi"}  # fmt: skip
    assert "3. MindIE Motor's controller, which tells each server its role" in files["README.md"]
    assert "on each of the replica's 4 nodes, with HEAD_ADDR and RANK_TABLE_FILE" in files["README.md"]  # fmt: skip
    together = emit(plan_of(tmp_path, deepseek(), model=DEEPSEEK, a="huawei-ascend-910c:64"), wanted("mindie"))  # fmt: skip
    assert "Motor" not in together["README.md"]


def test_drafts_of_a_family_that_mindie_does_not_draft_for_are_refused(tmp_path: Path) -> None:
    said = pool(layout={"tp": 2}, engine_args={"num_speculative_tokens": 1})
    plan = plan_of(tmp_path, said, model="Qwen/Qwen3.5-27B", a="huawei-ascend-910c:8")
    with pytest.raises(InputError, match="1 drafts: MindIE drafts with the MTP layers of"):
        emit(plan, wanted("mindie"))


def test_more_replicas_than_whole_ones_fit_are_refused(tmp_path: Path) -> None:
    pools = (pool(layout={"tp": 1}), pool(layout={"tp": 8}))
    with pytest.raises(InputError, match=r"the pools on 'a' take 16 devices by whole replicas, it has 8; use fewer .*pools\[1\]"):  # fmt: skip
        emit(plan_of(tmp_path, *pools), wanted("vllm"))


def test_a_pool_on_this_hosts_cores_is_left_to_polypod_up(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        "polypod: 1\nfleet: {a: {host: here, cores: [0]}}\nservices:\n- model: SmolLM2-135M-Instruct\n  pools:\n"
        "  - {role: both, on: a, layout: {tp: 1}, replicas: 1, precision: {weights: q4_0, kv: fp16}, state: launchable, engine: llama.cpp}\n",
        encoding="utf-8",
    )
    with pytest.raises(InputError, match="'a' is cores of a host, whose engines polypod up starts itself"):  # fmt: skip
        emit(read_plan(path), wanted("vllm"))


def test_replicas_and_pools_over_nodes_meet_at_ports_of_their_own(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, *(deepseek(replicas=2),) * 2, model=DEEPSEEK, a="huawei-ascend-910c:128")  # fmt: skip
    for engine, flag, first in (("vllm", "--data-parallel-rpc-port", "13345"), ("sglang", "--dist-init-addr", "10.0.0.1:25000")):  # fmt: skip
        files = emit(plan, wanted(engine))  # type: ignore[arg-type]
        met = [start(files, f"pool0.{p}-both-node1.sh", tmp_path, r)[flag] for p in (0, 1) for r in "01"]  # fmt: skip
        assert met[0] == first
        ports = [int(one.rpartition(":")[2]) for one in met]
        assert ports == [ports[0], ports[0] + 1, ports[0] + 100, ports[0] + 101]


def test_two_nodes_of_mindie_find_each_other_by_the_rank_table(tmp_path: Path) -> None:
    drafts = {"num_speculative_tokens": 1, "acceptance": 0.7}
    said = deepseek(layout={"tp": 2, "dp": 16, "ep": 32}, engine_args=drafts)
    files = emit(plan_of(tmp_path, said, model=DEEPSEEK, a="huawei-ascend-910c:32"), wanted("mindie"))  # fmt: skip
    run = start(files, "pool0.0-both.sh", tmp_path)
    backend = config(files, "pool0.0-both.json")["BackendConfig"]
    assert (run.env["MASTER_IP"], backend["multiNodesInferEnabled"]) == ("10.0.0.1", True)
    assert "ASCEND_RT_VISIBLE_DEVICES" not in run.env
    plugins = json.loads(backend["ModelDeployConfig"]["ModelConfig"][0]["plugin_params"])
    assert plugins == {"plugin_type": "mtp", "num_speculative_tokens": 1}


def test_a_step_of_one_token_a_sequence_is_enough_for_vllm(tmp_path: Path) -> None:
    run = start(emit(plan_of(tmp_path, pool(max_step_tokens=64)), wanted("vllm")), "pool0.0-both.sh", tmp_path)  # fmt: skip
    assert (run["--max-num-seqs"], run["--max-num-batched-tokens"]) == ("64", "64")


def test_pools_of_two_services_with_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    service = {"model": QWEN, "pools": [pool(name="p")]}
    raw = {"polypod": 1, "fleet": {"a": {"accelerator": "nvidia-h200-sxm", "count": 8}}, "services": [service, service]}  # fmt: skip
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(InputError, match=r"a second pool is called 'p', .* at `\$\.services\[1\]\.pools\[0\]`"):  # fmt: skip
        emit(read_plan(path), wanted("vllm"))
