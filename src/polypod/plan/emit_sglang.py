"""A pool as `sglang.launch_server` scripts, one a role or, where a replica spans nodes, one a node.

With data-parallel attention SGLang's tp counts the whole stage, dp its groups, and both its token budget and its number of running requests
are of all groups together, which it divides. Without it (a model without experts) dp counts whole copies, each with a budget of its own.
`--dp-size N --enable-dp-attention` is what every build understands; 0.5.23 calls it `--attn-dp-size N`.
"""

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

PORT: Final = 30000
BOOTSTRAP_PORT: Final = 8998
INIT_PORT: Final = 25000

CONNECTORS: Final = {"cuda": "mooncake", "cann": "ascend", "rocm": "mori", "dtk": "mooncake", "musa": "mooncake", "maca": "mooncake"}  # fmt: skip
"""`--disaggregation-transfer-backend` by stack: SGLang's choices, and Mooncake where the stack has a build of it."""

_A2A: Final = {"cuda": "deepep", "cann": "deepep", "rocm": "mori"}
_KV: Final = {"bf16": "auto", "fp16": "auto", "fp8": "fp8_e4m3"}


def write(launch: Launch) -> Written:
    """The scripts of one pool. Raises `InputError` for what SGLang has no flag for."""
    _check(launch)
    nodes = _nodes(launch)
    files = {}
    for node in range(nodes):
        suffix = f"-node{node}" if nodes > 1 else ""
        file = f"{launch.stem}{suffix}.sh"
        files[file] = script(
            launch,
            file,
            setup=_setup(launch),
            command="python3 -m sglang.launch_server",
            args=[*_arguments(launch), *_place(launch, node, nodes)],
        )  # fmt: skip
    return Written(files=files, notes=tuple(_notes(launch)))


def _check(launch: Launch) -> None:
    layout = launch.layout
    weights, kv = launch.pool.precision.weights, launch.pool.precision.kv
    if layout.pp > 1 and layout.dp > 1:
        msg = (
            f"pp={layout.pp} with dp={layout.dp}: SGLang does not run pipeline stages with data-parallel attention "
            "(https://github.com/sgl-project/sglang/issues/9805, open); plan with pp=1 or dp=1, or emit for vllm"
        )
        raise launch.refuse(msg)
    if layout.pp > 1 and launch.drafts:
        msg = f"pp={layout.pp} with {launch.drafts} drafts: SGLang refuses speculative decoding in pipeline stages but for some in 0.5.23; plan with pp=1 or without drafts"
        raise launch.refuse(msg)
    if layout.pp > 1 and launch.says_prefill and launch.settings.prefill == "chunked":
        msg = f"prefill=chunked with pp={layout.pp}: SGLang mixes no prompts with decode in pipeline stages; plan with prefill=exclusive or pp=1"
        raise launch.refuse(msg)
    if weights not in (*DTYPE, *QUANTISED):
        msg = f"weights in {weights}: a GGUF format, which polypod up serves with llama.cpp; plan with one of {', '.join((*DTYPE, *QUANTISED))}"
        raise launch.refuse(msg)
    if kv not in _KV:
        msg = f"cache in {kv}: --kv-cache-dtype of SGLang takes no such type; plan with one of {', '.join(_KV)}"
        raise launch.refuse(msg)


def _nodes(launch: Launch) -> int:
    """The fewest nodes that hold equal shares of a replica."""
    nodes = next(n for n in range(launch.nodes, launch.world + 1) if launch.world % n == 0)
    if nodes > 1 and launch.layout.dp > 1 and not launch.model.is_moe:
        msg = (
            f"dp={launch.layout.dp} over {nodes} nodes: SGLang runs copies of {launch.model.name}, which has no experts, on one node only; "
            "plan with dp=1 and more replicas"
        )
        raise launch.refuse(msg)
    return nodes


def _setup(launch: Launch) -> list[str]:
    lines = [
        *model_lines(launch, None if _is_online(launch) else must_be(launch)),
        f"PORT=$(( {PORT + 100 * launch.index} + REPLICA ))",
    ]
    if launch.drafts and not launch.model.mtp_layers:
        lines.append('DRAFT_MODEL="${DRAFT_MODEL:?the path of an EAGLE-3 draft of the model}"')
    return lines


def _is_online(launch: Launch) -> bool:
    return launch.pool.precision.weights == "fp8" and launch.model.weight_dtype in DTYPE


