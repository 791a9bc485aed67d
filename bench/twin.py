"""What a simulation costs: CPU seconds and memory, each row a process of its own.

    python bench/twin.py [TRACE] [--rows a,b,c,d,e] [--pods 1,4,16] [--minutes 10,60] [--svg docs/img/twin-growth.svg]

TRACE is an hour of requests that `polypod simulate --trace` takes, such as AzureLLMInferenceTrace_conv_2023.csv (19,366 requests,
https://github.com/Azure/AzurePublicDataset, CC BY); without one the excerpt in examples/traces begins again and again, at the rate that it has.

    a   4,096 requests on 8 replicas of one A100, beyond start-up
    b   an hour, about half a million requests, on 10,240 cards with prefill and decode apart, failures drawn, power measured
    c   a day of the same
    d   more pods as that of b, each behind a gateway of its own, with as much traffic a pod, for each of so many minutes
    e   the core's first compiling on a machine

Plans are those of `polypod plan`; d multiplies the replicas and cards of b's. CPU is user and system time of the process and its children, memory its
peak. Rows a, b and e take about 20 s of an idle core, d with the pods above two minutes, c four.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

PEERS = {
    "a": "Vidur: about 13 s, 568 MiB",
    "b": "wanted: 60 s, 2 GB",
}
APART = ["deepseek-v3", "--on", "nvidia-h200-sxm:10240", "--apart"]
ALIKE = ["--ttft", "2s", "--tpot", "50ms", "--input", "1155", "--output", "211"]
SMALL = ["--requests", "4096", "--rate", "19/s"]
"""Half of what the plan carries."""

REQUESTS = 503_516
"""In the hour: the real trace's, 26 times."""

CARDS = 10_240

Point = tuple[int, int, int, float]
"""Cards, minutes, batch changes, CPU seconds."""

INKS = (("#0a62a8", 1), ("#a8480a", -1))
"""Of the points of each length, and the side of their words."""


