"""polypod simulate: play traffic through a plan on a virtual clock."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from polypod import units
from polypod.cli.asking import count, note, share
from polypod.cli.early import check_traffic
from polypod.cli.fault_flags import add_fault_arguments, faults_of
from polypod.cli.gateways import play_gateways, play_in_step
from polypod.cli.job_flags import add_job_arguments, run_jobs
from polypod.cli.network_flags import add_network, shared_of, waiting
from polypod.cli.power_flags import Powered, add_power_arguments, power_of
from polypod.cli.run_folder import RunFolder
from polypod.cli.simulated import Played, Teller, play_session
from polypod.cli.traffic import add_traffic, tell_traffic, traffic_of
from polypod.cost.bands import METRICS, Metric, band_of
from polypod.engine.native.build import compiler, is_built, library
from polypod.errors import InputError
from polypod.plan.predict import evidence
from polypod.plan.spec import Plan, read_plan
from polypod.plan.what_if import with_replicas
from polypod.record import Line, Writer
from polypod.report.fold import fold
from polypod.report.runs import run_json, run_text
from polypod.report.summary import summary_of
from polypod.report.tables import entry
from polypod.simulate.arriving import Blocks, Looped
from polypod.simulate.compiled import Session, only_plain
from polypod.simulate.fleet import beside, scenario_of
from polypod.simulate.gateways import split
from polypod.simulate.run import header, play
from polypod.simulate.scenario import Scenario
from polypod.simulate.trace import arrivals
from polypod.workload.traffic import Traffic, blocks, trace_of
from polypod.workload.traffic_loop import ClosedLoop
from polypod.workload.traffic_scale import Replay

LOOP_S = 600.0
"""A closed loop whose end is not said is looked at as often as one of ten minutes."""

INTERVALS = 60
"""Of a series whose interval is not said, about so many."""

NICE_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 86400)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", help="a plan file, as `polypod plan -o` or `polypod up` wrote it")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of ties and of all that is drawn (default: 0)")  # fmt: skip
    parser.add_argument("--interval", metavar="TIME", help=f"of the series over time, as 10s (default: about {INTERVALS} intervals)")  # fmt: skip
    parser.add_argument("--sample", metavar="SHARE", help="keep the steps of this share of the requests in the record, as 1%%; such a record cannot be replayed (default: all)")  # fmt: skip
    parser.add_argument("--driver", choices=("compiled", "plain"), help="plain is the live policy itself, some hundred times slower, to the same record (default: compiled where a C compiler is)")  # fmt: skip
    parser.add_argument("--replicas", metavar="POOL=N", action="append", default=[], help="so many replicas of a pool in place of the plan's; N alone where the plan has one pool")  # fmt: skip
    parser.add_argument("--gateways", metavar="N", help="split the replicas and the traffic over N routers that know nothing of each other (default: one for all)")  # fmt: skip
    parser.add_argument("--processes", metavar="N", help="gateways played at a time, to the same result (default: one a core)")  # fmt: skip
    parser.add_argument("-o", dest="folder", metavar="DIR", help="write the record and the summary here")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_traffic(parser)
    add_scenario(parser)
    add_job_arguments(parser)


def add_scenario(parser: argparse.ArgumentParser) -> None:
    """What `scenario_for` asks for beside the traffic, the seed and the interval."""
    add_fault_arguments(parser)
    add_power_arguments(parser)
    add_network(parser)


def run(args: argparse.Namespace) -> int:
    plan = plan_of(args)
    if args.jobs:
        return run_jobs(plan, Path(args.jobs), is_json=args.json)
    kept = _kept(args)
    gateways = _gateways(args)
    traffic = traffic_of(args, plan)
    if isinstance(traffic, Traffic):
        tell_traffic(traffic)
    rests = evidence(plan)
    bands = _bands_json(plan, rests)
    scenario, power = scenario_for(args, plan, traffic)
    bands |= power.as_json()
    for pool, why in power.drawn.missing.items():
        note(f"no watts of {pool}: {why}")
    with RunFolder(args.folder, gateways=gateways) as record:
        if gateways is None:
            played = play_run(args, scenario, traffic, kept, record)
        else:
            played = _play_gateways(args, scenario, traffic, kept, gateways)
    summary = played.summary
    if not played.is_whole:
        note(f"ended by Ctrl-C at {units.show(played.outcomes.end_s, 's')}; {record.left(summary)}")
    record.write_summary(run_json(summary) | bands)
    if args.json:
        print(json.dumps(run_json(summary) | bands, indent=2))
    else:
        print("\n".join([run_text(summary, args.folder or "RUN"), *_band_lines(plan, rests)]))
    return 0 if played.is_whole else 130


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan that is played, with as many replicas as asked for. Raises `FileError` and `InputError`."""
    return with_replicas(read_plan(Path(args.plan)), args.replicas)


