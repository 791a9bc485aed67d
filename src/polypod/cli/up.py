"""polypod up: pool what is here and serve it behind one OpenAI endpoint."""

import argparse
import asyncio
import json
import signal
import sys
from dataclasses import replace
from socket import socket
from typing import Final

import msgspec
import uvloop

from polypod import units
from polypod.cli.asking import note
from polypod.cli.host import measured_host
from polypod.cli.up_asked import QUESTION, ask_all
from polypod.cli.up_entry import add_entry, entry, within_descriptors
from polypod.cli.up_fit import fit_text
from polypod.cli.up_ghosts import (
    add_ghosts,
    ask_ghosts,
    ghosts_text,
    prepared_ghosts,
    ready,
    wants_ghosts,
)
from polypod.cli.up_plan import plan_for, read_for_here
from polypod.cli.up_text import (
    Answered,
    answers_text,
    cleaned_text,
    machine_text,
    model_text,
    plan_text,
    up_object,
    warm_up_text,
)
from polypod.errors import EngineError, InputError, RunError
from polypod.plan.predict import service_model
from polypod.policy.events import Continuation
from polypod.serve.control import Control
from polypod.serve.devices.cpu import find_cpu
from polypod.serve.engines.openai_url import read_url
from polypod.serve.kept_runs import said_of_runs
from polypod.serve.listen import bind
from polypod.serve.local import prepare
from polypod.serve.node import Entry, LiveNode, Prepared, WarmUp, run_folder
from polypod.serve.nodes import clean_up
from polypod.serve.slack import settle_collector
from polypod.serve.store import state_directory
from polypod.serve.supervise import Down

DEFAULT_PORT: Final = 8321


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a GGUF file, a folder with safetensors, or an id of the Hugging Face hub, as org/name or org/name:file.gguf (default: the embedded SmolLM2-135M-Instruct)",
    )
    parser.add_argument("--verify", action="store_true", help="read large model files whole, to compare them with their sha256")  # fmt: skip
    parser.add_argument("--plan", metavar="FILE", help="serve this plan instead of making one")
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        metavar="N",
        help=f"listen here; 0 takes any (default: {DEFAULT_PORT})",
    )
    add_entry(parser)
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="NAME",
        help="llama.cpp, openvino, vllm, transformers; repeat for several (default: those installed that read the model's format)",
    )
    parser.add_argument(
        "--engine-url",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="an OpenAI-compatible endpoint that has the same model, as one more replica; its key is in POLYPOD_KEY_NAME",
    )
    parser.add_argument(
        "--context",
        default="4096",
        metavar="TOKENS",
        help="prompt plus answer, per sequence (default: 4096)",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure this machine again, even if a measurement is kept",
    )
    parser.add_argument(
        "--apart",
        action="store_true",
        help="compute prompts on one half of the cores and answers on the other; llama.cpp hands the caches over",
    )
    parser.add_argument("--drain", default="30s", metavar="TIME", help="how long answers under way may take when it is stopped (default: 30s)")  # fmt: skip
    parser.add_argument("--engine-memory", metavar="SIZE", help="the most each engine may take; one that takes more is started anew (default: its share of the machine's)")  # fmt: skip
    parser.add_argument(
        "--stages",
        action="store_true",
        help="one model over both halves of the cores, each with as many layers as it is fast; vllm runs it",
    )
    parser.add_argument("--continue", dest="continuation", choices=("off", "text", "exact"), help="let streams that break off go on at another replica, where the request does not say (default: as the plan has it, else off)")  # fmt: skip
    add_ghosts(parser)
    parser.add_argument("--once", action="store_true", help="answer one question, stop, and exit")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object when the node is ready"
    )


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.port <= 65535:
        msg = f"--port {args.port} is no port; give 0 to 65535"
        raise InputError(msg)
    _check_layout(args)
    state = state_directory()
    who = entry(args, state)
    listener = bind(args.host, args.port, has_keys=who.rules.needs_key)
    units.parse(args.drain, "s")
    for one in clean_up(state):
        note(cleaned_text(one))
    if said := said_of_runs(state):
        note(said)
    try:
        if wants_ghosts(args):
            prepared = prepared_ghosts(args, state)
            if not args.json:
                print(ghosts_text(prepared, args.ghost_speed), flush=True)
            return uvloop.run(_up(args, prepared, listener, who))
        remotes = tuple(map(read_url, args.engine_url))
        given = read_for_here(args)
        cpu = find_cpu()
        measured = measured_host(cpu, fresh=args.measure)
        plan = plan_for(args, given, state, cpu, measured)
        prepared = replace(
            prepare(plan, run_folder(state)),
            engine_memory_bytes=_engine_memory_bytes(args),
            remotes=remotes,
        )
        if not args.json:
            print(machine_text(cpu, measured))
            print(model_text(plan, service_model(plan.services[0])))
            print(plan_text(plan), flush=True)
        return uvloop.run(_up(args, prepared, listener, who))
    finally:
        listener.close()


