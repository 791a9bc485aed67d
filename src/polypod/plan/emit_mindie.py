"""A pool as MindIE's config.json and the script that starts its server with it.

MindIE computes prompts and decode in separate steps, or mixes them where its SplitFuse runs the model. Several nodes find each other by
a rank table, which only the cluster itself can say; prefill and decode apart are placed by MindIE Motor.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

from polypod.plan.emitted import (
    A2A_ABOVE,
    Launch,
    Written,
    device_lines,
    head_lines,
    is_own,
    model_lines,
    must_be,
    thousandths,
)

PORT: Final = 1025

CONNECTORS: Final = {"cann": "MindIE Motor"}

SPLIT_FUSE: Final = ("llama", "qwen2", "qwen3")
"""Model types that SplitFuse runs, by its page: Llama 3.1, Qwen2, Qwen2.5 and Qwen3."""

EXPERTS: Final = ("deepseek_v2", "deepseek_v3", "deepseek_v32")
"""Model types whose experts it spreads."""

_MOST_DRAFTS: Final = 2
_WEIGHTS: Final = ("bf16", "fp16", "int8", "int4")
_KV: Final = ("bf16", "fp16")
_MOST_MODEL_NAME: Final = 256


def write(launch: Launch) -> Written:
    """Config and script of one pool. Raises `InputError` for what MindIE has no key for."""
    _check(launch)
    config = json.dumps(config_of(launch), indent=2) + "\n"
    files = {f"{launch.stem}.json": config, f"{launch.stem}.sh": _script(launch)}
    return Written(files=files, notes=tuple(_notes(launch)))


def _check(launch: Launch) -> None:
    problems = (*_layout_problems(launch), *_precision_problems(launch), *_setting_problems(launch))
    for problem in problems:
        raise launch.refuse(problem)


def _layout_problems(launch: Launch) -> Iterator[str]:
    layout = launch.layout
    if layout.pp > 1:
        yield f"pp={layout.pp}: MindIE's documents have no pipeline stages beyond pp=1; plan with pp=1, or emit for vllm"
    if layout.ep > 1 and launch.model.model_type not in EXPERTS:
        yield f"ep={layout.ep}: MindIE spreads the experts of {', '.join(EXPERTS)} alone, {launch.model.name} is {launch.model.model_type}; plan with ep=1, or emit for vllm"
    if launch.nodes > 1 and launch.world % launch.node_ranks:
        yield f"{launch.world} ranks on nodes of {launch.node_ranks} devices: MindIE takes whole nodes; plan with a multiple of {launch.node_ranks}"


def _precision_problems(launch: Launch) -> Iterator[str]:
    precision = launch.pool.precision
    if precision.weights not in _WEIGHTS:
        yield f"weights in {precision.weights}: MindIE serves {', '.join(_WEIGHTS)}; plan with one of them"
    if precision.kv not in _KV:
        yield f"cache in {precision.kv}: of a quantised cache MindIE reads the type from checkpoints of few models; plan with one of {', '.join(_KV)}"


def _setting_problems(launch: Launch) -> Iterator[str]:
    mixed = launch.says_prefill and launch.settings.prefill == "chunked"
    if mixed and not _can_mix(launch):
        yield (
            f"prefill=chunked: MindIE's SplitFuse mixes prompts with decode for {', '.join(SPLIT_FUSE)} without drafts, "
            f"{launch.model.name} is {launch.model.model_type}; plan with prefill=exclusive"
        )
    if launch.drafts > _MOST_DRAFTS:
        yield f"{launch.drafts} drafts: MindIE's MTP takes 1 or {_MOST_DRAFTS}; plan with num_speculative_tokens={_MOST_DRAFTS}"
    if launch.drafts and not (launch.model.mtp_layers and launch.model.model_type in EXPERTS):
        yield f"{launch.drafts} drafts: MindIE drafts with the MTP layers of {', '.join(EXPERTS)} alone; plan without drafts"


def _can_mix(launch: Launch) -> bool:
    return launch.model.model_type in SPLIT_FUSE and not launch.drafts


def _is_mixed(launch: Launch) -> bool:
    return launch.settings.prefill == "chunked" and _can_mix(launch) and launch.pool.role == "both"


def config_of(launch: Launch) -> dict[str, Any]:
    port = PORT + 100 * launch.index
    return {
        "Version": "1.0.0",
        "ServerConfig": {
            "ipAddress": "127.0.0.1",
            "managementIpAddress": "127.0.0.2",
            "port": port,
            "managementPort": port + 1,
            "metricsPort": port + 2,
            "allowAllZeroIpListening": False,
            "maxLinkNum": min(4096, max(300, launch.pool.max_sequences)),
            "httpsEnabled": True,
            "inferMode": "standard" if launch.apart is None else "dmi",
            "openAiSupport": "vllm",
            "tokenTimeout": 600,
            "e2eTimeout": 600,
        },
        "BackendConfig": {
            "backendName": "mindieservice_llm_engine",
            "modelInstanceNumber": 1,
            "npuDeviceIds": [list(range(min(launch.world, launch.node_ranks)))],
            "tokenizerProcessNumber": 8,
            "multiNodesInferEnabled": launch.nodes > 1,
            "multiNodesInferPort": 1120,
            "interNodeTLSEnabled": True,
            "ModelDeployConfig": {
                "maxSeqLen": launch.context_tokens,
                "maxInputTokenLen": launch.longest_input_tokens,
                "truncation": 0,
                "ModelConfig": [_model(launch)],
            },
            "ScheduleConfig": _schedule(launch),
        },
    }


def _model(launch: Launch) -> dict[str, Any]:
    layout = launch.layout
    found: dict[str, Any] = {
        "modelInstanceType": "Standard",
        "modelName": launch.service.model.split("/")[-1][:_MOST_MODEL_NAME],
        "modelWeightPath": "MODEL",
        "worldSize": launch.world,
        "cpuMemSize": 0,
        "npuMemSize": -1,
        "backendType": "torch" if launch.model.model_type == "deepseek_v32" else "atb",
        "trustRemoteCode": False,
        "tp": layout.tp,
        "dp": layout.dp if layout.dp > 1 else -1,
        "cp": 1,
        "sp": 1,
    }
    if launch.model.is_moe:
        found |= {"moe_ep": layout.ep, "moe_tp": layout.tp * layout.dp // layout.ep}
    deepseek: dict[str, Any] = {}
    if layout.ep > 1:
        deepseek["ep_level"] = 2 if layout.ep > A2A_ABOVE else 1
    if launch.pool.engine_args.prefix_hits and launch.model.model_type in EXPERTS:
        deepseek["kv_cache_options"] = {"enable_nz": True}
    if deepseek:
        found["models"] = {"deepseekv2": deepseek}
    plugins = _plugins(launch)
    if plugins:
        found["plugin_params"] = plugins
    return found


def _plugins(launch: Launch) -> str | None:
    names = [
        name
        for name, on in (
            ("mtp", launch.drafts > 0),
            ("splitfuse", _is_mixed(launch)),
            ("prefix_cache", bool(launch.pool.engine_args.prefix_hits)),
        )
        if on
    ]
    if not names:
        return None
    said: dict[str, Any] = {"plugin_type": ",".join(names)}
    if launch.drafts:
        said["num_speculative_tokens"] = launch.drafts
    return json.dumps(said, separators=(",", ":"))


def _schedule(launch: Launch) -> dict[str, Any]:
    """A step's budget is that of SplitFuse's chunks where it mixes; else a prompt is computed whole, and the budget holds the longest."""
    sequences = launch.sequences_per_group
    longest = launch.longest_input_tokens
    found: dict[str, Any] = {
        "templateType": "Mix" if _is_mixed(launch) else "Standard",
        "templateName": "Standard_LLM",
        "cacheBlockSize": 128,
        "maxPrefillBatchSize": min(50, sequences),
        "maxPrefillTokens": max(launch.pool.max_step_tokens, longest),
        "prefillTimeMsPerReq": 150,
        "prefillPolicyType": 0,
        "decodeTimeMsPerReq": 50,
        "decodePolicyType": 0,
        "maxBatchSize": sequences,
        "maxIterTimes": launch.context_tokens,
        "maxPreemptCount": 0,
        "supportSelectBatch": False,
        "maxQueueDelayMicroseconds": 5000,
        "maxFirstTokenWaitTime": 2500,
    }
    if _is_mixed(launch):
        found["prefillChunkSize"] = launch.pool.max_step_tokens
    return found


def _script(launch: Launch) -> str:
    port = PORT + 100 * launch.index
    lines = [
        "#!/usr/bin/env bash",
        *head_lines(launch, f"{launch.stem}.sh"),
        *_model_path(launch),
        'export MIES_CONTAINER_IP="${NODE_ADDR:?the address of this node}"',
        f"export NPU_MEMORY_FRACTION={thousandths(launch.memory_fraction)}  # memory_fraction of the calibration of {launch.chip}",
        *(_nodes(launch) if launch.nodes > 1 else device_lines(launch)),
        "",
        "# The config beside this script, with this replica's model and ports, readable by its owner alone.",
        f'CONFIG="${{TMPDIR:-/tmp}}/{launch.stem}-$REPLICA.json"',
        "umask 077",
        "MODEL=$(printf '%s' \"$MODEL\" | sed 's/[&|\\\\]/\\\\&/g')",
        'sed -e "s|\\"modelWeightPath\\": \\"MODEL\\"|\\"modelWeightPath\\": \\"$MODEL\\"|" \\',
        *(
            f'    -e "s|\\"{key}\\": {port + at}|\\"{key}\\": $(( {port + at} + REPLICA * 3 ))|" \\'
            for at, key in enumerate(("port", "managementPort", "metricsPort"))
        ),
        f'    "$(dirname "$0")/{launch.stem}.json" > "$CONFIG"',
        'export MIES_CONFIG_JSON_PATH="$CONFIG"',
        "exec mindie_llm_server",
    ]
    return "\n".join(lines) + "\n"


def _model_path(launch: Launch) -> list[str]:
    """MindIE reads a folder, and fetches none by name."""
    own = "its own checkpoint" if is_own(launch) else str(must_be(launch))
    return model_lines(launch, f"{own}, in a folder of this node")


def _nodes(launch: Launch) -> list[str]:
    return [
        'export RANK_TABLE_FILE="${RANK_TABLE_FILE:?rank_table_file.json of the nodes of the replica}"',
        'export MASTER_IP="${HEAD_ADDR:?the address of the first node of the replica}"',
    ]


def _notes(launch: Launch) -> Iterator[str]:
    name, budget = launch.name, launch.pool.max_step_tokens
    if launch.settings.prefill == "chunked" and launch.pool.role == "both" and not _is_mixed(launch):  # fmt: skip
        yield f"{name}: predicted with chunked prefill; MindIE computes prompts of {launch.model.model_type} in steps of their own, so TPOT differs - plan with prefill=exclusive"
    if (
        launch.pool.role != "decode"
        and not _is_mixed(launch)
        and budget < launch.longest_input_tokens
    ):
        yield (
            f"{name}: max_step_tokens is {budget}, and MindIE computes a prompt whole: maxPrefillTokens is {launch.longest_input_tokens}, the longest prompt; "
            "set the service's context to what your requests need"
        )