def played_of(args: argparse.Namespace) -> Played:
    """What comes of a run that keeps no record and tells nobody of its progress, in this process. Raises `PolypodError`."""
    plan = plan_of(args)
    traffic = traffic_of(args, plan)
    scenario, _ = scenario_for(args, plan, traffic)
    gateways = _gateways(args)
    if gateways is not None:
        assert isinstance(traffic, Traffic), "a closed loop has no gateways"
        return play_in_step(split(scenario, gateways), traffic)
    arriving = Looped(traffic) if isinstance(traffic, ClosedLoop) else Blocks(blocks(traffic))
    session = Session(scenario, arriving, share=0.0)
    head: list[Line] = [header(scenario, 0.0), *scenario.notes]
    return play_session(session, head, None, Teller(None, is_shown=False))


def _gateways(args: argparse.Namespace) -> int | None:
    if args.gateways is None:
        if args.processes is not None:
            msg = f"--processes {args.processes} is of a run behind gateways; say --gateways N as well"
            raise InputError(msg)
        return None
    if args.driver == "plain":
        msg = f"--gateways {args.gateways} is of the compiled driver; leave --driver out"
        raise InputError(msg)
    if (args.arrivals or "").startswith("closed"):
        msg = f"--gateways {args.gateways} splits arrivals, and those of a closed loop come from answers; leave one of them out"
        raise InputError(msg)
    return count("--gateways", args.gateways)


def _kept(args: argparse.Namespace) -> float:
    """Of the requests whose steps are kept: none without a folder for them."""
    if args.sample is None:
        return 0.0 if args.folder is None else 1.0
    if args.folder is None:
        msg = f"--sample {args.sample} is of a record; say where to write it with -o DIR"
        raise InputError(msg)
    if args.driver == "plain":
        msg = "--sample is of the compiled driver, the plain one keeps all; leave one of them out"
        raise InputError(msg)
    return share("--sample", args.sample)


def scenario_for(
    args: argparse.Namespace, plan: Plan, traffic: Traffic | ClosedLoop
) -> tuple[Scenario, Powered]:
    """What the flags ask for: seed, interval, faults, power."""
    duration_s = _duration_s(args, traffic)
    interval_s = _nice(duration_s / INTERVALS) if args.interval is None else units.parse(args.interval, "s")  # fmt: skip
    shared = shared_of(args, plan)
    broken = faults_of(args, plan, duration_s, shared.ways)
    loop = traffic if isinstance(traffic, ClosedLoop) else None
    blocks_of = 0 if isinstance(traffic, ClosedLoop) else traffic.block_tokens
    scenario = scenario_of(
        plan,
        (),
        seed=args.seed,
        faults=beside(broken.faults, shared.slowdowns),
        block_tokens=blocks_of or None,
        ways=None if shared.ways is None else shared.ways.ways,
    )
    power = power_of(args, plan, scenario.replicas, traffic)
    played = replace(
        scenario,
        settings=waiting(args, scenario.settings, plan),
        notes=broken.notes,
        slowdowns=shared.slowdowns,
        watch=power.watch(interval_s),
        trace_sha256=traffic.sha256 if isinstance(traffic, ClosedLoop) else _identity(traffic),
        loop=loop,
        is_hashed=blocks_of > 0,
    )
    return played, power


def _duration_s(args: argparse.Namespace, traffic: Traffic | ClosedLoop) -> float:
    """About how long requests are sent. Of a closed loop nobody knows before, unless it is said."""
    if not isinstance(traffic, ClosedLoop):
        return traffic.expected_s
    if traffic.duration_s is None and args.draw_faults:
        msg = "--draw-faults needs to know for how long; say the closed loop's --duration"
        raise InputError(msg)
    return LOOP_S if traffic.duration_s is None else traffic.duration_s


def _nice(seconds: float) -> float:
    """The next round interval from here on."""
    return float(next((nice for nice in NICE_S if nice >= seconds), NICE_S[-1]))


