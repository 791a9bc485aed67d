"""polypod estimate: one explicit configuration, with its reasons."""

import argparse
import json
from dataclasses import dataclass
from typing import Any

import msgspec

from polypod import units
from polypod.cli.asking import model_of, tokens
from polypod.cost.calibration import CASES, Case, named
from polypod.cost.deployment import Deployment, Memory, native_precision
from polypod.cost.measured import BACKENDS
from polypod.cost.step import StepCost
from polypod.errors import InfeasibleError, InputError
from polypod.plan.compose import describe
from polypod.plan.place import Island, island, parse_fleet
from polypod.report.tables import entry, table
from polypod.workload.layout import Layout, check_layout
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
    parser.add_argument(
        "--batch",
        default="1",
        metavar="N",
        help="sequences decoding at once, over the replica (default: 1)",
    )
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
            ("--batch", args.batch),
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
    answer = _json(deployment, where, memory, {"prefill": prefill, "decode": decode}, batch)
    print(
        json.dumps(answer, indent=2)
        if args.json
        else _text(deployment, where, memory, prefill, decode, batch)
    )
    return 0


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
                "floor_s": phase.floor_s,
                "waits_for": phase.cost.shares(),
                "parts_s": {
                    part.name: float(part.total_s) * phase.cost.stages for part in phase.cost.parts
                },
            }
            for name, phase in phases.items()
        },
        "output_tokens_per_s_per_accelerator": batch
        / phases["decode"].seconds["likely"]
        / deployment.accelerators,
    }


def _text(
    deployment: Deployment, where: Island, memory: Memory, prefill: Phase, decode: Phase, batch: int
) -> str:
    rank = deployment.rank
    served = deployment.served.calibration
    each = batch / decode.seconds["likely"] / deployment.accelerators
    rows = [
        [
            name,
            *[units.show(phase.seconds[case], "s") for case in ("likely", "fast", "slow")],
            units.show(phase.floor_s, "s"),
        ]
        for name, phase in (("prefill", prefill), ("decode", decode))
    ]
    lines = [
        f"{deployment.model.name} as {describe(deployment.layout)} on {deployment.accelerators:g} {rank.chip}"
        f"{f' ({where.pod.id})' if where.pod else ''}",
        "",
        table(["step", "likely", "fast", "slow", "floor"], rows, right=[1, 2, 3, 4]),
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
        entry("evidence", f"{served.evidence} ({served.id})"),
        *[entry("assumed", text) for text in rank.assumptions],
    ]
    return "\n".join(lines)
