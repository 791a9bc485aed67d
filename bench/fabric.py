"""How long collectives and flows take to play on a fabric, how much memory, and how far equal shares are from max-min.

    python bench/fabric.py

CPU seconds of this process beyond imports and compilation, the least of several rounds. Bounded: about a minute of an idle core. Beside it: ASTRA-sim's
congestion-aware analytical backend took 24.4 CPU-s and 767 MiB for one ring all-reduce over 1,024 ranks, its congestion-unaware one 13.2 CPU-s for
halving-doubling over 8,192, on a 2-core machine (commit f66c1da, https://github.com/astra-sim/astra-sim).
"""

import resource
import sys
import time
from collections.abc import Callable

import numpy as np

from polypod.simulate.collectives import Collective, contention, play_collectives
from polypod.simulate.fabric import Fabric, FabricPart, FabricTier, fabric
from polypod.simulate.flows import Demand, Errors, Flows, errors

MIB = 2.0**20


def pod(ranks: int, blocking: float = 2.0) -> Fabric:
    """Nodes of 8, leaves of 256, a spine that blocks."""
    node = FabricTier(name="node", ranks=8, bytes_per_s=450e9, latency_s=1e-6)
    leaf = FabricTier(name="leaf", ranks=256, bytes_per_s=50e9, latency_s=5e-6)
    spine = FabricTier(name="spine", ranks=None, bytes_per_s=50e9, latency_s=8e-6, shares_port=True, blocking_ratio=blocking)  # fmt: skip
    return fabric([FabricPart(name="pod", ranks=ranks, tiers=(node, leaf, spine))])


def cpu_s(do: Callable[[], object], rounds: int = 3) -> float:
    spent = []
    for _ in range(rounds):
        start = time.process_time()
        do()
        spent.append(time.process_time() - start)
    return min(spent)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def collectives() -> None:
    print(f"{'all-reduce':>34}  {'ranks':>6}  {'CPU s':>7}  {'ends at':>10}  {'peak':>8}")
    for ranks in (64, 1024, 8192):
        where = pod(ranks)
        for algorithm in ("ring", "halving-doubling", "direct", "hierarchical"):
            one = Collective(pattern="all_reduce", algorithm=algorithm, ranks=tuple(range(ranks)), buffer_bytes=256 * MIB)  # fmt: skip
            end_s = play_collectives(where, [one])[0]
            spent = cpu_s(lambda where=where, one=one: play_collectives(where, [one]))
            print(f"{algorithm:>34}  {ranks:>6}  {spent:>7.3f}  {end_s * 1e3:>7.3f} ms  {peak_mib():>4.0f} MiB")  # fmt: skip
    where, everyone = pod(1024), tuple(range(1024))
    several = [
        Collective(pattern="all_reduce", algorithm="ring", ranks=everyone, buffer_bytes=256 * MIB),
        Collective(pattern="all_reduce", algorithm="halving-doubling", ranks=everyone, buffer_bytes=100 * MIB, start_s=1e-5),
        Collective(pattern="all_to_all", algorithm="direct", ranks=everyone, buffer_bytes=64 * MIB, start_s=2e-5),
        Collective(pattern="all_gather", algorithm="hierarchical", ranks=everyone, buffer_bytes=512 * MIB, start_s=3e-5),
    ]  # fmt: skip
    ends = play_collectives(where, several)
    spent = cpu_s(lambda: play_collectives(where, several))
    print(f"{'those four at once':>34}  {1024:>6}  {spent:>7.3f}  {max(ends) * 1e3:>7.3f} ms  {peak_mib():>4.0f} MiB")  # fmt: skip
    rings = [Collective(pattern="all_reduce", algorithm="ring", ranks=everyone, buffer_bytes=(256 - n) * MIB) for n in range(4)]  # fmt: skip
    ends = play_collectives(where, rings)
    spent = cpu_s(lambda: play_collectives(where, rings))
    print(f"{'four unlike rings at once':>34}  {1024:>6}  {spent:>7.3f}  {max(ends) * 1e3:>7.3f} ms  {peak_mib():>4.0f} MiB")  # fmt: skip
    where = pod(10_240)
    across = [Collective(pattern="all_to_all", algorithm="direct", ranks=tuple(range(n, 10_240, 160)), buffer_bytes=64 * MIB) for n in range(160)]  # fmt: skip
    factors = contention(where, across)
    spent = cpu_s(lambda: contention(where, across), 1)
    print(f"160 replicas of 64 ranks over all leaves of 10,240: {spent:.3f} CPU s, slowed {min(factors):.2f} to {max(factors):.2f} times")  # fmt: skip


