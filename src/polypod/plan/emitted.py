"""What the writers of engines' launch files share: one pool to launch, one argument with its reason, one script.

Scripts take the number of the replica as their first argument and the rest from the environment: MODEL, HOST, and HEAD_ADDR where a
replica spans nodes. Ports count up from one number a pool, devices from where the pool begins on its island.
"""

import math
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from polypod.catalog.interop import EngineAnswer
from polypod.engine.settings import EngineArgs, default_args
from polypod.errors import InputError
from polypod.plan.spec import Pool, Service
from polypod.workload.layout import Layout
from polypod.workload.model import Model

VISIBLE: Final = {
    "cuda": "CUDA_VISIBLE_DEVICES",
    "cann": "ASCEND_RT_VISIBLE_DEVICES",
    "rocm": "HIP_VISIBLE_DEVICES",
    "dtk": "HIP_VISIBLE_DEVICES",
    "musa": "MUSA_VISIBLE_DEVICES",
}
"""What keeps a process to some of a node's devices, by stack."""

DTYPE: Final = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
QUANTISED: Final = ("fp8", "int8", "fp4", "int4", "mxfp4", "nvfp4")
"""What vLLM and SGLang call the types of weights that are not quantised, and the types that are."""

A2A_ABOVE: Final = 8
"""Expert-parallel ranks above which tokens travel by an all-to-all, as the cost model has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """Prefill and decode in pools of their own: the layouts of both, and what carries the cache."""

    prefill: Layout
    decode: Layout
    connector: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One pool as an engine's writer sees it."""

    path: str  # in the plan file
    name: str
    index: int  # among the plan's pools: ports
    service: Service
    pool: Pool
    model: Model
    chip: str
    stack: str
    answer: EngineAnswer
    node_ranks: int  # devices of a node
    first_rank: int  # of the island's, where this pool begins
    memory_fraction: float
    static_fraction: float  # of the memory, less activations
    kv_fraction: float  # of what weights and activations leave of the memory, the cache's part
    context_tokens: int
    apart: Apart | None = None

    @property
    def layout(self) -> Layout:
        return self.pool.layout

    @property
    def world(self) -> int:
        return self.layout.world

    @property
    def stem(self) -> str:
        return f"{self.name}-{self.pool.role}"

    @property
    def nodes(self) -> int:
        """Nodes that a replica spans."""
        return -(-self.world // self.node_ranks)

    @property
    def sequences_per_group(self) -> int:
        """Of `max_sequences`, what one group of data-parallel attention holds."""
        return -(-self.pool.max_sequences // self.layout.dp)

    @property
    def settings(self) -> EngineArgs:
        """What was predicted: the pool's settings, and the defaults of the engine it was timed as."""
        return self.pool.engine_args.over(default_args(self.pool.engine))

    @property
    def says_prefill(self) -> bool:
        """Whether the plan says how prompts are computed, rather than leaving it to a default."""
        return self.pool.engine_args.prefill is not None

    @property
    def drafts(self) -> int:
        return self.pool.engine_args.num_speculative_tokens or 0

    @property
    def longest_input_tokens(self) -> int:
        return max(1, self.context_tokens - 1)

    def refuse(self, problem: str) -> InputError:
        """An error with the pool's place in the plan."""
        return InputError(f"{problem} - at `{self.path}`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg:
    """One argument: `value` is shell text, None for a switch."""

    flag: str
    why: str
    value: str | None = None

    @property
    def line(self) -> str:
        said = self.flag if self.value is None else f"{self.flag} {self.value}"
        return f"  {said}  # {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A pool's files by name, and where what they start differs from what was predicted."""

    files: dict[str, str]
    notes: tuple[str, ...] = ()


def arg(flag: str, value: object, why: str) -> Arg:
    """An argument with a literal value.

    >>> arg("--tp-size", 8, "the plan's layout").line
    "  --tp-size 8  # the plan's layout"
    """
    return Arg(flag=flag, value=shlex.quote(str(value)), why=why)


def script(launch: Launch, file: str, *, setup: Iterable[str], command: str, args: Iterable[Arg]) -> str:  # fmt: skip
    """A shell script that starts one replica, or one node's part of it."""
    lines = [
        "#!/usr/bin/env bash",
        *head_lines(launch, file),
        'HOST="${HOST:-0.0.0.0}"',
        *_devices(launch),
        *setup,
        "",
        "args=(",
        *(one.line for one in args),
        ")",
        f'exec {command} "${{args[@]}}"',
    ]
    return "\n".join(lines) + "\n"


def head_lines(launch: Launch, file: str) -> list[str]:
    """What a script is for, how it is called, and the replica it is called with."""
    last = launch.pool.replicas - 1
    version = f", {launch.answer.version}" if launch.answer.version else ""
    return [
        f"# Pool {launch.name}, role {launch.pool.role}: {launch.answer.engine} on {launch.chip}, {launch.answer.state}{version}",
        f"# Usage: bash {file} [REPLICA]   REPLICA: 0 to {last}, 0 where it is not given",
        "set -eu",
        "",
        f"REPLICA=${{1:-0}}  # {launch.pool.replicas} of them in the plan",
        'case "$REPLICA" in',
        '  *[!0-9]*) echo "$REPLICA is no number of a replica" >&2; exit 2 ;;',
        "esac",
        f'if [ "$REPLICA" -gt {last} ]; then echo "the plan has replicas 0 to {last}" >&2; exit 2; fi',
    ]


def _devices(launch: Launch) -> list[str]:
    if launch.nodes > 1:
        return ['HEAD_ADDR="${HEAD_ADDR:?the address of the first node of the replica}"']
    return device_lines(launch)


def device_lines(launch: Launch) -> list[str]:
    """Which of a node's devices a replica takes; nothing where it takes them all."""
    if launch.world == launch.node_ranks:
        return []
    visible = VISIBLE.get(launch.stack)
    if visible is None:
        return [f"# This script takes {launch.world} of a node's {launch.node_ranks} devices: which ones, your container must say."]  # fmt: skip
    return [
        f"FIRST=$(( ({launch.first_rank} + REPLICA * {launch.world}) % {launch.node_ranks} ))  # {launch.world} of a node's {launch.node_ranks} devices",
        f'{visible}=$(seq -s, "$FIRST" $(( FIRST + {launch.world} - 1 )))',
        f"export {visible}",
    ]


def model_lines(launch: Launch, quantised: str | None) -> list[str]:
    """Which checkpoint; `quantised` says what it must be where the model's own is not that."""
    if quantised is not None:
        return [f'MODEL="${{MODEL:?the path of {launch.service.model}, {quantised}}}"']
    own = launch.service.weights or launch.service.model
    return [f'MODEL="${{MODEL:-{own}}}"  # services.model of the plan']


def is_own(launch: Launch) -> bool:
    """Whether the model's own checkpoint is in the plan's precision."""
    wanted, stored = launch.pool.precision.weights, launch.model.weight_dtype
    return wanted == stored or {wanted, stored} <= {"bf16", "fp16"}


def must_be(launch: Launch) -> str | None:
    """What the checkpoint must be quantised to before it can be served in the plan's precision; None: its own will do."""
    return None if is_own(launch) else f"quantised to {launch.pool.precision.weights}"


def thousandths(fraction: float) -> float:
    """Rounded down, so that no more memory is asked for than the plan counted on."""
    return math.floor(fraction * 1000 + 1e-6) / 1000