def _identity(traffic: Traffic) -> str:
    """The same for the same requests."""
    source = traffic.source
    if isinstance(source, Replay):
        said = repr(
            (
                source.trace.sha256,
                source.scale,
                source.rate_ratio,
                source.window_s,
                source.duration_s,
                source.requests,
                source.seed,
                traffic.tenants,
            )
        )
    else:
        said = repr(traffic)
    return sha256(said.encode()).hexdigest()


def play_run(
    args: argparse.Namespace,
    scenario: Scenario,
    traffic: Traffic | ClosedLoop,
    kept: float,
    record: RunFolder,
) -> Played:
    """Play with the driver that the flags ask for, and write the record."""
    if args.driver == "plain" or (args.driver is None and compiler() is None):
        if args.driver is None:
            note(
                "no C compiler is here, so the plain driver plays, some hundred times slower; install cc"
            )
        return _play_plain(scenario, traffic, record)
    reason = only_plain(scenario)
    if reason is not None and args.driver is None:
        note(f"{reason}: the plain driver plays, some hundred times slower")
        return _play_plain(scenario, traffic, record)
    if not is_built():
        note("the simulator's core is compiled, once on this machine; it takes some seconds")
    head: list[Line] = [header(scenario, kept), *scenario.notes]
    if isinstance(traffic, ClosedLoop):
        session = Session(scenario, Looped(traffic), share=kept)
        return play_session(session, head, record.file, Teller(traffic.duration_s))
    arriving = Blocks(blocks(traffic))
    check_traffic(scenario, arriving.first, traffic.expected_s)
    session = Session(scenario, arriving, share=kept)
    return play_session(session, head, record.file, Teller(traffic.expected_s))


def _play_gateways(
    args: argparse.Namespace, scenario: Scenario, traffic: Traffic | ClosedLoop, kept: float, gateways: int
) -> Played:  # fmt: skip
    assert isinstance(traffic, Traffic), "a closed loop has no gateways"
    check_traffic(scenario, next(blocks(traffic)), traffic.expected_s)
    cores = len(os.sched_getaffinity(0))
    processes = cores if args.processes is None else count("--processes", args.processes)
    folder = None if args.folder is None else Path(args.folder)
    library()
    return play_gateways(split(scenario, gateways), traffic, kept, folder, processes)


def _play_plain(scenario: Scenario, traffic: Traffic | ClosedLoop, record: RunFolder) -> Played:
    if not isinstance(traffic, ClosedLoop):
        model = scenario.settings.services[0].model
        scenario = replace(scenario, trace=arrivals(trace_of(traffic), model))
    lines: Sequence[Line] = play(scenario).lines
    if record.file is not None:
        writer = Writer(record.file)
        for line in lines:
            writer.write(line)
    outcomes = fold(lines)
    return Played(outcomes=outcomes, is_whole=True, summary=summary_of(outcomes))


def _bands_json(plan: Plan, rests: dict[str, str]) -> dict[str, Any]:
    """Ratios of measured to simulated that hold four of five measurements, by pool."""

    def ends(pool: str, metric: Metric) -> list[float]:
        band = band_of(rests[pool], _kind(plan, pool), metric)
        return [band.low, band.high]

    bands = {
        pool: {"evidence": on, **{metric: ends(pool, metric) for metric in METRICS}}
        for pool, on in rests.items()
    }
    return {"bands": bands}


def _kind(plan: Plan, name: str) -> str:
    """What the pool's measurements are of: replicas that do both, or workers apart."""
    roles = {
        pool.name or f"pool{s}.{p}": pool.role
        for s, service in enumerate(plan.services)
        for p, pool in enumerate(service.pools)
    }
    return "agg" if roles[name] == "both" else "disagg"


def _band_lines(plan: Plan, rests: dict[str, str]) -> list[str]:
    """The same in words, one line for pools that rest on the same."""
    lines = [""] if rests else []
    alike = {pool: (on, _kind(plan, pool)) for pool, on in rests.items()}
    for on, kind in dict.fromkeys(alike.values()):
        pools = ", ".join(pool for pool, its in alike.items() if its == (on, kind))
        ttft, tpot = band_of(on, kind, "ttft"), band_of(on, kind, "tpot")
        text = f"TTFT {ttft.low:g} to {ttft.high:g} times, TPOT {tpot.low:g} to {tpot.high:g} times what is shown ({pools}: {on})"
        lines.append(entry("80 % band", text, indent=16))
    return lines
