"""polypod simulate: play a request trace through a plan on a virtual clock."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from polypod.cli.asking import note
from polypod.cli.traffic import add_traffic, trace_from
from polypod.cost.bands import METRICS, Metric, band_of
from polypod.errors import FileError
from polypod.plan.predict import evidence
from polypod.plan.spec import read_plan
from polypod.record import read
from polypod.report.runs import run_json, run_text, summarise
from polypod.report.tables import entry
from polypod.simulate.fleet import scenario_of
from polypod.simulate.run import play
from polypod.simulate.scenario import Fault
from polypod.simulate.trace import arrivals


class _Faults(msgspec.Struct, forbid_unknown_fields=True):
    """A faults file: `{"faults": [{"at_s": 60, "replica": "pool0.0-0", "what": "down"}]}`."""

    faults: list[Fault]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", help="a plan file, as `polypod plan -o` or `polypod up` wrote it")
    parser.add_argument(
        "--faults",
        metavar="FILE",
        help='JSON: {"faults": [{"at_s": 60, "replica": NAME, "what": "down"}]}',
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of ties and of all that is drawn (default: 0)",
    )
    parser.add_argument(
        "-o", dest="folder", metavar="DIR", help="write the record and the summary here"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_traffic(parser)


def run(args: argparse.Namespace) -> int:
    plan = read_plan(Path(args.plan))
    traffic = trace_from(args, plan)
    trace = arrivals(traffic)
    faults = _faults(Path(args.faults)) if args.faults else ()
    rests = evidence(plan)
    bands = _bands_json(rests)
    block_tokens = traffic.block_tokens or None
    scenario = scenario_of(plan, trace, seed=args.seed, faults=faults, block_tokens=block_tokens)
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
        print("\n".join([run_text(summary), *_band_lines(rests)]))
    return 0


def _bands_json(rests: dict[str, str]) -> dict[str, Any]:
    """Ratios of measured to simulated that hold four of five measurements, by pool."""

    def ends(on: str, metric: Metric) -> list[float]:
        band = band_of(on, "agg", metric)
        return [band.low, band.high]

    bands = {
        pool: {"evidence": on, **{metric: ends(on, metric) for metric in METRICS}}
        for pool, on in rests.items()
    }
    return {"bands": bands}


def _band_lines(rests: dict[str, str]) -> list[str]:
    """The same in words, one line for pools that rest on the same."""
    lines = [""] if rests else []
    for on in dict.fromkeys(rests.values()):
        pools = ", ".join(pool for pool, its in rests.items() if its == on)
        ttft, tpot = band_of(on, "agg", "ttft"), band_of(on, "agg", "tpot")
        text = f"TTFT {ttft.low:g} to {ttft.high:g} times, TPOT {tpot.low:g} to {tpot.high:g} times what is shown ({pools}: {on})"
        lines.append(entry("80 % band", text, indent=16))
    return lines


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
