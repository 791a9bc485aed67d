"""polypod up --ghost: a plan for cards that nobody owns, served by ghosts behind the real node."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from polypod import units
from polypod.cli.asking import count
from polypod.errors import InputError
from polypod.plan.spec import Plan, Source, read_plan
from polypod.policy.events import ReplicaUp
from polypod.report.tables import entry, table
from polypod.serve.ask import Asked
from polypod.serve.engines.ghost import ENGINE_NAME
from polypod.serve.links import Links
from polypod.serve.local import prepare_ghosts
from polypod.serve.node import LiveNode, Prepared, run_folder
from polypod.workload.layout import describe

QUESTION: Final = "How long does it take to answer this question? " * 8
ANSWER_TOKENS: Final = 48
MOST_PROCESSES: Final = 256
MADE_UP: Final = (
    "nothing is computed: answers are made up, and their times are what the plan predicts"
)


def add_ghosts(parser: argparse.ArgumentParser) -> None:
    """What `up` takes for ghosts."""
    parser.add_argument(
        "--ghost",
        action="store_true",
        help="serve --plan by ghosts, whatever it runs on: answers are made up, times are predicted",
    )
    parser.add_argument(
        "--ghost-speed",
        default="1x",
        metavar="N",
        help="how many times as fast as planned ghosts are, as 10x (default: 1x)",
    )
    parser.add_argument(
        "--ghost-processes",
        default="1",
        metavar="N",
        help="processes that they share (default: 1)",
    )


def wants_ghosts(args: argparse.Namespace) -> bool:
    """Whether ghosts are asked for: by the flag, or by a plan whose engine is `ghost`."""
    if args.ghost:
        if not args.plan:
            msg = "--ghost serves a plan; name it with --plan, as `polypod plan ... -o plan.yaml` writes one"
            raise InputError(msg)
        return True
    plan = read_plan(Path(args.plan)) if args.plan else None
    pools = [pool for service in plan.services for pool in service.pools] if plan else []
    ghosts = [pool.engine == ENGINE_NAME for pool in pools]
    if any(ghosts) and not all(ghosts):
        msg = f"{args.plan}: some pools have the engine {ENGINE_NAME!r} and some do not, and made-up answers do not mix with others; make all of them ghosts with --ghost"
        raise InputError(msg)
    return any(ghosts)


def prepared_ghosts(args: argparse.Namespace, state: Path) -> Prepared:
    """The plan, ready for ghosts. Raises `InputError` for flags that are none."""
    speed_ratio = speed(args.ghost_speed)
    processes = count("--ghost-processes", args.ghost_processes)
    if processes > MOST_PROCESSES:
        msg = f"--ghost-processes {processes} is more than {MOST_PROCESSES}; a process holds thousands of ghosts"
        raise InputError(msg)
    plan = read_plan(Path(args.plan))
    return prepare_ghosts(plan, run_folder(state), speed_ratio=speed_ratio, processes=processes)


def speed(text: str) -> float:
    """How many times as fast, as `10x`. Raises `InputError`."""
    try:
        value = float(text.removesuffix("x"))
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 1000:
        msg = f"--ghost-speed {text} is no speed from 0.01x to 1000x; give one as 10x"
        raise InputError(msg)
    return value


def ghosts_text(prepared: Prepared, text: str) -> str:
    """What is about to be served, said loudly to be made up."""
    fast = speed(text)
    pace = "" if fast == 1 else f", {units.significant(fast)} times as fast as planned"
    lines = [entry("GHOSTS", f"{MADE_UP}{pace}")]
    for service in prepared.plan.services:
        for pool in service.pools:
            where = _where(prepared.plan, pool.on)
            ghosts = "1 ghost" if pool.replicas == 1 else f"{pool.replicas:,} ghosts"
            layout = describe(pool.layout)
            phase = "" if pool.role == "both" else f" for {pool.role}"
            text = f"{service.model}: {ghosts}{phase} of [{layout}] on {where}"
            lines.append(entry("model", text))
    return "\n".join(lines)


def _where(plan: Plan, name: str) -> str:
    source: Source = plan.fleet[name]
    return str(source.pod or source.accelerator or source.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Haunted:
    """One ghost's answer, with what was predicted for its lengths on an idle replica."""

    asked: Asked
    ttft_s: float
    tpot_s: float


