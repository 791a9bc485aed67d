"""polypod estimate: one explicit configuration, with its reasons, and what it serves under so many requests in flight."""

import argparse
import json
import re
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from polypod import units
from polypod.cli.asking import count, model_of, tokens
from polypod.cost.bands import band_of
from polypod.cost.calibration import CASES, Case, named
from polypod.cost.deployment import Deployment, Memory, native_precision
from polypod.cost.measured import BACKENDS
from polypod.cost.step import StepCost
from polypod.engine.settings import read_engine_args
from polypod.errors import InfeasibleError, InputError
from polypod.plan.place import Island, island, parse_fleet
from polypod.plan.served import Asked, Served, Workers, served, served_apart
from polypod.report.plans import unsaid_json, unsaid_lines
from polypod.report.tables import entry, table
from polypod.workload.layout import Layout, check_layout, describe
from polypod.workload.precision import Precision


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a model of the catalog, or a path to a config.json")
    parser.add_argument(
        "--on", required=True, metavar="CHIP[:N]", help="a pod, or an accelerator and how many"
    )
    for axis, what in (
        ("tp", "tensor"),
        ("pp", "pipeline"),
        ("dp", "attention data"),
        ("ep", "expert"),
    ):
        parser.add_argument(
            f"--{axis}", type=int, default=1, metavar="N", help=f"{what} parallel (default: 1)"
        )
    parser.add_argument("--batch", metavar="N", help="sequences decoding at once, over the replica (default: --concurrency, or 1)")  # fmt: skip
    parser.add_argument(
        "--input", default="1024", metavar="TOKENS", help="prompt length (default: 1024)"
    )
    parser.add_argument(
        "--output", default="256", metavar="TOKENS", help="answer length (default: 256)"
    )
    parser.add_argument(
        "--precision",
        metavar="TYPE",
        help="of the weights, as fp8, int8, bf16 (default: what the chip can do)",
    )
    parser.add_argument("--kv", default="bf16", metavar="TYPE", help="of the cache (default: bf16)")
    parser.add_argument(
        "--backend",
        metavar="NAME",
        help="the engine whose kernels to use (trtllm, vllm, sglang; default: a blend), or a calibration instead of the chip's own",
    )
    parser.add_argument("--concurrency", metavar="N", help="requests in flight: predict TTFT, TPOT and tokens/s as served")  # fmt: skip
    parser.add_argument("--engine-args", default="", metavar="ARGS", help="settings of the engine and the load, as 'prefill=exclusive prefix_hits=0.3' or in its own flags (docs/how-to/estimate-a-service.md lists them)")  # fmt: skip
    parser.add_argument("--prefill", metavar="N:LAYOUT", help="prefill workers apart, as 2:tp4; the layout above is then of the decode workers")  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="replicas, or decode workers (default: 1)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase's step in the three cases, and what nothing can beat."""

    seconds: dict[Case, float]
    floor_s: float
    cost: StepCost


def run(args: argparse.Namespace) -> int:
    deployment, where = _deployment(args)
    batch, length, output = (
        tokens(flag, text)
        for flag, text in (
            ("--batch", args.batch or _share(args)),
            ("--input", args.input),
            ("--output", args.output),
        )
    )
    dp = deployment.layout.dp
    per_rank = float(batch / dp)
    context = length + output / 2
    memory = deployment.memory()
    need = per_rank * context
    if memory.tokens_of(context) < need:
        cache_bytes = memory.cache_bytes(sequences=per_rank, context_tokens=context)
        raise InfeasibleError(_does_not_fit(deployment, memory, cache_bytes))
    prefill = _phase(deployment, prompt_tokens=float(length), pairs=length * (length + 1) / 2)
    decode = _phase(deployment, sequences=per_rank, kv_tokens=need)
    serving = _serving(args, deployment, where)
    answer = _json(deployment, where, memory, {"prefill": prefill, "decode": decode}, batch)
    if serving is not None:
        answer["served"] = _served_json(serving)
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        print("\n".join([_text(deployment, where, memory, prefill, decode, batch), *_served_lines(serving)]))  # fmt: skip
    return 0


