"""A pool as `lmdeploy serve api_server` scripts, of LMDeploy's PyTorch engine, which is the one that runs on other devices than NVIDIA's.

A server is one group of tensor ranks on one node. Its data-parallel ranks would be servers of their own that find each other by LMDeploy's proxy, and
its experts are spread over those alone, so both are refused here. Prompts are computed in steps of their own, long ones in pieces.
"""

from collections.abc import Iterator
from typing import Final

from polypod.plan.emitted import (  # fmt: skip
    DTYPE,
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

PORT: Final = 23333

CONNECTORS: Final[dict[str, str]] = {}
"""None: its hand-over of caches is set up by its proxy, request by request."""

DEVICES: Final = {"cuda": "cuda", "cann": "ascend", "maca": "maca", "neuware": "camb"}
"""What `--device` calls a stack."""

DRAFTED: Final = {"deepseek_v3": "deepseek_mtp", "deepseek_v32": "deepseek_mtp"}
"""By model type, what `--speculative-algorithm` calls drafting by the model's own layers."""

_KV: Final = {"bf16": "none", "fp16": "none", "fp8": "fp8", "int8": "int8", "int4": "int4"}
_FORMATS: Final = {"fp8": "fp8", "int4": "awq"}
_WEIGHTS: Final = ("bf16", "fp16", "fp8", "int8", "int4")


def write(launch: Launch) -> Written:
    """The script of one pool. Raises `InputError` for what LMDeploy has no flag for."""
    for problem in (*_layout_problems(launch), *_other_problems(launch)):
        raise launch.refuse(problem)
    file = f"{launch.stem}.sh"
    text = script(
        launch,
        file,
        setup=[
            *model_lines(launch, must_be(launch)),
            f"PORT=$(( {PORT + 100 * launch.index} + REPLICA ))",
        ],
        command="lmdeploy serve api_server",
        args=on_one_node(launch),
    )
    return Written(files={file: text}, notes=tuple(_notes(launch)))


def on_one_node(launch: Launch) -> list[Arg]:
    """All arguments of a replica."""
    return list(_arguments(launch))


def _layout_problems(launch: Launch) -> Iterator[str]:
    layout = launch.layout
    if layout.pp > 1:
        yield f"pp={layout.pp}: LMDeploy has no pipeline stages; plan with pp=1, or emit for vllm"
    if layout.dp > 1 or layout.ep > 1:
        yield (
            f"dp={layout.dp}, ep={layout.ep}: LMDeploy's data-parallel ranks are servers that find each other by its proxy, and its experts are spread "
            "over those alone; plan with dp=1 and ep=1 and more replicas, or emit for vllm or sglang"
        )
    if launch.nodes > 1:
        yield f"{launch.world} ranks on nodes of {launch.node_ranks} devices: a server of LMDeploy's PyTorch engine is on one node; plan with tp={launch.node_ranks} or less"
    if layout.tp & (layout.tp - 1):
        yield f"tp={layout.tp}: --tp of LMDeploy is a power of 2; plan with one"


def _other_problems(launch: Launch) -> Iterator[str]:
    precision, model = launch.pool.precision, launch.model
    if launch.stack not in DEVICES:
        yield f"{launch.chip}: --device of LMDeploy takes {', '.join(DEVICES.values())}, of {', '.join(DEVICES)}; emit for vllm or sglang"
    if precision.weights not in _WEIGHTS:
        yield f"weights in {precision.weights}: LMDeploy serves {', '.join(_WEIGHTS)}; plan with one of them"
    if precision.kv not in _KV:
        yield f"cache in {precision.kv}: --quant-policy of LMDeploy takes no such type; plan with one of {', '.join(_KV)}"
    if launch.says_prefill and launch.settings.prefill == "chunked":
        yield "prefill=chunked: LMDeploy computes prompts in steps of their own; plan with prefill=exclusive"
    if launch.drafts and not (model.mtp_layers and model.model_type in DRAFTED):
        yield f"{launch.drafts} drafts: with layers of its own LMDeploy drafts for {', '.join(DRAFTED)}, {model.name} is {model.model_type}; plan without drafts"


def _arguments(launch: Launch) -> Iterator[Arg]:
    precision = launch.pool.precision
    yield Arg(flag='"$MODEL"', why="services.model")
    yield arg("--model-name", launch.service.model, "services.model")
    yield Arg(flag="--server-name", value='"$HOST"', why="of this node")
    yield Arg(flag="--server-port", value='"$PORT"', why="counted from the pool's first")
    yield arg("--backend", "pytorch", "the engine that runs on every device of LMDeploy")
    yield arg("--device", DEVICES[launch.stack], f"{launch.chip}")
    yield arg("--tp", launch.layout.tp, "layout.tp")
    if precision.weights in DTYPE:
        yield arg("--dtype", DTYPE[precision.weights], "precision.weights")
    elif precision.weights in _FORMATS and not is_own(launch):
        yield arg("--model-format", _FORMATS[precision.weights], f"precision.weights = {precision.weights}")  # fmt: skip
    yield arg("--quant-policy", _KV[precision.kv], f"precision.kv = {precision.kv}")
    yield arg("--session-len", launch.context_tokens, "services.context, the model's own limit or what the cache holds, whichever is least")  # fmt: skip
    yield arg("--max-batch-size", launch.pool.max_sequences, "max_sequences")
    yield arg("--max-prefill-token-num", launch.pool.max_step_tokens, "max_step_tokens")
    yield arg("--cache-max-entry-count", thousandths(launch.kv_fraction), f"memory_fraction of the calibration of {launch.chip}, as the cache's part of what weights and activations leave")  # fmt: skip
    if launch.pool.engine_args.prefix_hits != 0:
        yield Arg(flag="--enable-prefix-caching", why="engine_args.prefix_hits; LMDeploy keeps no prefixes without it")  # fmt: skip
    if launch.drafts:
        yield arg("--speculative-algorithm", DRAFTED[launch.model.model_type], "the model's own layers for drafting")  # fmt: skip
        yield arg("--speculative-num-draft-tokens", launch.drafts, f"engine_args.num_speculative_tokens = {launch.drafts}")  # fmt: skip


def _notes(launch: Launch) -> Iterator[str]:
    if launch.settings.prefill == "chunked":
        yield f"{launch.name}: predicted with chunked prefill; LMDeploy computes prompts in steps of their own, so TTFT and TPOT differ - plan with prefill=exclusive"