def demand(where: Fabric, flows: int, per_s: float | None = None, seed: int = 0) -> Demand:
    """1 to 64 MiB between any two ranks; a port is busy with one for 0.7 ms in the mean."""
    random = np.random.default_rng(seed)
    a = random.integers(0, where.ranks, flows)
    b = (a + random.integers(1, where.ranks, flows)) % where.ranks
    path_FW, latency_s_F = where.paths(a, b)
    at_s_F = np.zeros(flows) if per_s is None else np.cumsum(random.exponential(1 / per_s, flows))
    return Demand(at_s_F=at_s_F, size_bytes_F=random.uniform(1, 64, flows) * MIB, path_FW=path_FW, latency_s_F=latency_s_F)  # fmt: skip


def flows() -> None:
    from polypod.simulate.fabric_kernels import CompiledFlows

    where = pod(10_240)
    print(f"\n{'flows at once':>14}  {'max-min, plain':>15}  {'compiled':>10}  {'equal, plain':>13}  {'compiled':>10}   flows that start and end per CPU s")  # fmt: skip
    churn = churned()
    for count in (10, 1_000, 100_000):
        asked = demand(where, count)
        row = [rate(where, asked, sharing) for sharing in ("max-min", "equal") for rate in (plain_rate, churn)]  # fmt: skip
        print(f"{count:>14,}  {row[0]:>15,.0f}  {row[1]:>10,.0f}  {row[2]:>13,.0f}  {row[3]:>10,.0f}")  # fmt: skip
    where = pod(1024)
    print("\nequal shares beside max-min on 1,024 ranks: how long flows take, by the one over the other")  # fmt: skip
    for name, per_s in (
        ("200,000 a second", 2e5),
        ("1,000,000 a second", 1e6),
        ("all at once", None),
    ):
        asked = demand(where, 1_500, per_s)
        print(f"  {name}: {shown(errors(CompiledFlows(where), CompiledFlows(where, 'equal'), asked))}")  # fmt: skip
        late = errors(CompiledFlows(where, "equal", 0.0), CompiledFlows(where, "equal"), asked)
        print(f"    of that, from telling shares late: {shown(late)}")


def shown(found: Errors) -> str:
    return f"median {found.median_ratio:.3f}, 10 % under {found.p10_ratio:.3f}, 90 % under {found.p90_ratio:.3f}, 99 % under {found.p99_ratio:.3f}, from {found.least_ratio:.3f} to {found.most_ratio:.3f}"  # fmt: skip


_PLAIN_FLOWS = 1_000
"""The plain twin is asked for so many at most: what more would take is known from these."""


def plain_rate(where: Fabric, asked: Demand, sharing: str) -> float:
    """As many as there are start and end one by one beside the others; at most so many that it takes seconds."""
    count = len(asked.at_s_F)
    if count > _PLAIN_FLOWS:
        return float("nan")
    one = Flows(where, sharing)
    start = time.process_time()
    for flow in range(count):
        path = [link for link in asked.path_FW[flow].tolist() if link >= 0]
        one.start(0.0, flow, path, float(asked.size_bytes_F[flow]))
        if time.process_time() - start > 3:
            return (flow + 1) / 2 / (time.process_time() - start)
    while one.next_s < float("inf") and time.process_time() - start < 6:
        one.advance(one.next_s)
    return count / (time.process_time() - start)


def churned() -> Callable[[Fabric, Demand, str], float]:
    """Inside a compiled loop: one flow ends, the next starts, beside all the others."""
    from numba import njit

    from polypod.simulate.fabric_kernels import add, flow_arrays, next_end, remove

    @njit
    def fill(arrays, path_FW, length_F, size_F):
        for flow in range(len(size_F)):
            add(arrays, 0.0, flow, path_FW[flow], length_F[flow], size_F[flow])

    @njit
    def turn(arrays, path_FW, length_F, size_F, turns):
        for _ in range(turns):
            end_s, slot = next_end(arrays)
            remove(arrays, end_s, slot)
            add(arrays, end_s, slot, path_FW[slot], length_F[slot], size_F[slot])

    def rate(where: Fabric, asked: Demand, sharing: str) -> float:
        path_FW = np.ascontiguousarray(-np.sort(-asked.path_FW, axis=1))
        flows = (path_FW, (path_FW >= 0).sum(axis=1), asked.size_bytes_F)
        count = len(asked.at_s_F)
        arrays = flow_arrays(where, count, path_FW.shape[1], "equal")
        fill(arrays, *flows)
        if sharing == "max-min":
            arrays = arrays._replace(tolerance=-1.0)
        turn(arrays, *flows, 1)
        turns = 2_000_000 // count if sharing == "max-min" else 200_000
        start = time.process_time()
        turn(arrays, *flows, turns)
        return turns / (time.process_time() - start)

    return rate


def main() -> None:
    collectives()
    if "--collectives" not in sys.argv:
        flows()


if __name__ == "__main__":
    main()