def measured(argv: list[str], env: dict[str, str] | None = None) -> tuple[str, float, float]:
    """What a process of this interpreter prints, its CPU seconds and peak MB, children included."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, *argv], stdout=out, env=env)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(argv)} failed")
        out.seek(0)
        return out.read(), used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3


# ---- what the measured processes do


def counted(words: list[str]) -> None:
    """`polypod simulate` with these words; prints requests, faults, events and batch changes, and CPU seconds beyond start-up."""
    from polypod.cli import gateways, simulate
    from polypod.cli.main import main
    from polypod.simulate.compiled import Session

    sessions: list[Session] = []

    class Counted(Session):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            sessions.append(self)

    found: list[dict[str, Any]] = []
    simulate.Session = gateways.Session = Counted  # type: ignore[misc]
    simulate.print = lambda text: found.append(json.loads(text))  # type: ignore[attr-defined]
    main(["simulate", *words, "--json"])
    (summary,) = found
    print(
        json.dumps(
            {
                "requests": summary["requests"],
                "finished": summary["finished"],
                "replicas": len(summary["replicas"]),
                "faults": sum(len(session.changes) for session in sessions) - len(summary["replicas"]),
                "mean_w": (summary["power"] or {}).get("mean_w"),
                "events": sum(session.progress.events for session in sessions),
                "batch_changes": sum(session.progress.batch_changes for session in sessions),
            }
        )
    )  # fmt: skip


def small(plan: str) -> None:
    """Row a: the same again in one process, the first time not counted."""
    from polypod.cli import simulate

    parser = argparse.ArgumentParser()
    simulate.add_arguments(parser)
    spent_s: list[list[float]] = []
    play = simulate.play_session

    def timed(*args: Any) -> Any:
        start_s = time.process_time()
        played = play(*args)
        spent_s[-1].append(time.process_time() - start_s)
        return played

    simulate.play_session = timed
    for seed in range(8):
        args = parser.parse_args([plan, *SMALL, "--seed", str(seed)])
        start_s = time.process_time()
        spent_s.append([])
        played = simulate.played_of(args)
        spent_s[-1].append(time.process_time() - start_s)
        assert played.summary.requests == 4096
        assert len(played.summary.replicas) == 8
    played_s, all_s = (sorted(one)[3] for one in zip(*spent_s[1:], strict=True))
    print(json.dumps({"played_s": played_s, "all_s": all_s, "first_s": spent_s[0][1]}))


def compiling() -> None:
    from polypod.engine.native.build import library

    library()


# ---- plans and traffic


def planned(path: Path, words: list[str]) -> None:
    measured(["-m", "polypod", "plan", *words, "-o", str(path)])


def pods_of(path: Path, pods: int, to: Path) -> None:
    """The plan so many times, as one fleet."""
    from polypod.plan.spec import read_plan, write_plan

    plan = read_plan(path)
    fleet = {
        name: msgspec.structs.replace(its, count=its.count * pods)
        for name, its in plan.fleet.items()
    }
    services = tuple(
        msgspec.structs.replace(
            one,
            pools=tuple(
                msgspec.structs.replace(pool, replicas=pool.replicas * pods) for pool in one.pools
            ),
        )
        for one in plan.services
    )
    write_plan(msgspec.structs.replace(plan, fleet=fleet, services=services), to)


def scaled(trace: Path, pods: int) -> list[str]:
    """Flags that make the traffic of so many pods of a trace."""
    from polypod.workload.traffic_files import Reading, read_trace

    found = read_trace(trace, Reading())
    hour_s = max(float(found.arrival_s[-1]), 1.0)
    scale = REQUESTS / (len(found) * 3600 / hour_s)
    if 3000 < hour_s < 4200:  # an hour: as it is
        scale = round(REQUESTS / len(found))
    return ["--trace", str(trace), "--scale", f"{pods * scale:.4f}x"]


# ---- rows


def row(name: str, what: str, cpu_s: float, mb: float) -> None:
    print(f"{name}  {what:<58} {cpu_s:8.2f} s {mb:8.0f} MB  {PEERS.get(name, '')}", flush=True)


def row_a(folder: Path) -> None:
    plan = folder / "small.yaml"
    words = ["llama-2-7b", "--on", "nvidia-a100-80g-sxm:8", "--together"]
    planned(plan, [*words, *ALIKE])
    out, _, mb = measured([__file__, "--small", str(plan)])
    found = json.loads(out)
    row("a", "4,096 requests on 8 x Llama-2-7B on an A100: played", found["played_s"], mb)
    row("a", "the same, with what is read of the plan and the catalog", found["all_s"], mb)
    row("a", "the same, the first of a process", found["first_s"], mb)
    _, cpu_s, mb = measured(["-m", "polypod", "simulate", str(plan), *SMALL])
    row("a", "the same, the whole command", cpu_s, mb)


def row_b(trace: Path, plan: Path, hours: int, name: str) -> None:
    words = [str(plan), *scaled(trace, 1), "--duration", f"{hours}h", "--draw-faults"]
    out, cpu_s, mb = measured([__file__, "--counted", *words])
    found = json.loads(out)
    what = f"{hours} h, {found['requests']:,} requests, {found['replicas']} replicas, {found['faults']} downs and ups, {found['mean_w'] / 1e6:.2f} MW"
    row(name, what, cpu_s, mb)


def row_d(folder: Path, trace: Path, plan: Path, pods: list[int], minutes: int) -> list[Point]:
    print(f"d  {minutes} min, as much traffic a pod as in b, a gateway for each pod of {CARDS:,} cards:")  # fmt: skip
    print("       cards   requests  batch changes   CPU s      MB  us a batch change")
    points = []
    for count in pods:
        many = folder / f"pods{count}.yaml"
        pods_of(plan, count, many)
        words = [str(many), *scaled(trace, count), "--duration", f"{minutes}min", "--draw-faults"]
        words += ["--gateways", str(count), "--processes", "1"]
        out, cpu_s, mb = measured([__file__, "--counted", *words])
        found = json.loads(out)
        changes = found["batch_changes"]
        print(
            f"  {CARDS * count:>10,} {found['requests']:>10,} {changes:>14,} {cpu_s:>7.1f} {mb:>7,.0f} {1e6 * cpu_s / changes:>8.2f}",
            flush=True,
        )
        points.append((CARDS * count, minutes, changes, cpu_s))
    return points


def grown(folder: Path, trace: Path, plan: Path, args: argparse.Namespace) -> None:
    pods = [int(one) for one in args.pods.split(",")]
    points: list[Point] = []
    for minutes in args.minutes.split(","):
        points += row_d(folder, trace, plan, pods, int(minutes))
    if args.svg:
        Path(args.svg).write_text(svg(points))


def row_e(folder: Path) -> None:
    env = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    _, cold_s, mb = measured([__file__, "--compiling"], env)
    _, warm_s, _ = measured([__file__, "--compiling"], env)
    row("e", "the core's first compiling, beyond loading it", cold_s - warm_s, mb)


# ---- the plot


def svg(points: list[Point]) -> str:
    """CPU seconds against batch changes, both in powers of ten, beside a fixed start and one price a change: those of the points of fewest and most."""
    width, height, left, right, top, bottom = 640, 420, 70, 70, 50, 60
    points = sorted(points, key=lambda point: point[2])
    (_, _, few, least_s), (_, _, many, most_s) = points[0], points[-1]
    price_s = (most_s - least_s) / (many - few)
    start_s = least_s - price_s * few
    low, high = math.floor(math.log10(few)), math.ceil(math.log10(many))
    low_s, high_s = math.floor(math.log10(least_s)), math.ceil(math.log10(most_s))

    def at(x: float, y: float) -> tuple[float, float]:
        over, up = ((math.log10(x) - low) / (high - low), (math.log10(y) - low_s) / (high_s - low_s))  # fmt: skip
        return left + over * (width - left - right), height - bottom - up * (height - bottom - top)

    (x0, y0), (x1, y1) = at(10**low, 10**low_s), at(10**high, 10**high_s)
    grid = [few * (many / few) ** (part / 40) for part in range(41)]
    curve = " ".join("{:.1f},{:.1f}".format(*at(x, start_s + price_s * x)) for x in grid)
    spans = sorted({minutes for _, minutes, _, _ in points})
    marks = [
        f'<text x="{left}" y="22" font-size="14">CPU of one simulation of a scaled real trace, {CARDS:,} cards a gateway</text>',
        f'<polyline points="{x0:.1f},{y1:.1f} {x0:.1f},{y0:.1f} {x1:.1f},{y0:.1f}" fill="none" stroke="#444"/>',
        f'<polyline points="{curve}" fill="none" stroke="#888" stroke-dasharray="5 4"/>',
        f'<text x="{(left + width) / 2}" y="{height - 14}" font-size="12" text-anchor="middle">batch changes (dashed: {start_s:.1f} s and {1e6 * price_s:.2f} us each)</text>',
        f'<text x="18" y="{height / 2}" font-size="12" text-anchor="middle" transform="rotate(-90 18 {height / 2})">CPU seconds of one core</text>',
    ]
    marks += [
        f'<text x="{at(10**power, 10**low_s)[0]:.1f}" y="{y0 + 18:.1f}" font-size="11" text-anchor="middle">{10**power:,}</text>'
        for power in range(low, high + 1)
    ]
    marks += [
        f'<text x="{left - 8}" y="{at(10**low, 10**power)[1] + 4:.1f}" font-size="11" text-anchor="end">{10**power:,g}</text>'
        for power in range(low_s, high_s + 1)
    ]
    for cards, minutes, x, y in points:
        cx, cy = at(x, y)
        ink, side = INKS[spans.index(minutes) % len(INKS)]
        along = f'x="{cx + 10 * side:.1f}" y="{cy + (14 if side > 0 else -8):.1f}" text-anchor="{"start" if side > 0 else "end"}"'
        marks.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" fill="{ink}"/>')
        marks.append(f'<text {along} font-size="11" fill="{ink}">{cards:,} cards, {minutes} min: {y:,.0f} s</text>')  # fmt: skip
    body = "\n".join(marks)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" fill="#222">\n<rect width="{width}" height="{height}" fill="white"/>\n{body}\n</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trace", nargs="?", default="examples/traces/azure-conv-1000.csv")
    parser.add_argument("--rows", default="a,b,e")
    parser.add_argument("--pods", default="1,4,16")
    parser.add_argument("--minutes", default="10")
    parser.add_argument("--svg")
    args = parser.parse_args()
    rows, trace = args.rows.split(","), Path(args.trace)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "e" in rows:
            row_e(folder)
        if "a" in rows:
            row_a(folder)
        plan = folder / "apart.yaml"
        if set(rows) & set("bcd"):
            planned(plan, [*APART, *ALIKE])
        for letter, hours in (("b", 1), ("c", 24)):
            if letter in rows:
                row_b(trace, plan, hours, letter)
        if "d" in rows:
            grown(folder, trace, plan, args)


MODES = {"--counted": counted, "--small": lambda words: small(*words), "--compiling": lambda _: compiling()}  # fmt: skip

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in MODES:
        MODES[sys.argv[1]](sys.argv[2:])
    else:
        main()