def _is_grouped(launch: Launch) -> bool:
    """Whether dp is groups of attention inside one replica, rather than copies."""
    return launch.layout.dp > 1 and launch.model.is_moe


def on_one_node(launch: Launch) -> list[Arg]:
    """All arguments of a replica that is on one node."""
    return list(_arguments(launch))


def _arguments(launch: Launch) -> Iterator[Arg]:
    layout = launch.layout
    yield Arg(flag="--model-path", value='"$MODEL"', why="services.model")
    yield arg("--served-model-name", launch.service.model, "services.model")
    yield Arg(flag="--host", value='"$HOST"', why="of this node")
    yield Arg(flag="--port", value='"$PORT"', why="counted from the pool's first")
    if launch.stack == "cann":
        yield arg("--device", "npu", f"{launch.chip} is an NPU")
        yield arg("--attention-backend", "ascend", f"{launch.chip} is an NPU")
    yield from _precision(launch)
    if _is_grouped(launch):
        yield arg("--tp-size", layout.tp * layout.dp, f"layout.tp = {layout.tp} times layout.dp = {layout.dp}: the whole stage")  # fmt: skip
        yield arg("--dp-size", layout.dp, "layout.dp: groups of attention")
        yield Arg(flag="--enable-dp-attention", why="the same; 0.5.23 and later say --attn-dp-size for both")  # fmt: skip
    else:
        yield arg("--tp-size", layout.tp, "layout.tp")
        if layout.dp > 1:
            yield arg("--dp-size", layout.dp, "layout.dp: copies of a model without experts")
    if layout.pp > 1:
        yield arg("--pp-size", layout.pp, "layout.pp")
    if layout.ep > 1:
        yield from _experts(launch)
    yield from _limits(launch)
    yield from _settings(launch)
    yield from _transfer(launch)


def _precision(launch: Launch) -> Iterator[Arg]:
    weights, kv = launch.pool.precision.weights, launch.pool.precision.kv
    if weights in DTYPE:
        yield arg("--dtype", DTYPE[weights], "precision.weights")
    elif _is_online(launch):
        yield arg("--quantization", "fp8", "precision.weights, made of the checkpoint's " + launch.model.weight_dtype)  # fmt: skip
    elif launch.stack == "cann" and not is_own(launch):
        yield arg("--quantization", "modelslim", f"precision.weights = {weights}, quantised by ModelSlim")  # fmt: skip
    elif weights == "int8" and not is_own(launch):
        yield arg("--quantization", "w8a8_int8", "precision.weights = int8")
    yield arg("--kv-cache-dtype", _KV[kv], f"precision.kv = {kv}")


def _experts(launch: Launch) -> Iterator[Arg]:
    ep = launch.layout.ep
    yield arg("--ep-size", ep, "layout.ep")
    backend = _A2A.get(launch.stack)
    if backend and ep > A2A_ABOVE and ep == launch.layout.tp * launch.layout.dp:
        yield arg("--moe-a2a-backend", backend, f"more than {A2A_ABOVE} ranks of experts: an all-to-all")  # fmt: skip


def _limits(launch: Launch) -> Iterator[Arg]:
    pool, groups = launch.pool, launch.layout.dp if _is_grouped(launch) else 1
    copies = launch.layout.dp if not _is_grouped(launch) else 1
    yield arg("--context-length", launch.context_tokens, "services.context, the model's own limit or what the cache holds, whichever is least")  # fmt: skip
    yield arg("--max-running-requests", launch.sequences_per_group * groups, f"max_sequences = {pool.max_sequences}" + (f" over {copies} copies" if copies > 1 else "") + (f", a multiple of {groups} groups" if groups > 1 else ""))  # fmt: skip
    yield arg("--chunked-prefill-size", pool.max_step_tokens * groups, f"max_step_tokens = {pool.max_step_tokens}" + (f" times {groups} groups, which SGLang divides by" if groups > 1 else ""))  # fmt: skip
    yield arg("--max-prefill-tokens", pool.max_step_tokens, "max_step_tokens, of each group")
    yield arg("--mem-fraction-static", thousandths(launch.static_fraction), f"memory_fraction of the calibration of {launch.chip}, less activations")  # fmt: skip


def _is_mixed(launch: Launch) -> bool:
    return launch.settings.prefill == "chunked" and launch.layout.pp == 1 and launch.pool.role == "both"  # fmt: skip


