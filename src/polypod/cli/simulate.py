"""polypod simulate: play a request trace through a plan on a virtual clock."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from polypod.cli.asking import note
from polypod.cost.bands import METRICS, Metric, band_of
from polypod.errors import FileError, InputError
from polypod.plan.predict import evidence
from polypod.plan.spec import Plan, read_plan
from polypod.record import read
from polypod.report.runs import run_json, run_text, summarise
from polypod.report.tables import entry
from polypod.simulate.fleet import scenario_of
from polypod.simulate.run import play
from polypod.simulate.scenario import Fault
from polypod.simulate.trace import Arrival, arrivals
from polypod.workload.traffic import poisson, read_trace


class _Faults(msgspec.Struct, forbid_unknown_fields=True):
    """A faults file: `{"faults": [{"at_s": 60, "replica": "pool0.0-0", "what": "down"}]}`."""

    faults: list[Fault]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", help="a plan file, as `polypod plan -o` or `polypod up` wrote it")
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="Azure's CSV or Mooncake's JSON lines (default: Poisson arrivals as the plan's traffic says)",
    )
    parser.add_argument(
        "--faults",
        metavar="FILE",
        help='JSON: {"faults": [{"at_s": 60, "replica": NAME, "what": "down"}]}',
    )
    parser.add_argument(
        "--requests",
        type=int,
        default=1000,
        metavar="N",
        help="how many Poisson arrivals (default: 1000)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of ties and of Poisson arrivals (default: 0)",
    )
    parser.add_argument(
        "-o", dest="folder", metavar="DIR", help="write the record and the summary here"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    plan = read_plan(Path(args.plan))
    trace = _arrivals(plan, args)
    faults = _faults(Path(args.faults)) if args.faults else ()
    rests = evidence(plan)
    bands = _bands_json(plan, rests)
    scenario = scenario_of(plan, trace, seed=args.seed, faults=faults)
    if args.folder:
        record = _folder(Path(args.folder)) / "record.jsonl"
        try:
            with record.open("wb") as file:
                play(scenario, file)
        except OSError as error:
            raise FileError(record, f"cannot be written: {error.strerror}") from error
        summary = summarise(read(record))
        (record.parent / "summary.json").write_text(
            json.dumps(run_json(summary) | bands, indent=2) + "\n"
        )
        note(f"wrote {record} and summary.json")
    else:
        summary = summarise(play(scenario).lines)
    if args.json:
        print(json.dumps(run_json(summary) | bands, indent=2))
    else:
        print("\n".join([run_text(summary), *_band_lines(plan, rests)]))
    return 0


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


def _arrivals(plan: Plan, args: argparse.Namespace) -> tuple[Arrival, ...]:
    if len(plan.services) > 1:
        names = ", ".join(service.model for service in plan.services)
        msg = f"{args.plan} serves several models ({names}), and traces that name a model are not read yet"
        raise InputError(msg)
    service = plan.services[0]
    if args.trace:
        return arrivals(read_trace(Path(args.trace)), service.model)
    if service.traffic is None or service.traffic.rate_per_s is None:
        msg = f"{args.plan} gives {service.model} no traffic with a rate; add one, or play a trace with --trace FILE"
        raise InputError(msg)
    if args.requests < 1:
        msg = f"--requests {args.requests} is no number of requests; give 1 or more"
        raise InputError(msg)
    return arrivals(
        poisson(
            service.traffic.rate_per_s,
            args.requests,
            service.traffic.input,
            service.traffic.output,
            seed=args.seed,
        ),
        service.model,
    )


def _faults(path: Path) -> tuple[Fault, ...]:
    try:
        return tuple(msgspec.json.decode(path.read_bytes(), type=_Faults).faults)
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise FileError(path, str(error)) from error


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(path, f"cannot be made: {error.strerror}") from error
    if (path / "record.jsonl").exists():
        print(f"polypod: {path / 'record.jsonl'} is overwritten", file=sys.stderr)
    return path
