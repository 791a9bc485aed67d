"""polypod apply: bring a running node to another plan, without dropping a stream."""

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec

from polypod import units
from polypod.errors import InputError, RunError
from polypod.plan.spec import Plan, read_plan
from polypod.report.tables import entry
from polypod.serve.control import Order, Word, give
from polypod.serve.nodes import NodeFile, running
from polypod.serve.store import state_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="the plan file it shall run")
    parser.add_argument("--node", metavar="WHICH", help="its URL, or its run's folder (default: the one that runs)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    parser.add_argument("--drain", default="10min", metavar="TIME", help="how long a replica that goes may take to end what it has; what takes longer ends with an error, or goes on elsewhere where it may (default: 10min)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")


def run(args: argparse.Namespace) -> int:
    plan = _rooted(read_plan(Path(args.plan)))
    node = which(running(state_directory()), args.node)
    order = Order(plan=plan, dry_run=args.dry_run, drain_s=units.parse(args.drain, "s"))
    words = asyncio.run(_follow(node, order, is_quiet=args.json))
    last = words[-1]
    if args.json:
        print(json.dumps({"node": node.url, "steps": [msgspec.to_builtins(one) for one in words[:-1]], "ended": last.state, "note": last.note}, indent=2))  # fmt: skip
    if last.state == "refused":
        raise InputError(last.note)
    if last.state == "failed":
        msg = f"{last.note}; the node has its old plan"
        raise RunError(msg)
    if not args.json:
        print(_ending(words, dry_run=args.dry_run))
    return 0


async def _follow(node: NodeFile, order: Order, *, is_quiet: bool) -> list[Word]:
    words = []
    async for word in give(Path(node.control), order):
        words.append(word)
        if not is_quiet and not word.is_last:
            print(_line(word), flush=True)
    return words


def which(nodes: list[NodeFile], wanted: str | None) -> NodeFile:
    """The node that is meant. Raises `InputError`."""
    if wanted is not None:
        base = wanted.rstrip("/").removesuffix("/v1")
        named = [node for node in nodes if base in (node.url, node.folder, Path(node.folder).name)]
        found, what = named, f"is {wanted}"
    else:
        found, what = nodes, "runs here"
    if len(found) == 1:
        return found[0]
    here = "; ".join(f"{node.url} ({node.folder})" for node in nodes)
    if not nodes:
        msg = f"no node {what}: start one with `polypod up`"
    elif not found:
        msg = f"no node {what}; there is {here}"
    else:
        msg = f"{len(found)} nodes run here; name one with --node: {here}"
    raise InputError(msg)


def _rooted(plan: Plan) -> Plan:
    """With weights by their whole path: the node has another working directory."""
    services = tuple(
        one if one.weights is None else msgspec.structs.replace(one, weights=str(Path(one.weights).resolve()))
        for one in plan.services
    )  # fmt: skip
    return msgspec.structs.replace(plan, services=services)


def _line(word: Word) -> str:
    said: dict[str, Any] = {"planned": "will", "begun": "now", "done": "done", "undone": "undone"}
    step = f"{word.step}/{word.steps} " if word.steps else ""
    took = "" if word.took_s is None else f", {units.show(word.took_s, 's')}"
    cut = f", {word.cut_requests} requests took too long" if word.cut_requests else ""
    note = f" ({word.note})" if word.note and word.state != "done" else ""
    what = word.replica or word.model or "limits"
    return entry(said[word.state], f"{step}{word.does} {what}{took}{cut}{note}")


def _ending(words: list[Word], *, dry_run: bool) -> str:
    if len(words) == 1:
        return entry("applied", "the node has these replicas already")
    if dry_run:
        return entry("", "nothing was done")
    cut = sum(word.cut_requests for word in words)
    return entry("applied", "no stream was dropped" if not cut else f"{cut} requests took longer than the drain")  # fmt: skip
