"""polypod traffic: what a traffic amounts to; and the flags by which several verbs are told one."""

import argparse
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from polypod import units
from polypod.cli.asking import count, note
from polypod.cli.traffic_words import (
    ARRIVALS,
    LENGTHS,
    TENANTS,
    arrivals_of,
    lengths_of,
    tenants_of,
    times,
)
from polypod.errors import InputError
from polypod.plan.place import island
from polypod.plan.spec import Plan, Service, read_plan
from polypod.report.recorded import Recorded, check_whole, is_record, read_recorded, renamed
from polypod.report.tables import entry
from polypod.workload.traffic import Trace, Traffic, blocks
from polypod.workload.traffic_arrivals import Poisson
from polypod.workload.traffic_figures import MONTH_S, Figures, figures
from polypod.workload.traffic_files import Reading, read_trace
from polypod.workload.traffic_lengths import Fixed, Resampled, Uniform
from polypod.workload.traffic_loop import ClosedLoop, closed_loop
from polypod.workload.traffic_make import Stream, Synthetic, Turns
from polypod.workload.traffic_scale import Replay

_ONLY_TRACE = ("scale", "scale_rate", "scale_window", "sort")
_ONLY_DRAWN = ("arrivals", "rate", "tokens_per_month", "lengths", "turns", "think", "system")
_ONLY_TURNS = ("think", "system", "block_tokens")
_NOT_CLOSED = ("rate", "tokens_per_month", "turns", "system", "tenants", "block_tokens")
_REQUESTS = 1000


def add_traffic(parser: argparse.ArgumentParser) -> None:
    """What arrives: a trace, or drawn requests."""
    own = parser.add_argument_group("traffic", "docs/how-to/traffic.md says what each means")
    own.add_argument("--trace", metavar="FILE", help="requests from CSV, JSON lines or Parquet, Azure's and Mooncake's among them, or a run's record (default: drawn, as the plan's traffic says)")  # fmt: skip
    own.add_argument("--scale", metavar="N", help="so many times the trace's sessions, as 40x or 0.5x, each copy with prefixes of its own")  # fmt: skip
    own.add_argument("--scale-rate", metavar="N", help="the same sessions in so many times less time, as 2x")  # fmt: skip
    own.add_argument("--scale-window", metavar="TIME", help="within which copies are shifted; 0s: not at all (default: a 24th of the trace, 10min at most)")  # fmt: skip
    own.add_argument(
        "--sort", action="store_true", help="sort a trace whose lines are out of order"
    )
    own.add_argument("--block-tokens", metavar="N", help="tokens of one prefix hash (default: 512)")
    own.add_argument("--duration", metavar="TIME", help="cut here; a shorter trace begins again, with fresh prefixes")  # fmt: skip
    own.add_argument("--requests", metavar="N", help="no more than these (default: all of a trace, 1000 drawn)")  # fmt: skip
    own.add_argument("--arrivals", metavar="HOW", help=f"{ARRIVALS} (default: poisson)")
    own.add_argument("--rate", metavar="RATE", help="requests of all services, as 20/s (default: the plan's)")  # fmt: skip
    own.add_argument("--tokens-per-month", metavar="N", help="the rate that makes so many tokens in 30 days, as 300T")  # fmt: skip
    own.add_argument("--lengths", metavar="HOW", help=f"{LENGTHS} (default: fixed, at the plan's means)")  # fmt: skip
    own.add_argument("--turns", metavar="N", help="conversations of so many turns in the mean, each prompt with all before it")  # fmt: skip
    own.add_argument("--think", metavar="TIME", help="mean time from one turn to the next, or of a closed loop from an answer to the next request (default: 60s, 0s)")  # fmt: skip
    own.add_argument("--system", metavar="TOKENS", help="system prompt that all conversations with a service share (default: 0)")  # fmt: skip
    own.add_argument("--tenants", metavar="LIST", help=f"whose the requests are: {TENANTS}")


def traffic_of(args: argparse.Namespace, plan: Plan | None) -> Traffic | ClosedLoop:
    """What the flags ask for, of the plan's services where there is one. Raises `InputError`, before anything is played."""
    _refuse_mixed(args)
    if args.trace:
        return Traffic(source=_replay(args, plan), tenants=_tenants(args))
    arrivals = arrivals_of(args.arrivals or "poisson")
    drawn = _synthetic(args, plan, is_loop=isinstance(arrivals, int))
    if isinstance(arrivals, int):
        think_s = 0.0 if args.think is None else units.parse(args.think, "s")
        return closed_loop(arrivals, drawn, think_s)
    return Traffic(source=replace(drawn, arrivals=arrivals), tenants=_tenants(args))


