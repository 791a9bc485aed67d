"""How long collectives and flows take to play on a fabric, how much memory, and how far levels and equal shares are from max-min; exchanges of experts beside DeepEP's.

    python bench/fabric.py [--collectives | --transfers | --experts]

CPU seconds of this process beyond imports and compilation, the least of several rounds. Bounded: about a minute of an idle core. Beside it: ASTRA-sim's
congestion-aware analytical backend took 24.4 CPU-s and 767 MiB for one ring all-reduce over 1,024 ranks, its congestion-unaware one 13.2 CPU-s for
halving-doubling over 8,192, on a 2-core machine (commit f66c1da, https://github.com/astra-sim/astra-sim).
"""

import csv
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from polypod.cost.deployment import Precision
from polypod.cost.steptime import StepTime
from polypod.plan.place import parse_fleet
from polypod.plan.spec import Plan, Pool, Service
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import ReplicaUp, Role
from polypod.simulate import Arrival, Scenario
from polypod.simulate.arriving import Listed
from polypod.simulate.collectives import Collective, contention, play_collectives
from polypod.simulate.compiled import Session
from polypod.simulate.fabric import (
    Fabric,
    FabricPart,
    FabricTier,
    Floats,
    Network,
    fabric,
    fabric_of,
)
from polypod.simulate.flows import Demand, Errors, Flows, errors, play_flows
from polypod.simulate.placed import Placed
from polypod.simulate.transfers import Transfers
from polypod.simulate.way_plan import ways_of
from polypod.simulate.ways import EXACT_CACHES, Ways
from polypod.validate.shipped import read_shipped_points
from polypod.workload.layout import Layout

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


NARROW = Network(leaf_cards=256, node_blocking_ratio=2.0, leaf_blocking_ratio=2.0)


