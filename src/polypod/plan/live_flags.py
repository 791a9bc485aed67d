"""What one replica's engine is told when Polypod starts it itself: the arguments of its launch file, with the shell's part of them done.

A launch file leaves to the shell what differs between replicas: `$(( 36000 + REPLICA * 100 ))`. Here the replica is known. What every adapter
says of itself (the model, its name, where it listens, the context and the sequences) is left out.
"""

import json
import re
import shlex
from math import prod
from typing import Final

from polypod.plan import emit_lmdeploy, emit_mindie, emit_sglang, emit_vllm
from polypod.plan.emitted import Arg, Launch, thousandths
from polypod.plan.flags import Target

_SAID: Final = {
    "vllm": ('"$MODEL"', "--served-model-name", "--host", "--port", "--max-model-len", "--max-num-seqs"),
    "sglang": ("--model-path", "--served-model-name", "--host", "--port", "--context-length", "--max-running-requests"),
    "lmdeploy": ('"$MODEL"', "--model-name", "--server-name", "--server-port", "--backend", "--device", "--session-len", "--max-batch-size"),
}  # fmt: skip

_WRITERS: Final = {"vllm": emit_vllm, "sglang": emit_sglang, "lmdeploy": emit_lmdeploy}

_SUM: Final = re.compile(r"\$\(\(([^()]*)\)\)")

MINDIE_CONFIG: Final = "POLYPOD_MINDIE_CONFIG"


def live_arguments(launch: Launch, engine: Target, replica: int) -> list[str]:
    """Arguments of one replica, as its process takes them; of MindIE none, which reads a file.

    Raises `InputError` for what is not started from here: a replica over several nodes, prefill and decode apart, drafts by a model of their own.
    """
    _check(launch)
    if engine == "mindie":
        return []
    writer = _WRITERS[engine]
    writer.write(launch)  # for what the engine has no flag for
    return [
        word
        for one in writer.on_one_node(launch)
        if one.flag not in _SAID[engine]
        for word in _words(one, replica)
    ]


def live_variables(launch: Launch, engine: Target) -> dict[str, str]:
    """The environment of a pool's replicas; for MindIE its configuration."""
    if engine != "mindie":
        return {}
    emit_mindie.write(launch)
    config = json.dumps(emit_mindie.config_of(launch))
    fraction = thousandths(launch.memory_fraction)
    return {MINDIE_CONFIG: config, "NPU_MEMORY_FRACTION": str(fraction)}


def devices_of(launch: Launch, replica: int) -> range:
    """Which of the island's devices a replica has, counted from 0."""
    first = launch.first_rank + replica * launch.world
    return range(first, first + launch.world)


def _check(launch: Launch) -> None:
    if launch.nodes > 1:
        msg = f"a replica of {launch.world} ranks spans {launch.nodes} nodes, and one node's engines are started here; launch it by the files of polypod emit"
        raise launch.refuse(msg)
    if launch.apart is not None:
        msg = (
            f"role {launch.pool.role}: a cache handed on by {launch.apart.connector} is not driven by this node; launch it by the files of polypod emit, "
            "or plan with role both"
        )
        raise launch.refuse(msg)
    if launch.drafts and not launch.model.mtp_layers:
        msg = f"{launch.drafts} drafts by a model of their own: a plan does not say which; launch it by the files of polypod emit, or plan without drafts"
        raise launch.refuse(msg)


def _words(argument: Arg, replica: int) -> list[str]:
    """An argument's shell text as words.

    >>> _words(Arg(flag="--port", value="$(( 36000 + REPLICA * 100 ))", why=""), 2)
    ['--port', '36200']
    """
    text = argument.flag if argument.value is None else f"{argument.flag} {argument.value}"
    return shlex.split(_SUM.sub(lambda found: str(_sum(found[1], replica)), text))


def _sum(text: str, replica: int) -> int:
    """A sum of products of whole numbers and REPLICA, which is all that launch files reckon."""
    return sum(
        prod(replica if factor.strip() == "REPLICA" else int(factor) for factor in term.split("*"))
        for term in text.split("+")
    )
