"""Sweeps of plans and of simulations on a Ray cluster of this machine, beside the same on local processes: equal rows although a worker and a node are killed.

Run by `make sweep-ray`, which has Ray and pyarrow. Starts a head without cores and two nodes of one core each, kills with SIGKILL one process that
is at a point, then one whole node, and adds another; every process it kills it has started itself.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[1]

SWEEP = """\
model: [llama-3.1-8b, qwen3-32b]
on: [nvidia-h100-sxm:2, nvidia-h200-sxm:2, huawei-ascend-910c:2]
input: [1000, 2000, 4000]
output: [128, 256]
ttft: [1 s, null]
tpot: [20 ms, 30 ms]
also: [{model: no-such-model, on: nvidia-h100-sxm:2, input: 1000, output: 128, ttft: null, tpot: null}]
"""

RUNS = f"""\
kind: simulate
plan: {ROOT / "examples" / "one-pool.yaml"}
requests: 2000
rate: [40 /s, 80 /s]
replicas: [2, 3]
seed: 0..3
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sweep.yaml").write_text(SWEEP, encoding="utf-8")
        (Path(folder) / "runs.yaml").write_text(RUNS, encoding="utf-8")
        started_s = time.monotonic()
        assert _sweep(folder, "local.parquet").wait() == 0, "the local sweep failed"
        print(f"on local processes: {time.monotonic() - started_s:.1f} s")
        _on_ray(folder)
        local, remote = (_rows(Path(folder) / f"{name}.parquet") for name in ("local", "ray"))
        assert _sweep(folder, "local-runs.parquet", of="runs.yaml").wait() == 0, "the local runs failed"  # fmt: skip
        mine, theirs = (_rows(Path(folder) / f"{name}-runs.parquet") for name in ("local", "ray"))
        leftover = sorted(path.name for path in Path(folder).iterdir() if path.suffix != ".csv")
    assert local == remote, "the two tables differ"
    assert mine == theirs, "the two tables of simulations differ"
    assert not [name for name in leftover if name.endswith(".parts")], leftover
    print(
        f"{len(local)} plans and {len(mine)} simulations are equal, in the same order, whoever worked them off"
    )
    return 0


def _on_ray(folder: str) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    started_s = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    print(f"a cluster of two workers: {time.monotonic() - started_s:.1f} s")
    started_s = time.monotonic()
    try:
        sweep = _sweep(folder, "ray.parquet", "--ray", cluster.address)
        _wait_for(folder, 5)
        killed = _kill_a_worker()
        print(f"killed worker process {killed} after {_finished(folder)} points")
        _wait_for(folder, 20)
        print(f"killed a node after {_finished(folder)} points")
        cluster.remove_node(nodes[0], allow_graceful=False)
        cluster.add_node(num_cpus=1)
        assert sweep.wait(timeout=300) == 0, "the sweep failed"
        runs = _sweep(folder, "ray-runs.parquet", "--ray", cluster.address, of="runs.yaml")
        assert runs.wait(timeout=300) == 0, "the simulations failed"
    finally:
        cluster.shutdown()
    print(f"on the cluster, with both killed: {time.monotonic() - started_s:.1f} s")


def _sweep(folder: str, out: str, *more: str, of: str = "sweep.yaml") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "polypod", "sweep", of, "-o", out, *more]
    return subprocess.Popen(command, cwd=folder)


def _finished(folder: str) -> int:
    parts = Path(folder, "ray.parquet.parts").glob("*.jsonl")
    return sum(len(part.read_bytes().splitlines()) for part in parts)


def _wait_for(folder: str, count: int) -> None:
    deadline_s = time.monotonic() + 120
    while _finished(folder) < count:
        assert time.monotonic() < deadline_s, f"fewer than {count} points after two minutes"
        time.sleep(0.05)


def _kill_a_worker() -> int:
    """One process of ours that is at a point: Ray names it after the task."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for pid, command in _descendants():
            if command.startswith("ray::task"):
                os.kill(pid, signal.SIGKILL)
                return pid
        time.sleep(0.02)
    msg = "no worker was at a point for a minute"
    raise SystemExit(msg)


def _descendants() -> Iterator[tuple[int, str]]:
    """Processes that this one or its children started, and what they are called."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)  # fmt: skip
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    ours = {os.getpid()}
    while more := {int(pid) for pid, parent, _ in rows if int(parent) in ours} - ours:
        ours |= more
    yield from ((int(pid), args) for pid, _, args in rows if int(pid) in ours)


def _rows(path: Path) -> list[dict[str, object]]:
    return pq.read_table(path).drop_columns(["spent_s"]).to_pylist()


if __name__ == "__main__":
    print(f"ray {ray.__version__}, {os.cpu_count()} cores")
    sys.exit(main())
