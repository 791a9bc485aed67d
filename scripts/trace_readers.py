"""Hold traces of runs against two readers of other people: the engine of Chrome's performance panel, and TraceBench's model of trace events.

    python scripts/trace_readers.py NODE_MODULES

Perfetto's own reader is a binary that has to be downloaded, and is not asked. Two runs are played: prefill and decode apart with a link that dies, and whole replicas. Of each trace
the first reader has to pair every slice with the name, the place and the time that the record has for it, the second to find every process by its name and the run's first and last moment. Ends
with a code above 0 where one does not.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from polypod.cli.main import main as polypod
from polypod.report.merged import read_run
from polypod.report.outcomes import Outcomes
from polypod.report.perfetto import save_perfetto

ROOT = Path(__file__).parent.parent
RUNS = {
    "apart": ["apart.yaml", "--network", "leaf=32", "--faults", str(ROOT / "examples" / "uplinks.yaml")],
    "whole": ["one-pool.yaml"],
}  # fmt: skip


def main() -> int:
    modules = Path(sys.argv[1]).resolve()
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (plan, *more) in RUNS.items():
            out = Path(folder) / name
            asked = ["simulate", str(ROOT / "examples" / plan), "--requests", "2000", *more]
            assert polypod([*asked, "-o", str(out), "--json"]) == 0
            outcomes = read_run(out)
            save_perfetto(outcomes, out / "trace.json")
            found = _read(out / "trace.json", modules)
            problems = list(_problems(outcomes, found))
            slices = Counter(one["name"] for one in found["slices"])
            told = ", ".join(f"{count:,} {what}" for what, count in sorted(slices.items()))
            print(f"{name}: {told}; {len(found['processes'])} processes: {'; '.join(problems) or 'as in the record'}", file=sys.stderr)  # fmt: skip
            wrong += problems
    return 1 if wrong else 0


def _read(trace: Path, modules: Path) -> Any:  # noqa: ANN401 (JSON)
    script = ROOT / "scripts" / "trace_readers.mjs"
    done = subprocess.run(["node", script, trace, modules], capture_output=True, text=True, timeout=300, check=True)  # fmt: skip
    return json.loads(done.stdout)


def _problems(outcomes: Outcomes, found: Any) -> Any:  # noqa: ANN401 (JSON)
    """How what was read differs from the record."""
    if not found["is_parsed"]:
        yield "the engine made no trace of it"
    slices = [one for one in found["slices"] if one["name"] != "fault"]
    stays, waits, requests = outcomes.stays, outcomes.waits, outcomes.requests
    lasted_s = float((stays.end_s - stays.begin_s).sum() + (waits.end_s - waits.begin_s).sum())
    read_s = sum(one["lasts_us"] for one in slices) / 1e6
    if abs(read_s - lasted_s) > 1e-6 * lasted_s:
        yield f"slices last {read_s:.6f} s together, the record says {lasted_s:.6f} s"
    if any(one["lasts_us"] < 0 for one in slices):
        yield "a slice ends before it begins"
    heard = int(
        (stays.begin_s[stays.role == 0] <= requests.first_s[stays.row[stays.role == 0]]).sum()
    )
    if len(slices) != len(stays.row) + len(waits.row) + heard:
        yield f"{len(slices):,} slices, the record has {len(stays.row) + len(waits.row) + heard:,}"
    names = [f"pool {pool}" for pool in outcomes.pools]
    names += [f"{one.name} ({one.model})" for one in outcomes.replicas]
    read = [one["name"] for one in found["processes"]]
    if sorted(read) != sorted(["run", *names]):
        yield f"processes {read}, the record has {names} and the run"
    at = {one["id"]: one["name"] for one in found["processes"]}
    busy = {at[one["pid"]] for one in slices if one["name"] != "waiting"}
    used = {f"{outcomes.replicas[n].name} ({outcomes.replicas[n].model})" for n in set(stays.replica.tolist())}  # fmt: skip
    if busy != used:
        yield f"requests lie on {sorted(busy)}, in the record on {sorted(used)}"
    last_us = max(one["begin_us"] + one["lasts_us"] for one in found["slices"])
    if found["last_us"] < last_us - 1:
        yield f"the run ends at {found['last_us']} us, its last slice at {last_us}"


if __name__ == "__main__":
    raise SystemExit(main())
