"""How much longer replicas' steps take because all exchange over tiers that block more than the plan has charged them for.

    steps take     1 + sum over patterns of x (f - 1) times as long
    x              transfer time of the pattern's exchanges that leave the tier before, over the step's, as the plan prices them (`exchange_share`)
    f              max(1, together_s / priced_s)

`together_s` is how long the exchange takes while every other replica makes its own again and again (`collectives.contention`), `priced_s` the same alone
on links that block nobody and are as wide as the plan's step times have them: narrower already by the ratios it was charged for (`plan.contention`). A plan
that was charged for what it is played with is slowed by nothing here. Reductions are hierarchical, or rings where a tier's instances have unequal numbers of them, all-to-all direct, as
`cost.collective` prices them. All replicas exchange all the time here, which is as bad as it gets. Left out: sends between stages of a pipeline,
and other patterns of the same and of other pools at the same moment.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from polypod.cost.collective import CollectiveTime
from polypod.cost.deployment import Deployment
from polypod.cost.step import group_of
from polypod.plan.spec import Plan, Pool, Service
from polypod.simulate.collectives import Algorithm, Collective, Pattern, contention
from polypod.simulate.exchange_share import batch_of, deployment_of
from polypod.simulate.fabric import Fabric, FabricPart, fabric
from polypod.simulate.placed import Part, Placed

BUFFER_BYTES = 1e12
"""Large, so that latency does not count: narrower links lengthen the transfer alone."""

_FABRIC_PATTERNS: tuple[Pattern, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


_WAY_OUT = "leave --network's blocking ratios out"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exchange:
    """A pattern of one pool: what of its step it is, and which ranks of a replica, counted from its first, exchange with one another."""

    pattern: Pattern
    share: float
    groups: tuple[tuple[int, ...], ...]


def slowdowns(plan: Plan, made: Fabric, placed: Placed) -> dict[str, float]:
    """Of the replicas that are slowed, by how much.

    Raises `InputError` where a tier blocks more than the plan was charged for and the plan has no traffic to say what of a step is exchange.
    """
    pools = [(service, pool) for service in plan.services for pool in service.pools]
    pool_R = np.repeat(np.arange(len(pools)), [pool.replicas for _, pool in pools])
    names = [part.name for part in placed.parts]
    found: dict[str, float] = {}
    blocked = [_inner_ranks(part, of) for part, of in zip(placed.parts, made.parts, strict=True)]
    exchanges = [
        list(_exchanges(service, pool, placed.parts[names.index(pool.on)], blocked[names.index(pool.on)]))
        for service, pool in pools
    ]  # fmt: skip
    if not any(exchanges):
        return found
    priced = fabric([_priced(part, of) for part, of in zip(placed.parts, made.parts, strict=True)])
    known: dict[tuple[object, ...], list[float]] = {}
    for rows in _clusters(placed, made, [bool(exchanges[pool]) for pool in pool_R.tolist()]):
        key = _key(placed, made, rows, pool_R[rows].tolist())
        if key not in known:
            known[key] = _factors(made, priced, [(int(placed.first_rank_R[row]), exchanges[pool_R[row]]) for row in rows])  # fmt: skip
        found |= {placed.replicas[row]: factor for row, factor in zip(rows, known[key], strict=True) if factor > 1}  # fmt: skip
    return found


def _inner_ranks(part: Part, of: FabricPart) -> list[int]:
    """Of tiers that block more than was charged for, how many ranks one instance of the tier before joins."""
    found, inner = [], 1
    for tier, charged in zip(of.tiers, _charged(part, of), strict=True):
        if tier.blocking_ratio > charged * (1 + 1e-9):
            found.append(inner)
        inner = tier.ranks or part.cards * part.ranks_per_card
    return found


def _priced(part: Part, of: FabricPart) -> FabricPart:
    """The links as the plan's step times have them."""
    tiers = zip(of.tiers, _charged(part, of), strict=True)
    return replace(of, tiers=tuple(replace(tier, bytes_per_s=tier.bytes_per_s / charged, blocking_ratio=1.0) for tier, charged in tiers))  # fmt: skip


def _charged(part: Part, of: FabricPart) -> list[float]:
    """Blocking ratios in the widths that steps are priced at, by tier; leaves and a spine are priced as the one network."""
    tiers = () if part.place is None else part.place.rank.tiers
    known = [1.0 if tier.blocking_ratio is None else float(tier.blocking_ratio.value) for tier in tiers]  # fmt: skip
    return [known[min(number, len(known) - 1)] for number in range(len(of.tiers))]


def _exchanges(
    service: Service, pool: Pool, part: Part, blocked: Sequence[int]
) -> Iterator[_Exchange]:
    """What the pool exchanges over tiers that block."""
    world = pool.layout.world
    if part.place is None or not any(inner < world for inner in blocked):
        return
    batch = batch_of(service, pool, _WAY_OUT)
    deployment = deployment_of(service, pool, part.place)
    for pattern in _FABRIC_PATTERNS:
        for (ranks, stride), share in _shares(deployment, pattern, batch).items():
            block = ranks * stride
            if not any(block - stride + 1 > inner or inner % block for inner in blocked):
                continue
            groups = tuple(tuple(range(base + first, base + block, stride)) for base in range(0, world, block) for first in range(stride))  # fmt: skip
            yield _Exchange(pattern=pattern, share=share, groups=groups)