def _with_continuation(prepared: Prepared, mode: Continuation | None) -> Prepared:
    if mode is None:
        return prepared
    policy = msgspec.structs.replace(prepared.plan.policy, continuation=mode)
    return replace(prepared, plan=msgspec.structs.replace(prepared.plan, policy=policy))


def _engine_memory_bytes(args: argparse.Namespace) -> int | None:
    return None if args.engine_memory is None else int(units.parse(args.engine_memory, "bytes"))


def _check_layout(args: argparse.Namespace) -> None:
    said = [f"--{name}" for name in ("stages", "apart", "plan") if getattr(args, name)]
    if len(said) > 1:
        msg = f"{' and '.join(said)} each lay the cores out in a way of their own; say one"
        raise InputError(msg)


async def _up(args: argparse.Namespace, prepared: Prepared, listener: socket, who: Entry) -> int:
    prepared = _with_continuation(prepared, args.continuation)
    who = within_descriptors(args, who, prepared.processes, prepared.max_sequences)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    warm_ups: dict[str, WarmUp] = {}
    node = LiveNode(
        prepared,
        listener,
        lambda news: _changed(news, warm_ups, quiet=args.json),
        entry=who,
    )

    def interrupted() -> None:
        if stop.is_set():  # asked twice
            node.hurry()
        elif node.in_flight:
            note(
                f"waiting up to {args.drain} for {node.in_flight} answers; once more stops at once"
            )
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    if not await _started(node, stop):
        note("stopped before the engines were up; no process is left")
        return 130
    try:
        async with Control(node):
            await _serve(args, node, prepared, warm_ups, stop)
    finally:
        await node.__aexit__(None, None, None)
    note(f"stopped; record, plan and logs are in {prepared.folder}")
    return 0


async def _serve(
    args: argparse.Namespace,
    node: LiveNode,
    prepared: Prepared,
    warm_ups: dict[str, WarmUp],
    stop: asyncio.Event,
) -> None:
    """Until it is asked to stop, and what is under way has ended."""
    settle_collector()
    serving = asyncio.create_task(node.serve(stop, grace_s=units.parse(args.drain, "s")))
    try:
        await _introduce(args, node, prepared, warm_ups)
    except RunError:
        was_asked = stop.is_set()  # in the middle of its own question
        stop.set()
        await serving
        if not was_asked:
            raise
        return
    if args.once:
        stop.set()
    await serving


async def _started(node: LiveNode, stop: asyncio.Event) -> bool:
    """Whether the engines are up; where it was asked to stop before that, they are ended again."""
    note("starting engines ...")
    starting = asyncio.create_task(node.__aenter__())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if starting.done():
        try:
            await starting
        except EngineError as error:
            raise RunError(fit_text(error, node.prepared.plan, find_cpu())) from error
        return True
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    return False


async def _introduce(
    args: argparse.Namespace,
    node: LiveNode,
    prepared: Prepared,
    warm_ups: dict[str, WarmUp],
) -> None:
    """Show that every replica answers, beside what was predicted."""
    if prepared.ghosts is not None:
        ready(args, node, prepared, await ask_ghosts(node, prepared))
        return
    answers = await ask_all(node, prepared, warm_ups)
    _ready(args, node, prepared, warm_ups, answers)


def _changed(news: WarmUp | Down, warm_ups: dict[str, WarmUp], *, quiet: bool) -> None:
    if isinstance(news, Down):
        note(
            f"replica {news.replica} (start {news.epoch}) is down: {news.reason}; it will be started again"
        )
        return
    warm_ups[news.replica] = news
    text = warm_up_text(news)
    note(text) if quiet else print(text, flush=True)


def _ready(
    args: argparse.Namespace,
    node: LiveNode,
    prepared: Prepared,
    warm_ups: dict[str, WarmUp],
    answers: list[Answered],
) -> None:
    endpoint = f"{node.url}/v1"
    if args.json:
        shown = up_object(prepared.plan, endpoint, list(warm_ups.values()), QUESTION, answers)
        json.dump(shown, sys.stdout, indent=2)
        print(flush=True)
        return
    print(answers_text(QUESTION, answers))
    model = prepared.plan.services[0].model
    print(
        f"\nendpoint      {endpoint}\n              model {model}; Ctrl-C stops everything",
        flush=True,
    )