def tell_traffic(traffic: Traffic) -> None:
    """Say that a trace is copied, and how often it begins again."""
    source = traffic.source
    if not isinstance(source, Replay) or source.is_as_it_is:
        return
    rounds = source.expected_s / source.period_s
    again = f", begun again every {units.show(source.period_s, 's')}" if rounds > 1 else ""
    played = f"{source.scale:g} times as many sessions" if source.duration_s is None else f"so many as fit in {units.show(source.duration_s, 's')}"  # fmt: skip
    note(f"{source.trace.name} has {len(source.trace):,} requests; played are {played}, copies with fresh prefixes{again}")  # fmt: skip


def _refuse_mixed(args: argparse.Namespace) -> None:
    """Flags that mean nothing beside the others are errors."""
    is_closed = (args.arrivals or "").startswith("closed")
    rules = (
        (args.trace, _ONLY_DRAWN, "beside --trace"),
        (not args.trace, _ONLY_TRACE, "without --trace"),
        (is_closed, _NOT_CLOSED, f"beside --arrivals {args.arrivals}"),
        (not (args.trace or is_closed or args.turns), _ONLY_TURNS, "without --turns"),
        (args.rate, ("tokens_per_month",), "beside --rate"),
        (args.turns, ("tokens_per_month",), "beside --turns, whose prompts grow; say --rate"),
    )
    for applies, names, beside in rules:
        for name in names:
            if applies and getattr(args, name):
                msg = f"--{name.replace('_', '-')} means nothing {beside}; leave it out"
                raise InputError(msg)


def _replay(args: argparse.Namespace, plan: Plan | None) -> Replay:
    models = None if plan is None else tuple(service.model for service in plan.services)
    if is_record(Path(args.trace)):
        return _scaled(args, _recorded(args, models))
    reading = Reading(
        models=models,
        is_sorted=not args.sort,
        block_tokens=count("--block-tokens", args.block_tokens or "512"),
    )
    trace = read_trace(Path(args.trace), reading)
    if models and trace.models == ("",):
        if len(models) > 1:
            msg = f"{args.trace} does not say of which model its requests are, and the plan serves {', '.join(models)}; give it a column model"
            raise InputError(msg)
        trace = replace(trace, models=models)
    return _scaled(args, trace)


def _recorded(args: argparse.Namespace, models: tuple[str, ...] | None) -> Trace:
    """The requests of a run's record, those of a sample only where they are scaled."""
    if args.block_tokens:
        msg = "--block-tokens means nothing beside a record, which says it itself; leave it out"
        raise InputError(msg)
    recorded = read_recorded(Path(args.trace), seed=args.seed)
    tell_recorded(recorded)
    share = recorded.header.sample
    if share is not None and not args.scale:
        check_whole(
            recorded,
            f"say --scale {1 / share:g}x to have about as many, or --scale 1x to play them alone",
        )
    if models is None:
        return recorded.trace
    way_out = f"; polypod replay {args.trace} --plan {args.plan} --model OLD=NEW plays it under another name"
    return renamed(recorded, models, {}, way_out).trace


def tell_recorded(recorded: Recorded) -> None:
    """Say what of a record's requests is not as it was."""
    drawn, pinned = (
        int(np.count_nonzero(these)) for these in (recorded.is_drawn, recorded.is_pinned)
    )
    if recorded.note:
        note(recorded.note)
    if drawn:
        note(f"{drawn:,} of {len(recorded.trace):,} requests did not finish: the lengths of their answers are drawn from those that did")  # fmt: skip
    if pinned:
        note(f"{pinned:,} requests asked for a replica by name; here any may answer them")


def _scaled(args: argparse.Namespace, trace: Trace) -> Replay:
    return Replay(
        trace=trace,
        scale=times("--scale", args.scale or "1x"),
        rate_ratio=times("--scale-rate", args.scale_rate or "1x"),
        window_s=None if args.scale_window is None else units.parse(args.scale_window, "s"),
        duration_s=_duration_s(args),
        requests=None if args.requests is None else count("--requests", args.requests),
        seed=args.seed,
    )