def _settings(launch: Launch) -> Iterator[Arg]:
    said = launch.pool.engine_args
    if _is_mixed(launch):
        yield Arg(flag="--enable-mixed-chunk", why="prefill = chunked: prompts share steps with decode")  # fmt: skip
    if said.prefix_hits == 0:
        yield Arg(flag="--disable-radix-cache", why="engine_args.prefix_hits = 0")
    if not launch.drafts:
        return
    why = f"engine_args.num_speculative_tokens = {launch.drafts}"
    if launch.model.mtp_layers:
        yield arg("--speculative-algorithm", "NEXTN", "the model's own layers for drafting")
    else:
        yield arg("--speculative-algorithm", "EAGLE3", "the model has no layers for drafting")
        yield Arg(flag="--speculative-draft-model-path", value='"$DRAFT_MODEL"', why="not of the plan")  # fmt: skip
    yield arg("--speculative-num-steps", launch.drafts, why)
    yield arg("--speculative-eagle-topk", 1, "a chain, as planned")
    yield arg("--speculative-num-draft-tokens", launch.drafts + 1, why + ", and the token they follow")  # fmt: skip


def _transfer(launch: Launch) -> Iterator[Arg]:
    if launch.apart is None:
        return
    yield arg("--disaggregation-mode", launch.pool.role, "role")
    yield arg("--disaggregation-transfer-backend", launch.apart.connector, f"what {launch.stack} hands a cache on with")  # fmt: skip
    if launch.pool.role == "prefill":
        yield Arg(flag="--disaggregation-bootstrap-port", value=f"$(( {BOOTSTRAP_PORT + 100 * launch.index} + REPLICA ))", why="one for each replica")  # fmt: skip


def _place(launch: Launch, node: int, nodes: int) -> Iterator[Arg]:
    if nodes == 1:
        return
    yield arg("--nnodes", nodes, f"world of {launch.world} over nodes of {launch.node_ranks} devices")  # fmt: skip
    yield arg("--node-rank", node, "of this script")
    yield Arg(flag="--dist-init-addr", value=f'"$HEAD_ADDR:$(( {INIT_PORT + 100 * launch.index} + REPLICA ))"', why="the replica's first node")  # fmt: skip


def _notes(launch: Launch) -> Iterator[str]:
    if launch.layout.pp > 1 and launch.settings.prefill == "chunked":
        yield f"{launch.name}: predicted with chunked prefill; in pipeline stages SGLang mixes no prompts with decode, so TPOT differs - plan with prefill=exclusive"


def router(prefill: list[Launch], decode: list[Launch]) -> str:
    """SGLang's router between prefill and decode."""
    lines = [
        "#!/usr/bin/env bash",
        "# SGLang's router: a request goes to a prefill replica and a decode replica at once.",
        "set -eu",
        "",
        f'PREFILL_HOSTS="${{PREFILL_HOSTS:?addresses of the first nodes of the {_count(prefill)} prefill replicas, in order}}"',
        f'DECODE_HOSTS="${{DECODE_HOSTS:?addresses of the first nodes of the {_count(decode)} decode replicas, in order}}"',
        f"PREFILL_PORTS=({_ports(prefill, PORT)})",
        f"BOOTSTRAP_PORTS=({_ports(prefill, BOOTSTRAP_PORT)})",
        f"DECODE_PORTS=({_ports(decode, PORT)})",
        "",
        "args=(",
        "  --pd-disaggregation",
        '  --host "${HOST:-0.0.0.0}"',
        '  --port "${PORT:-8000}"',
        ")",
        "i=0",
        "for host in $PREFILL_HOSTS; do",
        '  args+=(--prefill "http://$host:${PREFILL_PORTS[$i]}" "${BOOTSTRAP_PORTS[$i]}")',
        "  i=$(( i + 1 ))",
        "done",
        "i=0",
        "for host in $DECODE_HOSTS; do",
        '  args+=(--decode "http://$host:${DECODE_PORTS[$i]}")',
        "  i=$(( i + 1 ))",
        "done",
        'exec python3 -m sglang_router.launch_router "${args[@]}"',
    ]
    return "\n".join(lines) + "\n"


def _count(pools: list[Launch]) -> int:
    return sum(one.pool.replicas for one in pools)


def _ports(pools: list[Launch], base: int) -> str:
    return " ".join(str(base + 100 * one.index + replica) for one in pools for replica in range(one.pool.replicas))  # fmt: skip