async def ask_ghosts(node: LiveNode, prepared: Prepared) -> list[Haunted]:
    """Put a question to one ghost of each pool, through the endpoint."""
    firsts: dict[tuple[str, str], ReplicaUp] = {}
    for up in prepared.ups:
        firsts.setdefault((up.model, up.pool), up)
    found = []
    for up in firsts.values():
        if up.role == "prefill":
            continue
        asked = await node.ask(
            QUESTION, max_tokens=ANSWER_TOKENS, replica=up.replica, model=up.model
        )
        ttft_s, tpot_s = alone_s(up, asked.input_tokens, asked.output_tokens)
        if up.role == "decode":
            ttft_s = least_ttft_s(prepared.ups, up, asked.input_tokens)
        found.append(Haunted(asked=asked, ttft_s=ttft_s, tpot_s=tpot_s))
    return found


def alone_s(up: ReplicaUp, input_tokens: int, output_tokens: int) -> tuple[float, float]:
    """TTFT and TPOT of one request on an idle replica: its prompt in chunks of the step budget, then steps of one token.

    Engines that draft give several tokens a step.
    """
    step, done, ttft_s = up.step_time, 0, 0.0
    while done < input_tokens:
        chunk = min(up.max_step_tokens, input_tokens - done)
        ttft_s += step.prompt_s(chunk, cached=done)
        done += chunk
    drafts = up.engine.drafts if up.engine else 0.0
    given = up.engine.tokens_per_step if up.engine else 1.0
    kv_tokens = input_tokens + output_tokens / 2
    return ttft_s, step.step_s(tokens=1 + drafts, kv_tokens=kv_tokens, sequences=1) / given


def least_ttft_s(ups: Sequence[ReplicaUp], decode: ReplicaUp, input_tokens: int) -> float:
    """From an idle prefill replica, whichever of those that hand their caches to the decode replica is fastest: the prompt, the cache's way, a decode step."""
    first_s = decode.step_time.step_s(tokens=1, kv_tokens=input_tokens, sequences=1)
    ways_s = [
        alone_s(up, input_tokens, 1)[0] + Links().way_s(up, decode, input_tokens)
        for up in ups
        if up.role == "prefill" and up.model == decode.model
        if not up.kv_pools or decode.pool in up.kv_pools
    ]
    return min(ways_s) + first_s


def answers_text(answers: list[Haunted]) -> str:
    """Predicted and measured, side by side."""
    rows = []
    for one in answers:
        asked = one.asked
        lengths = f"  ({asked.input_tokens} tokens in, {asked.output_tokens} out)"
        measured_s = units.show(asked.ttft_s, "s")
        rows.append([asked.replica or "?", "TTFT", units.show(one.ttft_s, "s"), measured_s])
        rows.append([lengths, "TPOT", units.show(one.tpot_s, "s"), units.show(asked.tpot_s, "s")])
    return table(["", "", "predicted", "measured"], rows, right=[2, 3])


def ready(
    args: argparse.Namespace, node: LiveNode, prepared: Prepared, answers: list[Haunted]
) -> None:
    """Say that the node serves."""
    endpoint = f"{node.url}/v1"
    if args.json:
        json.dump(_object(endpoint, prepared, answers), sys.stdout, indent=2)
        print(flush=True)
        return
    print("\n" + answers_text(answers))
    models = ", ".join(service.model for service in prepared.plan.services)
    lines = [entry("endpoint", endpoint), entry("", f"model {models}; answers are made up; Ctrl-C stops everything")]  # fmt: skip
    print("\n" + "\n".join(lines), flush=True)


def _object(endpoint: str, prepared: Prepared, answers: list[Haunted]) -> dict[str, Any]:
    plan = prepared.plan
    return {
        "endpoint": endpoint,
        "ghosts": len(prepared.ups),
        "made_up": MADE_UP,
        "plan": {"polypod": plan.polypod, **msgspec.to_builtins(plan)},
        "answers": [
            {
                **msgspec.to_builtins(one.asked),
                "predicted": {"ttft_s": one.ttft_s, "tpot_s": one.tpot_s},
            }
            for one in answers
        ],
    }