def _duration_s(args: argparse.Namespace) -> float | None:
    return None if args.duration is None else units.parse(args.duration, "s")


def _tenants(args: argparse.Namespace) -> tuple[Any, ...]:
    return tenants_of(args.tenants) if args.tenants else ()


def _synthetic(args: argparse.Namespace, plan: Plan | None, *, is_loop: bool) -> Synthetic:
    if plan is None:
        msg = "drawn traffic is of a plan's services; give a plan, or a trace with --trace FILE"
        raise InputError(msg)
    requests = None if args.requests is None else count("--requests", args.requests)
    if requests is None and args.duration is None:
        requests = _REQUESTS
    synthetic = Synthetic(
        streams=_streams(args, plan, is_loop=is_loop),
        lengths=lengths_of(args.lengths) if args.lengths else Fixed(),
        turns=_turns(args),
        arrivals=Poisson(),
        requests=requests,
        duration_s=_duration_s(args),
        seed=args.seed,
    )
    if not args.tokens_per_month:
        return synthetic
    rate_per_s = units.parse(args.tokens_per_month, "tokens") / MONTH_S / _request_tokens(synthetic)
    return replace(synthetic, streams=_at_rate(synthetic.streams, rate_per_s))


def _turns(args: argparse.Namespace) -> Turns | None:
    if args.turns is None:
        return None
    return Turns(
        mean_turns=count("--turns", args.turns),
        gap_s=60.0 if args.think is None else units.parse(args.think, "s"),
        system_tokens=int(units.parse(args.system or "0", "tokens")),
        block_tokens=count("--block-tokens", args.block_tokens or "512"),
    )


def _request_tokens(synthetic: Synthetic) -> float:
    """Mean tokens of a request, prompt and answer."""
    match synthetic.lengths:
        case Resampled(trace=trace):
            mean = float(trace.input_tokens.mean() + trace.output_tokens.mean())
        case Uniform(input=asked, output=answered):
            mean = (sum(asked) + sum(answered)) / 2
        case _:
            streams = synthetic.streams
            mean = sum(one.rate_per_s * (one.input_tokens + one.output_tokens) for one in streams)
            mean /= synthetic.rate_per_s
    return mean


def _streams(args: argparse.Namespace, plan: Plan, *, is_loop: bool) -> tuple[Stream, ...]:
    """The plan's services, each at its own rate, or with the share that it has of `--rate`."""
    needs_rate = not (args.rate or args.tokens_per_month or is_loop) or len(plan.services) > 1
    streams = tuple(_stream(args.plan, service, needs_rate=needs_rate) for service in plan.services)
    if not args.rate:
        return streams
    return _at_rate(streams, units.parse(args.rate, "per_s"))


def _at_rate(streams: tuple[Stream, ...], rate_per_s: float) -> tuple[Stream, ...]:
    of_all = rate_per_s / sum(stream.rate_per_s for stream in streams)
    return tuple(replace(stream, rate_per_s=stream.rate_per_s * of_all) for stream in streams)


def _stream(path: str, service: Service, *, needs_rate: bool) -> Stream:
    traffic = service.traffic
    if traffic is None or (needs_rate and traffic.rate_per_s is None):
        msg = f"{path} gives {service.model} no traffic with a rate; add one, or play a trace with --trace FILE"
        raise InputError(msg)
    return Stream(
        model=service.model,
        rate_per_s=traffic.rate_per_s or 1.0,
        input_tokens=traffic.input,
        output_tokens=traffic.output,
    )


