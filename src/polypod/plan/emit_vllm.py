"""A pool as `vllm serve` scripts, one a role or, where a replica spans nodes, one a node.

vLLM counts sequences and tokens of a step for each data-parallel rank, and spreads experts over all ranks of tp and dp or not at all.
"""

import json
from collections.abc import Iterator
from typing import Final

from polypod.plan.emitted import (
    A2A_ABOVE,
    DTYPE,
    QUANTISED,
    Arg,
    Launch,
    Written,
    arg,
    is_own,
    model_lines,
    must_be,
    script,
    thousandths,
)

PORT: Final = 8000
RPC_PORT: Final = 13345
SIDE_PORT: Final = 5600
KV_PORT: Final = 36000
"""Above what Mooncake's Ascend transport takes on a node of 16 NPUs, 20000 to 35999."""

CONNECTORS: Final = {"cuda": "NixlConnector", "rocm": "NixlConnector", "cann": "MooncakeConnectorV1"}  # fmt: skip
"""What vLLM's documents, and those of vllm-ascend, hand a cache on with."""

_KV: Final = {"bf16": "auto", "fp16": "auto", "fp8": "fp8"}


def write(launch: Launch) -> Written:
    """The scripts of one pool. Raises `InputError` for what vLLM has no flag for."""
    _check(launch)
    local = _local_groups(launch)
    nodes = -(-launch.layout.dp // local) if local else launch.nodes
    files = {}
    for node in range(nodes):
        suffix = f"-node{node}" if nodes > 1 else ""
        file = f"{launch.stem}{suffix}.sh"
        files[file] = script(
            launch,
            file,
            setup=_setup(launch),
            command="vllm serve",
            args=[*_arguments(launch), *_place(launch, node, nodes, local)],
        )  # fmt: skip
    return Written(files=files, notes=tuple(_notes(launch)))


def _check(launch: Launch) -> None:
    layout, stage = launch.layout, launch.layout.tp * launch.layout.dp
    weights, kv = launch.pool.precision.weights, launch.pool.precision.kv
    if layout.ep not in (1, stage):
        msg = f"ep={layout.ep}: vLLM spreads experts over all tp*dp={stage} ranks of a stage or over none; plan with ep={stage} or ep=1, or emit for sglang"
        raise launch.refuse(msg)
    if weights not in (*DTYPE, *QUANTISED):
        msg = f"weights in {weights}: a GGUF format, which polypod up serves with llama.cpp; plan with one of {', '.join((*DTYPE, *QUANTISED))}"
        raise launch.refuse(msg)
    if kv not in _KV:
        msg = f"cache in {kv}: no --kv-cache-dtype of vLLM is written for it; plan with one of {', '.join(_KV)}"
        raise launch.refuse(msg)
    if launch.pool.max_step_tokens < launch.sequences_per_group:
        msg = (
            f"max_step_tokens={launch.pool.max_step_tokens} for {launch.sequences_per_group} sequences a data-parallel rank: vLLM wants a token for each; "
            f"raise max_step_tokens to {launch.sequences_per_group} or lower max_sequences"
        )
        raise launch.refuse(msg)
    _check_prefill(launch)


def _check_prefill(launch: Launch) -> None:
    budget = launch.pool.max_step_tokens
    if launch.says_prefill and launch.settings.prefill == "exclusive" and budget < launch.context_tokens:  # fmt: skip
        msg = (
            f"prefill=exclusive with max_step_tokens={budget}: vLLM without chunked prefill wants a budget of the whole context, "
            f"{launch.context_tokens}; set the service's context to {budget}, raise max_step_tokens, or plan with prefill=chunked"
        )
        raise launch.refuse(msg)


def _local_groups(launch: Launch) -> int:
    """Data-parallel ranks on a node; 0 where there are no such ranks to spread over nodes."""
    engine = launch.layout.tp * launch.layout.pp
    if launch.nodes == 1 or launch.layout.dp > 1:
        if engine > launch.node_ranks:
            msg = (
                f"tp*pp={engine} on nodes of {launch.node_ranks} devices: with data parallelism vLLM keeps each rank's devices on one node; "
                f"plan with tp*pp at most {launch.node_ranks}, or say --node-ranks"
            )
            raise launch.refuse(msg)
        return min(launch.layout.dp, launch.node_ranks // engine)
    if launch.world % launch.node_ranks:
        msg = f"tp*pp={engine} on nodes of {launch.node_ranks} devices: vLLM takes as many on every node; plan with a multiple of {launch.node_ranks}"
        raise launch.refuse(msg)
    return 0


def _setup(launch: Launch) -> list[str]:
    lines = [
        *model_lines(launch, None if _is_online(launch) else must_be(launch)),
        f"PORT=$(( {PORT + 100 * launch.index} + REPLICA ))",
    ]
    if launch.drafts and not launch.model.mtp_layers:
        lines.append('DRAFT_MODEL="${DRAFT_MODEL:?the path of an EAGLE-3 draft of the model}"')
    if launch.apart and launch.apart.connector == "NixlConnector":
        lines += [
            'export VLLM_NIXL_SIDE_CHANNEL_HOST="${NODE_ADDR:?the address of this node, as the other role reaches it}"',
            f"export VLLM_NIXL_SIDE_CHANNEL_PORT=$(( {SIDE_PORT + 1000 * launch.index} + REPLICA * {launch.layout.dp} ))",
        ]
    return lines


def _is_online(launch: Launch) -> bool:
    """fp8 is made of a bf16 checkpoint while it is loaded."""
    return launch.pool.precision.weights == "fp8" and launch.model.weight_dtype in DTYPE


def on_one_node(launch: Launch) -> list[Arg]:
    """All arguments of a replica that is on one node."""
    return [*_arguments(launch), *_place(launch, 0, 1, _local_groups(launch))]


def _arguments(launch: Launch) -> Iterator[Arg]:
    pool, layout = launch.pool, launch.layout
    yield Arg(flag='"$MODEL"', why="services.model")
    yield arg("--served-model-name", launch.service.model, "services.model")
    yield Arg(flag="--host", value='"$HOST"', why="of this node")
    yield Arg(flag="--port", value='"$PORT"', why="counted from the pool's first")
    yield from _precision(launch)
    yield arg("--tensor-parallel-size", layout.tp, "layout.tp")
    if layout.pp > 1:
        yield arg("--pipeline-parallel-size", layout.pp, "layout.pp")
    if layout.ep > 1:
        yield Arg(flag="--enable-expert-parallel", why=f"layout.ep = {layout.ep} = tp * dp")
        yield from _all_to_all(launch)
    yield arg(
        "--max-model-len",
        launch.context_tokens,
        "services.context, the model's own limit or what the cache holds, whichever is least",
    )
    yield arg(
        "--max-num-seqs",
        launch.sequences_per_group,
        f"max_sequences = {pool.max_sequences} over layout.dp = {layout.dp}, rounded up",
    )
    yield arg(
        "--max-num-batched-tokens",
        pool.max_step_tokens,
        "max_step_tokens, of each data-parallel rank",
    )
    yield arg(
        "--gpu-memory-utilization",
        thousandths(launch.memory_fraction),
        f"memory_fraction of the calibration of {launch.chip}",
    )
    yield from _settings(launch)
    yield from _transfer(launch)  # fmt: skip


def _precision(launch: Launch) -> Iterator[Arg]:
    weights, kv = launch.pool.precision.weights, launch.pool.precision.kv
    if weights in DTYPE:
        yield arg("--dtype", DTYPE[weights], "precision.weights")
    elif _is_online(launch):
        yield arg("--quantization", "fp8", "precision.weights, made of the checkpoint's " + launch.model.weight_dtype)  # fmt: skip
    elif launch.stack == "cann" and not is_own(launch):
        yield arg("--quantization", "ascend", f"precision.weights = {weights}, quantised by ModelSlim")  # fmt: skip
    yield arg("--kv-cache-dtype", _KV[kv], f"precision.kv = {kv}")


def _all_to_all(launch: Launch) -> Iterator[Arg]:
    wanted = {"prefill": "deepep_high_throughput", "decode": "deepep_low_latency"}.get(launch.pool.role)  # fmt: skip
    if launch.stack == "cuda" and launch.layout.ep > A2A_ABOVE and wanted:
        yield arg("--all2all-backend", wanted, f"role {launch.pool.role} with more than {A2A_ABOVE} ranks of experts")  # fmt: skip


def _settings(launch: Launch) -> Iterator[Arg]:
    said = launch.pool.engine_args
    if launch.says_prefill:
        flag = "--enable-chunked-prefill" if said.prefill == "chunked" else "--no-enable-chunked-prefill"  # fmt: skip
        yield Arg(flag=flag, why=f"engine_args.prefill = {said.prefill}")
    if said.prefix_hits is not None:
        flag = "--enable-prefix-caching" if said.prefix_hits else "--no-enable-prefix-caching"
        yield Arg(flag=flag, why=f"engine_args.prefix_hits = {said.prefix_hits:g}")
    if launch.drafts:
        why = f"engine_args.num_speculative_tokens = {launch.drafts}"
        yield Arg(flag="--speculative-config", value=_speculative(launch), why=why)


def _speculative(launch: Launch) -> str:
    """JSON as shell text. Prefill on Ascend drafts one token whatever decode drafts, as vllm-ascend's guide has it."""
    is_first = launch.stack == "cann" and launch.pool.role == "prefill"
    drafts = 1 if is_first else launch.drafts
    if launch.model.mtp_layers:
        return f"'{json.dumps({'method': 'mtp', 'num_speculative_tokens': drafts})}'"
    return f'"{{\\"method\\": \\"eagle3\\", \\"model\\": \\"$DRAFT_MODEL\\", \\"num_speculative_tokens\\": {drafts}}}"'


def _transfer(launch: Launch) -> Iterator[Arg]:
    apart = launch.apart
    if apart is None:
        return
    config: dict[str, object] = {"kv_connector": apart.connector, "kv_role": "kv_both"}
    if apart.connector == "MooncakeConnectorV1":
        role = "kv_producer" if launch.pool.role == "prefill" else "kv_consumer"
        sizes = {
            name: {"dp_size": layout.dp, "tp_size": layout.tp}
            for name, layout in (("prefill", apart.prefill), ("decode", apart.decode))
        }
        config |= {"kv_role": role, "kv_port": "KV_PORT", "kv_connector_extra_config": sizes}
    text = json.dumps(config).replace('"KV_PORT"', f"\"'$(( {KV_PORT + 1000 * launch.index} + REPLICA * 100 ))'\"")  # fmt: skip
    yield Arg(flag="--kv-transfer-config", value=f"'{text}'", why=f"role {launch.pool.role}")


def _place(launch: Launch, node: int, nodes: int, local: int) -> Iterator[Arg]:
    dp = launch.layout.dp
    if nodes > 1 and not local:
        yield arg("--distributed-executor-backend", "mp", "nodes without a Ray cluster; with one, ray in its place and no node flags")  # fmt: skip
        yield arg("--nnodes", nodes, f"world of {launch.world} over nodes of {launch.node_ranks} devices")  # fmt: skip
        yield arg("--node-rank", node, "of this script")
        yield Arg(flag="--master-addr", value='"$HEAD_ADDR"', why="the replica's first node")
        yield Arg(flag="--master-port", value=_rpc(launch), why="one for each replica")
    elif dp > 1:
        yield arg("--data-parallel-size", dp, "layout.dp")
        if nodes > 1:
            here = min(local, dp - node * local)
            yield arg("--data-parallel-size-local", here, f"groups of {launch.layout.tp * launch.layout.pp} on a node of {launch.node_ranks} devices")  # fmt: skip
            yield arg("--data-parallel-start-rank", node * local, "of this script's node")
            yield Arg(flag="--data-parallel-address", value='"$HEAD_ADDR"', why="the replica's first node")  # fmt: skip
            yield Arg(flag="--data-parallel-rpc-port", value=_rpc(launch), why="one for each replica")  # fmt: skip
    if node:
        yield Arg(flag="--headless", why="requests go to the first node")


def _rpc(launch: Launch) -> str:
    return f"$(( {RPC_PORT + 100 * launch.index} + REPLICA ))"


def _notes(launch: Launch) -> Iterator[str]:
    if launch.settings.prefill == "exclusive" and not launch.says_prefill:
        yield f"{launch.name}: predicted with exclusive prefill, {launch.pool.engine}'s default; vLLM mixes prompts with decode, so TPOT differs - plan with --backend vllm"
    if launch.layout.dp > 1 and not launch.model.is_moe:
        yield f"{launch.name}: vLLM runs the {launch.layout.dp} data-parallel ranks of a model without experts independently of each other"


def router(prefill: list[Launch], decode: list[Launch]) -> str:
    """The proxy between prefill and decode."""
    ascend = prefill[0].stack == "cann"
    program = "load_balance_proxy_server_example.py" if ascend else "toy_proxy_server.py"
    where = "examples/disaggregated_prefill_v1 of vllm-ascend" if ascend else "tests/v1/kv_connector/nixl_integration of vLLM"  # fmt: skip
    lines = [
        "#!/usr/bin/env bash",
        f"# The proxy that sends a request to a prefill replica, then to a decode replica: {program}, in {where}.",
        "# It shows how the two are joined, and is no production router.",
        "set -eu",
        "",
        f'PROXY="${{PROXY:?the path of {program}}}"',
        f'PREFILL_HOSTS="${{PREFILL_HOSTS:?addresses of the first nodes of the {_count(prefill)} prefill replicas, in order}}"',
        f'DECODE_HOSTS="${{DECODE_HOSTS:?addresses of the first nodes of the {_count(decode)} decode replicas, in order}}"',
        "",
        "# shellcheck disable=SC2086  # lists of addresses, one argument each",
        'exec python3 "$PROXY" \\',
        '  --host "${HOST:-0.0.0.0}" \\',
        '  --port "${PORT:-1999}" \\',
        "  --prefiller-hosts $PREFILL_HOSTS \\",
        f"  --prefiller-ports {_ports(prefill)} \\",
        "  --decoder-hosts $DECODE_HOSTS \\",
        f"  --decoder-ports {_ports(decode)}",
    ]
    return "\n".join(lines) + "\n"


def _count(pools: list[Launch]) -> int:
    return sum(one.pool.replicas for one in pools)


def _ports(pools: list[Launch]) -> str:
    return " ".join(str(PORT + 100 * one.index + replica) for one in pools for replica in range(one.pool.replicas))  # fmt: skip
