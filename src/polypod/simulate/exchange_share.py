"""How much of a replica's step passes over one kind of link: what a slow link slows down.

    step factor = 1 + share * (factor - 1)        share = transfer_s of the collectives that leave the component / step_s

at a full decode batch of the traffic's mean context: the transfer alone, since latency does not grow with a narrower link. Of a collective
over several tiers all of its transfer counts, so the factor is at most this. It is the slowest link that a synchronous replica waits for.
"""

from polypod.cost.collective import CollectiveTime
from polypod.cost.deployment import Deployment
from polypod.cost.step import group_of
from polypod.errors import InputError
from polypod.plan.place import Island
from polypod.plan.predict import service_model
from polypod.plan.spec import Plan, Pool, Service
from polypod.simulate.failure_rates import Of
from polypod.simulate.placed import Part

_WAY_OUT = "say `speed`, by what its steps take longer, in the fault file"


def pool_share(plan: Plan, part: Part, pool: int, of: Of) -> float:
    """Of one pool, counted through the plan's services. Raises `InputError` where the cost model cannot say: a host, no traffic."""
    service, spec = [(service, spec) for service in plan.services for spec in service.pools][pool]
    name = spec.name or f"pool on {spec.on!r}"
    if part.place is None:
        msg = f"{name} runs on a host, whose links the cost model does not know; {_WAY_OUT}"
        raise InputError(msg)
    ranks = {"link card": part.ranks_per_card, "link node": part.node_cards * part.ranks_per_card, "link rack": part.rack_cards * part.ranks_per_card}[of]  # fmt: skip
    batch = batch_of(service, spec, _WAY_OUT)
    return exchange_share(deployment_of(service, spec, part.place), ranks, *batch)


def deployment_of(service: Service, spec: Pool, place: Island) -> Deployment:
    return Deployment(model=service_model(service), layout=spec.layout, precision=spec.precision, rank=place.rank)  # fmt: skip


def batch_of(service: Service, spec: Pool, way_out: str) -> tuple[float, float]:
    """Sequences of one data-parallel rank of a full batch, and the tokens of their caches. Raises `InputError` without traffic."""
    if service.traffic is None:
        name = spec.name or f"pool on {spec.on!r}"
        msg = f"{service.model} has no traffic, so nothing says how much of a step of {name} is exchange; add `traffic` to the plan, or {way_out}"
        raise InputError(msg)
    sequences = max(1.0, spec.max_sequences / spec.layout.dp)
    return sequences, sequences * (service.traffic.input + service.traffic.output / 2)


def exchange_share(
    deployment: Deployment, within_ranks: int, sequences: float, kv_tokens: float
) -> float:
    """Of a decode step: the transfer time of collectives that `within_ranks` neighbouring ranks do not hold, over the step's."""
    ops = deployment.ops(sequences=sequences, kv_tokens=kv_tokens)
    cost = deployment.cost(ops)
    crossing = 0.0
    for op, part in zip(ops, cost.parts, strict=True):
        if op.pattern is None or not isinstance(part.time, CollectiveTime):
            continue
        ranks, stride = group_of(op, deployment.layout)
        if (ranks - 1) * stride + 1 > within_ranks:
            crossing += float(part.count * part.time.transfer_s)
    return cost.stages * crossing / float(cost.total_s)