def apart(cards: int) -> Plan:
    """Half the cards prefill, half decode, one to a replica."""
    pools = tuple(
        Pool(role=role, on="a", layout=Layout(tp=1), replicas=cards // 2, precision=Precision(weights="bf16", kv="bf16"), state="modelled", name=role)
        for role in ("prefill", "decode")
    )  # fmt: skip
    return Plan(polypod=1, fleet=parse_fleet(f"nvidia-h200-sxm:{cards}"), services=(Service(model="qwen3-8b", pools=pools),))  # fmt: skip


def transfers() -> None:
    """Caches by the drivers' rule beside max-min on the fabric's own links, and how many the compiled driver plays in a CPU second."""
    from polypod.simulate.fabric_kernels import CompiledFlows

    plan = apart(1024)
    where, placed = fabric_of(plan, NARROW)
    found = ways_of(plan, where, placed)
    assert found is not None
    print("\ncaches of 1 to 1,024 MiB on 1,024 cards, nodes and leaves blocking 2:1: how long they take, over max-min")  # fmt: skip
    random = np.random.default_rng(0)
    for per_s in (1_500.0, 7_000.0, 15_000.0, 20_000.0):
        count = 6_000
        asked = caches(where, placed, random, count, per_s)
        exact_s = play_flows(CompiledFlows(where), asked.demand) - asked.demand.at_s_F
        for exact in (0, EXACT_CACHES):
            near_s, most = played(replace(found.ways, exact_caches=exact), placed, asked)
            ratio = (near_s - asked.demand.at_s_F) / exact_s
            p10, median, p90, p99 = np.quantile(ratio, (0.1, 0.5, 0.9, 0.99))
            rule = "levels" if exact == 0 else f"max-min up to {exact}"
            print(f"  {per_s:>6,.0f} a second, up to {most:>4} at once, {rule}: mean {ratio.mean():.3f}, median {median:.3f}, 10 % under {p10:.3f}, 90 % under {p90:.3f}, 99 % under {p99:.3f}, from {ratio.min():.3f} to {ratio.max():.3f}")  # fmt: skip
    print(f"\n{'requests with a cache each':>28}  {'own links alone':>16}  {'and shared ones':>16}   in a CPU second of the compiled driver, and how many caches go at once")  # fmt: skip
    for replicas, per_s in ((16, 100.0), (512, 1_500.0), (512, 7_000.0), (512, 20_000.0)):
        rates = [driver_rate(apart(2 * replicas), per_s, is_shared=is_shared) for is_shared in (False, True)]  # fmt: skip
        print(f"{per_s:>8,.0f}/s, {2 * replicas:>5} replicas  {rates[0][0]:>16,.0f}  {rates[1][0]:>16,.0f}   {rates[0][1]:.0f} and {rates[1][1]:.0f}")  # fmt: skip


class Caches(NamedTuple):
    """Flows, and between which replicas they are."""

    demand: Demand
    pairs: list[tuple[int, int]]


def caches(where: Fabric, placed: Placed, random: np.random.Generator, count: int, per_s: float) -> Caches:  # fmt: skip
    half = len(placed.replicas) // 2
    pairs = [(int(a), half + int(b)) for a, b in random.integers(0, half, (count, 2))]
    a_F, b_F = (placed.first_rank_R[[pair[end] for pair in pairs]] for end in (0, 1))
    path_FW, latency_s_F = where.paths(a_F, b_F)
    at_s_F = np.cumsum(random.exponential(1 / per_s, count))
    size_F = random.uniform(1, 1024, count) * MIB
    return Caches(Demand(at_s_F=at_s_F, size_bytes_F=size_F, path_FW=path_FW, latency_s_F=0 * latency_s_F), pairs)  # fmt: skip


def played(ways: Ways, placed: Placed, asked: Caches) -> tuple[Floats, int]:
    """When each cache is there, and the most that went at once."""
    ups = [up_of(name) for name in placed.replicas]
    made = Transfers(ways, ups)
    for up in ups:
        made.link(up)
    end_s, most, going = np.full(len(asked.pairs), np.inf), 0, 0
    times = [*asked.demand.at_s_F.tolist(), np.inf]
    for flow, at_s in enumerate(times):
        while made.next_s <= at_s and made.next_s < np.inf:
            now_s = made.next_s
            for done in made.advance(now_s):
                end_s[done], going = now_s, going - 1
        if flow < len(asked.pairs):
            source, target = (placed.replicas[one] for one in asked.pairs[flow])
            made.start(at_s, request=flow, ends=(source, target), kv_bytes=float(asked.demand.size_bytes_F[flow]))  # fmt: skip
            going += 1
            most = max(most, going)
    return end_s, most


def up_of(name: str) -> ReplicaUp:
    """A replica that computes in next to no time, with a cache of 32 MiB a token."""
    step = StepTime(tokens=(1, 1000), seconds=(1e-5, 2e-5), kv_token_s=0.0, pair_s=0.0)
    role: Role = "prefill" if name.startswith("prefill") else "decode"
    return ReplicaUp(
        at_s=0.0, replica=name, epoch=1, model="m", pool=role, role=role, step_time=step, context_tokens=64, kv_capacity_tokens=100_000,
        max_sequences=64, max_step_tokens=1000, kv_token_bytes=32 * MIB, kv_link_bytes_per_s=50e9,
    )  # fmt: skip


def driver_rate(plan: Plan, per_s: float, *, is_shared: bool) -> tuple[float, float]:
    """Requests a CPU second, and how many caches are on their way in the mean: 512 MiB each in the mean, by Little's law."""
    where, placed = fabric_of(plan, NARROW)
    found = ways_of(plan, where, placed)
    assert found is not None
    random = np.random.default_rng(1)
    count = 50_000
    at_s = np.cumsum(random.exponential(1 / per_s, count))
    trace = tuple(
        Arrival(at_s=at, model="m", input_tokens=int(tokens), output_tokens=2)
        for at, tokens in zip(at_s.tolist(), random.integers(1, 32, count), strict=True)
    )
    settings = PolicySettings(services=(ServiceSettings(model="m", context_tokens=64),), queue_requests=10**6, queue_wait_s=1e9)  # fmt: skip
    scenario = Scenario(replicas=tuple(up_of(name) for name in placed.replicas), settings=settings, trace=trace, ways=found.ways if is_shared else None)  # fmt: skip
    session = Session(scenario, Listed(trace), share=0.0)
    start = time.process_time()
    outcomes = np.concatenate([turn.outcomes for turn in session.turns()])
    spent_s = time.process_time() - start
    on_way_s = outcomes["first_s"] - outcomes["prefilled_s"]
    return count / spent_s, float(np.nansum(on_way_s) / at_s[-1])


TOP_K, NODE = 8, 8
TOKEN_BYTES = {"dispatch": 7168 + 7168 / 128 * 4, "combine": 2 * 7168}
"""Of DeepSeek-V3 in 8 bits with a scale of 4 bytes for each 128, and in 16."""


def experts() -> None:
    """All-to-alls on the fabric, told what launching takes among the 8 ranks of a node, beside what DeepEP's kernels take."""
    known = {one.id: one.value for one in read_shipped_points()}
    node = FabricTier(name="node", ranks=NODE, bytes_per_s=160e9, latency_s=0.0)
    between = FabricTier(name="network", ranks=None, bytes_per_s=50e9, latency_s=0.0)
    where = fabric([FabricPart(name="h800", ranks=256, tiers=(node, between))])
    print("DeepEP's low-latency kernels on H800, 128 tokens a rank, as published, and on the fabric: microseconds")  # fmt: skip
    for which, token_bytes in TOKEN_BYTES.items():
        buffer_bytes = 128 * TOP_K * token_bytes
        launch_s = known[f"deepep-h800-{which}-ep8"] - exchanged_s(where, 8, buffer_bytes)
        row = [f"{which:>9}"]
        for ranks in (8, 16, 32, 64, 128, 256):
            ours_s, theirs_s = launch_s + exchanged_s(where, ranks, buffer_bytes), known[f"deepep-h800-{which}-ep{ranks}"]  # fmt: skip
            row.append(
                f"EP{ranks} {theirs_s * 1e6:.0f} and {ours_s * 1e6:.0f} ({ours_s / theirs_s - 1:+.0%})"
            )
        print("  ".join(row))
    print("\nthe tables of H100 and B200 in a node, first and last row told, the others' errors")
    path = Path(__file__).parents[1] / "tests" / "data" / "deepep" / "eight.csv"
    tables: dict[tuple[str, str, str], dict[int, float]] = {}
    with path.open(encoding="utf-8") as file:
        for one in csv.DictReader(file):
            table = tables.setdefault((one["chip"], one["kernels"], one["exchange"]), {})
            table[int(one["tokens"])] = 1e-6 * float(one["us"])
    for (chip, kernels, which), measured_s in tables.items():
        off = table_errors(kernels, which, measured_s)
        print(f"{chip:>18} {kernels:>7} {which:>9}: {min(off):+.0%} to {max(off):+.0%}, {len(off)} rows")  # fmt: skip


def table_errors(kernels: str, which: str, measured_s: dict[int, float]) -> list[float]:
    """Of the low-latency kernels a copy goes to each expert, of the normal ones to each rank that has any."""
    copies = TOP_K if kernels == "ll" else NODE * (1 - (1 - 1 / NODE) ** TOP_K)
    token_bytes, one, most = copies * TOKEN_BYTES[which], min(measured_s), max(measured_s)
    crossing_bytes = (most - one) * token_bytes * (NODE - 1) / NODE
    width = crossing_bytes / (measured_s[most] - measured_s[one])
    tier = FabricTier(name="node", ranks=NODE, bytes_per_s=width, latency_s=0.0)
    where = fabric([FabricPart(name="node", ranks=NODE, tiers=(tier,))])
    launch_s = measured_s[one] - exchanged_s(where, NODE, one * token_bytes)
    return [
        (launch_s + exchanged_s(where, NODE, tokens * token_bytes)) / its_s - 1
        for tokens, its_s in measured_s.items()
        if tokens not in (one, most)
    ]


def exchanged_s(where: Fabric, ranks: int, buffer_bytes: float) -> float:
    one = Collective(pattern="all_to_all", algorithm="direct", ranks=tuple(range(ranks)), buffer_bytes=buffer_bytes)  # fmt: skip
    return play_collectives(where, [one])[0]


def main() -> None:
    if "--transfers" in sys.argv:
        transfers()
        return
    if "--experts" in sys.argv:
        experts()
        return
    collectives()
    if "--collectives" not in sys.argv:
        flows()
        transfers()


if __name__ == "__main__":
    main()
