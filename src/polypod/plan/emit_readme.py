"""The README beside the launch files: where each pool runs, what to start in which order, and where it differs from what was predicted."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from polypod.plan.emitted import Launch, Written
from polypod.plan.flags import Target, flags_of

_LAYOUT_AXES: Final = ("tp", "pp", "dp", "ep")

_ORDER: Final = ("prefill", "decode", "both")


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """All that was written, before the README."""

    launches: tuple[Launch, ...]
    engines: Mapping[str, Target]
    written: Mapping[str, Written]
    routers: tuple[str, ...]
    assumed: tuple[str, ...]

    @property
    def in_order(self) -> list[Launch]:
        return sorted(self.launches, key=lambda one: _ORDER.index(one.pool.role))


def readme(emitted: Emitted) -> str:
    """The whole page."""
    parts = [
        "# Launching this plan",
        *_pools(emitted),
        *_order(emitted),
        *_list("Where this differs from what was predicted", (note for one in emitted.launches for note in emitted.written[one.name].notes)),
        *_list("Assumed", emitted.assumed),
        *_list("What the engines' states rest on", _states(emitted)),
        *_list("Flags", _checked(emitted)),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def _pools(emitted: Emitted) -> Iterator[str]:
    yield "\n| pool | role | replicas | layout | on | engine | devices a replica |"
    yield "|---|---|---|---|---|---|---|"
    for one in emitted.launches:
        cut = " ".join(f"{axis}{getattr(one.layout, axis)}" for axis in _LAYOUT_AXES if getattr(one.layout, axis) > 1) or "tp1"  # fmt: skip
        spread = f", {one.nodes} nodes of {one.node_ranks}" if one.nodes > 1 else ""
        yield (
            f"| {one.name} | {one.pool.role} | {one.pool.replicas} | {cut} | {one.chip} | {one.answer.engine} | {one.world}{spread} |"
        )


def _order(emitted: Emitted) -> Iterator[str]:
    yield "\n## What to start, in this order\n"
    number = 0
    for one in emitted.in_order:
        number += 1
        yield f"{number}. {_start(one, emitted)}"
    for name in emitted.routers:
        number += 1
        yield f"{number}. `bash {name}`, with PREFILL_HOSTS and DECODE_HOSTS: requests go to its port."
    if any(one.apart and emitted.engines[one.name] == "mindie" for one in emitted.launches):
        number += 1
        yield (
            f"{number}. MindIE Motor's controller, which tells each server its role, and its coordinator, which requests go to: "
            "https://gitcode.com/Ascend/MindIE-Motor/blob/master/docs/zh/user_guide/service_deployment/pd_separation_service_deployment.md"
        )
    if any(one.apart is None for one in emitted.launches):
        yield (
            "\nReplicas of role both answer requests themselves, each at its own port: put a balancer of OpenAI endpoints before them. "
            "The plan's router, predicted-finish, is Polypod's own and is no part of these files."
        )


def _start(one: Launch, emitted: Emitted) -> str:
    scripts = [name for name in emitted.written[one.name].files if name.endswith(".sh")]
    each = "" if one.pool.replicas == 1 else f" for every REPLICA from 0 to {one.pool.replicas - 1}"
    if len(scripts) == 1:
        spread = f" on each of the replica's {one.nodes} nodes, with HEAD_ADDR and RANK_TABLE_FILE" if one.nodes > 1 else ""  # fmt: skip
        return f"`bash {scripts[0]} REPLICA`{spread}{each}."
    return f"`bash {scripts[0]} REPLICA` to `bash {scripts[-1]} REPLICA`, one on each of {len(scripts)} nodes, with HEAD_ADDR the first one's address{each}."


def _states(emitted: Emitted) -> Iterator[str]:
    seen = set()
    for one in emitted.launches:
        if (one.chip, one.answer.engine) in seen:
            continue
        seen.add((one.chip, one.answer.engine))
        sources = "; ".join(cited.text for cited in one.answer.sources) or "no source"
        version = f" {one.answer.version}" if one.answer.version else ""
        yield f"{one.answer.engine}{version} on {one.chip}: {one.answer.state}, {one.answer.reason} ({sources})"


def _checked(emitted: Emitted) -> Iterator[str]:
    for engine in dict.fromkeys(emitted.engines.values()):
        flags = flags_of(engine)
        yield f"{flags.program}: checked on {flags.checked} against {', '.join(flags.sources.values())}"


def _list(title: str, lines: Iterator[str] | tuple[str, ...]) -> Iterator[str]:
    found = list(lines)
    if found:
        yield f"\n## {title}\n"
        yield from (f"* {line}" for line in found)