def _share(args: argparse.Namespace) -> str:
    """The batch of one replica where only the requests in flight are said."""
    if args.concurrency is None:
        return "1"
    return str(max(count("--concurrency", args.concurrency) // max(args.workers, 1), 1))


def _serving(args: argparse.Namespace, deployment: Deployment, where: Island) -> Served | None:
    said = read_engine_args(args.engine_args)
    if args.concurrency is None:
        for flag, given in (("--engine-args", args.engine_args), ("--prefill", args.prefill), ("--workers", args.workers != 1)):  # fmt: skip
            if given:
                msg = f"{flag} is of a service with requests in flight; say how many with --concurrency N"
                raise InputError(msg)
        return None
    if args.workers < 1:
        msg = f"--workers {args.workers} is no number of replicas; give 1 or more"
        raise InputError(msg)
    asked = Asked(
        input_tokens=tokens("--input", args.input),
        output_tokens=tokens("--output", args.output),
        concurrency=count("--concurrency", args.concurrency),
        backend=args.backend if args.backend in BACKENDS else None,
        engine_args=said,
    )
    workers = Workers(deployment=deployment, count=args.workers)
    if args.prefill is None:
        return served(asked, workers)
    prefillers, layout = _prefill(args.prefill)
    check_layout(deployment.model, layout)
    needed = prefillers * layout.world + args.workers * deployment.layout.world
    pod_ranks = None if where.pod is None else where.pod.accelerators * where.rank.ranks_per_accelerator  # fmt: skip
    if ":" not in args.on and pod_ranks is not None and needed > pod_ranks:
        msg = f"{needed} ranks for prefill and decode, {args.on} has {pod_ranks}; use fewer"
        raise InputError(msg)
    return served_apart(
        asked, Workers(deployment=replace(deployment, layout=layout), count=prefillers), workers
    )


def _prefill(text: str) -> tuple[int, Layout]:
    """Read 2:tp4 or 1:tp2,dp4,ep8."""
    count, _, sizes = text.partition(":")
    found = re.findall(r"(tp|pp|dp|ep)(\d+)", sizes)
    if not count.isdecimal() or not int(count) or "".join(map("".join, found)) != re.sub(r"[\s,]", "", sizes) or not found:  # fmt: skip
        msg = f"--prefill {text!r} is no number of workers with a layout; write 2:tp4, or 1:tp2,dp4,ep8"
        raise InputError(msg)
    return int(count), Layout(**{axis: int(size) for axis, size in found})


def _deployment(args: argparse.Namespace) -> tuple[Deployment, Island]:
    model, layout = model_of(args.model), _layout(args)
    check_layout(model, layout)
    text = args.on if ":" in args.on or _is_pod(args.on) else f"{args.on}:{layout.world}"
    sources = parse_fleet(text)
    if len(sources) > 1:
        msg = f"--on {args.on!r} names {len(sources)} islands; an estimate is of one"
        raise InputError(msg)
    where = island("a", sources["a"])
    if layout.world > where.ranks:
        msg = f"{describe(layout)} takes {layout.world} ranks, {args.on} has {where.ranks}; use fewer, or more accelerators"
        raise InputError(msg)
    rank = where.rank
    engine = args.backend if args.backend in BACKENDS else None
    if args.backend and engine is None:
        rank = type(rank)(
            **{f: getattr(rank, f) for f in rank.__dataclass_fields__}
            | {"calibration": named(args.backend)}
        )
    precision = native_precision(model, rank)
    if args.precision:
        precision = Precision(weights=args.precision, kv=args.kv)
    else:
        precision = Precision(weights=precision.weights, kv=args.kv, compute=precision.compute)
    deployment = Deployment(
        model=model, layout=layout, precision=precision, rank=rank, backend=engine
    )
    return deployment, where


def _is_pod(name: str) -> bool:
    return parse_fleet(f"{name}:1")["a"].pod is not None


def _layout(args: argparse.Namespace) -> Layout:
    sizes = {axis: getattr(args, axis) for axis in ("tp", "pp", "dp", "ep")}
    for axis, size in sizes.items():
        if size < 1:
            msg = f"--{axis} {size} is no way to cut a model; give 1 or more"
            raise InputError(msg)
    return Layout(**sizes)


def _phase(deployment: Deployment, **shape: float) -> Phase:
    ops = deployment.ops(**shape)
    seconds: dict[Case, float] = {
        case: float(deployment.step_s(case=case, **shape)) for case in CASES
    }
    return Phase(seconds=seconds, floor_s=float(deployment.floor_s(ops)), cost=deployment.cost(ops))


def _does_not_fit(deployment: Deployment, memory: Memory, cache_bytes: float) -> str:
    rank = deployment.rank
    return (
        f"{deployment.model.name} as {describe(deployment.layout)} needs "
        f"{units.show(memory.weight_bytes + memory.activation_bytes + cache_bytes, 'bytes')} per rank "
        f"(weights {units.show(memory.weight_bytes, 'bytes')}, cache {units.show(cache_bytes, 'bytes')}), "
        f"{rank.chip} has {units.show(memory.usable_bytes, 'bytes')} usable; raise tp, pp or ep, or lower --batch"
    )


def _json(
    deployment: Deployment, where: Island, memory: Memory, phases: dict[str, Phase], batch: int
) -> dict[str, Any]:
    band = band_of(deployment.served.calibration.evidence, "agg", "tpot")
    return {
        "model": deployment.model.name,
        "on": {
            "chip": where.rank.chip,
            "pod": where.pod.id if where.pod else None,
            "evidence": deployment.served.calibration.evidence,
        },
        "layout": {
            axis: getattr(deployment.layout, axis) for axis in ("tp", "pp", "dp", "ep", "cp")
        },
        "precision": msgspec.to_builtins(deployment.precision),
        "memory_per_rank_bytes": {
            "weights": memory.weight_bytes,
            "activations": memory.activation_bytes,
            "usable": memory.usable_bytes,
            "cache_room_tokens": memory.kv_tokens,
        },
        "phases": {
            name: {
                "step_s": phase.seconds,
                "band_s": [phase.seconds["likely"] * band.low, phase.seconds["likely"] * band.high],
                "floor_s": phase.floor_s,
                "waits_for": phase.cost.shares(),
                "parts_s": _parts_s(phase.cost),
            }
            for name, phase in phases.items()
        },
        "output_tokens_per_s_per_accelerator": batch
        / phases["decode"].seconds["likely"]
        / deployment.accelerators,
    }


def _parts_s(cost: StepCost) -> dict[str, float]:
    """Seconds by operator, over all kinds of layers."""
    seconds: dict[str, float] = {}
    for part in cost.parts:
        seconds[part.name] = seconds.get(part.name, 0.0) + float(part.total_s) * cost.stages
    return seconds


def _served_json(found: Served) -> dict[str, Any]:
    times = found.times
    return {
        "ttft_s": times.ttft_s,
        "tpot_s": times.tpot_s,
        "ttft_band_s": [times.ttft_s * found.ttft_band.low, times.ttft_s * found.ttft_band.high],
        "tpot_band_s": [times.tpot_s * found.tpot_band.low, times.tpot_s * found.tpot_band.high],
        "output_tokens_per_s": found.tokens_per_s,
        "output_tokens_per_s_per_accelerator": found.tokens_per_s / found.accelerators,
        "accelerators": found.accelerators,
        "decoding_fraction": times.decoding,
        "evidence": found.evidence,
        "unsaid": unsaid_json(found.moves),
    }


def _served_lines(found: Served | None) -> list[str]:
    if found is None:
        return []
    rows = [
        (name, seconds, band)
        for name, seconds, band in (
            ("TTFT", found.times.ttft_s, found.ttft_band),
            ("TPOT", found.times.tpot_s, found.tpot_band),
        )
    ]
    return [
        "",
        *[
            entry(name, f"{units.show(seconds, 's')} mean as served; 80 % band {units.show(seconds * band.low, 's')} to {units.show(seconds * band.high, 's')} ({found.evidence})")
            for name, seconds, band in rows
        ],
        entry("tokens/s", f"{units.significant(found.tokens_per_s, 4)} in all, {units.significant(found.tokens_per_s / found.accelerators, 4)} per accelerator on {found.accelerators:g}"),
        *unsaid_lines(found.moves, most=6),
    ]  # fmt: skip


def _text(
    deployment: Deployment, where: Island, memory: Memory, prefill: Phase, decode: Phase, batch: int
) -> str:
    rank = deployment.rank
    served_rank = deployment.served.calibration
    each = batch / decode.seconds["likely"] / deployment.accelerators
    band = band_of(served_rank.evidence, "agg", "tpot")
    rows = [
        [
            name,
            *[units.show(phase.seconds["likely"] * ratio, "s") for ratio in (1.0, band.low, band.high)],
            units.show(phase.floor_s, "s"),
        ]
        for name, phase in (("prefill", prefill), ("decode", decode))
    ]  # fmt: skip
    lines = [
        f"{deployment.model.name} as {describe(deployment.layout)} on {deployment.accelerators:g} {rank.chip}"
        f"{f' ({where.pod.id})' if where.pod else ''}",
        "",
        table(["step", "likely", "80 % from", "to", "floor"], rows, right=[1, 2, 3, 4]),
        "",
        entry(
            "memory",
            f"{units.show(memory.weight_bytes, 'bytes')} weights and {units.show(memory.activation_bytes, 'bytes')} activations of {units.show(memory.usable_bytes, 'bytes')} usable a rank; cache room for {units.significant(memory.kv_tokens)} tokens",
        ),
        entry(
            "throughput",
            f"{units.significant(each, 4)} output tokens/s per accelerator in decode alone",
        ),
        entry("prefill waits", "for " + prefill.cost.bound),
        entry("decode waits", "for " + decode.cost.bound),
        entry("evidence", f"{served_rank.evidence} ({served_rank.id})"),
        *[entry("assumed", text) for text in rank.assumptions],
    ]
    return "\n".join(lines)