# ---- the verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", nargs="?", help="a plan file, whose services are asked; without one, --trace is described as it is")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn (default: 0)")  # fmt: skip
    add_traffic(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    plan = read_plan(Path(args.plan)) if args.plan else None
    traffic = traffic_of(args, plan)
    if isinstance(traffic, ClosedLoop):
        msg = f"--arrivals {args.arrivals} has no rate: users of a closed loop send when they are answered"
        raise InputError(msg)
    found = figures(blocks(traffic))
    needs = None if plan is None else _needs(plan, found)
    if args.json:
        derived = {key: getattr(found, key) for key in ("rate_per_s", "tokens_per_s", "month_tokens")}  # fmt: skip
        carried = None if needs is None else asdict(needs)
        print(json.dumps(asdict(found) | derived | {"plan": carried}, indent=2))
    else:
        print("\n".join(_text(found, needs)))
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needs:
    """How many of a plan carry a traffic: its rate over the goodput that the plan predicts.

    That is for the plan's own lengths, so where the traffic's are others by more than a tenth `copies` is None.
    """

    goodput_per_s: float
    accelerators: float
    input_tokens: float
    output_tokens: float
    copies: int | None
    copies_accelerators: float | None


def _needs(plan: Plan, found: Figures) -> _Needs | None:
    """None where the plan predicts no goodput, or a service of it has no traffic."""
    goodput = plan.predicted.goodput if plan.predicted else None
    asked = [service.traffic for service in plan.services if service.traffic is not None]
    if goodput is None or len(asked) < len(plan.services):
        return None
    rates_per_s = [traffic.rate_per_s or 1.0 for traffic in asked]
    input_tokens, output_tokens = (
        sum(rate * getattr(one, key) for rate, one in zip(rates_per_s, asked, strict=True))
        / sum(rates_per_s)
        for key in ("input", "output")
    )
    each_per_s, accelerators = units.parse(goodput, "per_s"), _accelerators(plan)
    is_alike = _is_near(found.input.mean_tokens, input_tokens) and _is_near(found.output.mean_tokens, output_tokens)  # fmt: skip
    copies = math.ceil(found.rate_per_s / each_per_s) if is_alike else None
    return _Needs(
        goodput_per_s=each_per_s,
        accelerators=accelerators,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        copies=copies,
        copies_accelerators=None if copies is None else copies * accelerators,
    )


def _is_near(one: float, other: float) -> bool:
    return abs(one - other) <= 0.1 * other


def _accelerators(plan: Plan) -> float:
    """Packages of all pools."""
    taken = 0.0
    for service in plan.services:
        for pool in service.pools:
            per_package = island(pool.on, plan.fleet[pool.on]).rank.ranks_per_accelerator
            taken += pool.replicas * (pool.layout.world + (pool.expert_ranks or 0)) / per_package
    return taken


def _text(found: Figures, needs: _Needs | None) -> list[str]:
    lines = [
        entry("requests", f"{found.requests:,} in {units.show(found.duration_s, 's')}, {units.significant(found.rate_per_s, 4)}/s in the mean", indent=12),
        entry("arrivals", f"times between them have a coefficient of variation of {found.gap_cv_ratio:.3g}", indent=12),
    ]  # fmt: skip
    for what, lengths in (("prompts", found.input), ("answers", found.output)):
        shown = [units.significant(value, 4) for value in (lengths.mean_tokens, lengths.p50_tokens, lengths.p99_tokens)]  # fmt: skip
        lines.append(entry(what, f"{shown[0]} tokens in the mean, {shown[1]} in the median, 99 % up to {shown[2]}", indent=12))  # fmt: skip
    month = units.significant(found.month_tokens / 1e12, 4)
    lines.append(entry("tokens", f"{units.significant(found.tokens_per_s, 4)}/s, {month} trillion in 30 days", indent=12))  # fmt: skip
    if found.sessions:
        mean = found.in_sessions / found.sessions
        lines.append(entry("sessions", f"{found.sessions:,}, of {mean:.3g} requests in the mean", indent=12))  # fmt: skip
    if found.reused_fraction is not None:
        lines.append(entry("prefixes", f"{found.blocks:,} blocks, {found.reused_fraction:.1%} of them in an earlier prompt", indent=12))  # fmt: skip
    for what, counts in (("models", found.requests_of_model), ("tenants", found.requests_of_tenant)):  # fmt: skip
        if set(counts) != {""}:
            shares = ", ".join(f"{name or '(none)'} {number / found.requests:.1%}" for name, number in counts.items())  # fmt: skip
            lines.append(entry(what, shares, indent=12))
    if needs is not None:
        lines.append(entry("to carry it", _carried(found, needs), indent=12))
    return lines


def _carried(found: Figures, needs: _Needs) -> str:
    if needs.copies is None or needs.copies_accelerators is None:
        asked, answered = (round(lengths.mean_tokens) for lengths in (found.input, found.output))
        return (
            f"not known: this plan is for prompts of {needs.input_tokens:,.0f} and answers of {needs.output_tokens:,.0f} tokens; "
            f"plan again with --input {asked} --output {answered}"
        )
    return f"{needs.copies:,} of this plan, each with its predicted {units.significant(needs.goodput_per_s, 4)} requests/s; accelerators: {needs.copies_accelerators:,.0f}"