def _shares(
    deployment: Deployment, pattern: Pattern, batch: tuple[float, float]
) -> dict[tuple[int, int], float]:
    """Of a full decode step, the transfer time of this pattern's exchanges, by ranks and how far apart they are."""
    ops = deployment.ops(sequences=batch[0], kv_tokens=batch[1])
    cost = deployment.cost(ops)
    found: dict[tuple[int, int], float] = {}
    for op, part in zip(ops, cost.parts, strict=True):
        if op.pattern != pattern or not isinstance(part.time, CollectiveTime):
            continue
        group = group_of(op, deployment.layout)
        if group[0] > 1:
            share = cost.stages * float(part.count * part.time.transfer_s) / float(cost.total_s)
            found[group] = found.get(group, 0.0) + share
    return found


def _clusters(placed: Placed, made: Fabric, exchange_R: Sequence[bool]) -> Iterator[list[int]]:
    """Replicas that exchange, those together that have ranks in one group of any tier."""
    ends: dict[int, int] = {}
    open_rows: list[int] = []
    rows = [row for row in np.argsort(placed.first_rank_R, kind="stable").tolist() if exchange_R[row]]  # fmt: skip
    for row in rows:
        part, first = int(placed.part_R[row]), int(placed.first_rank_R[row])
        last = first + int(placed.ranks_R[row]) - 1
        begin = int(made.wiring.row_P[part])
        tiers = range(begin, int(made.wiring.row_P[part + 1]))
        first_rank = placed.parts[part].first_rank
        sizes = {t: int(made.wiring.inner_T[t]) for t in tiers if made.wiring.groups_T[t]}
        low = {t: (first - first_rank) // size for t, size in sizes.items()}
        high = {t: (last - first_rank) // size for t, size in sizes.items()}
        # a way is taken only by a replica that leaves the group it leads out of
        crosses = {t for t in sizes if low[t] != high[t]}
        if not crosses:
            yield [row]
            continue
        if open_rows and not any(ends.get(t, -1) >= low[t] for t in crosses):
            yield open_rows
            open_rows, ends = [], {}
        open_rows.append(row)
        ends |= {t: max(high[t], ends.get(t, -1)) for t in crosses}
    if open_rows:
        yield open_rows


def _key(
    placed: Placed, made: Fabric, rows: Sequence[int], pools: Sequence[int]
) -> tuple[object, ...]:
    """The same for replicas that lie in the same way on links as wide."""
    w, part = made.wiring, int(placed.part_R[rows[0]])
    tiers = [t for t in range(int(w.row_P[part]), int(w.row_P[part + 1])) if w.groups_T[t]]
    widest = max((int(w.inner_T[t]) for t in tiers), default=1)
    begin = placed.parts[part].first_rank
    first_R = placed.first_rank_R[list(rows)] - begin
    base = int(first_R[0]) // widest * widest
    end = int(first_R[-1] + placed.ranks_R[rows[-1]])
    widths = b"".join(
        made.capacity_bytes_per_s_L[w.up_T[t] :][base // w.inner_T[t] : (end - 1) // w.inner_T[t] + 1].tobytes()
        for t in tiers
    )  # fmt: skip
    return (part, tuple(pools), tuple((first_R - base).tolist()), widths)


def _factors(
    made: Fabric, priced: Fabric, members: Sequence[tuple[int, Sequence[_Exchange]]]
) -> list[float]:
    """How many times as long the steps of each member take, while all exchange by one pattern after the other."""
    found = [1.0] * len(members)
    for pattern in _FABRIC_PATTERNS:
        whose: list[tuple[int, _Exchange]] = []
        collectives: list[Collective] = []
        for member, (first, exchanges) in enumerate(members):
            for one in exchanges:
                if one.pattern == pattern:
                    groups = [tuple(first + rank for rank in group) for group in one.groups]
                    collectives += [_collective(made, pattern, group) for group in groups]
                    whose += [(member, one)] * len(groups)
        worst: dict[tuple[int, int], tuple[float, _Exchange]] = {}
        for (member, one), times in zip(whose, contention(made, collectives, alone_on=priced) if collectives else (), strict=True):  # fmt: skip
            before = worst.get((member, id(one)), (1.0, one))[0]
            worst[member, id(one)] = (max(before, times), one)
        for (member, _), (factor, one) in worst.items():
            found[member] += one.share * (factor - 1)
    return found


def _collective(made: Fabric, pattern: Pattern, ranks: tuple[int, ...]) -> Collective:
    algorithm: Algorithm = "direct"
    if pattern != "all_to_all":
        counts = [np.unique(row, return_counts=True)[1] for row in made.instances(np.array(ranks))]
        algorithm = "hierarchical" if all(len(set(count.tolist())) == 1 for count in counts) else "ring"  # fmt: skip
    return Collective(pattern=pattern, algorithm=algorithm, ranks=ranks, buffer_bytes=BUFFER_BYTES)
