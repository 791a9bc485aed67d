"""What arrives, one request at a time, as the simulator plays it."""

from dataclasses import dataclass

from polypod.errors import InputError
from polypod.policy.events import RequestArrived
from polypod.workload.traffic import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request to be. `output_tokens` is what the answer will have: the driver knows, the policy does not.

    `prefix_hashes` are of the prompt's blocks, first block first, each of its block and all before it; those past the prompt's full blocks are of blocks
    that the answer fills.
    """

    at_s: float
    model: str
    input_tokens: int
    output_tokens: int
    max_output_tokens: int | None = None  # what the client says
    priority: int = 0
    patience_s: float | None = None  # a client whose answer is not complete by then leaves
    tenant: str = ""
    session: int | None = None
    prefix_hashes: tuple[int, ...] = ()


def arrivals(trace: Trace, model: str = "") -> tuple[Arrival, ...]:
    """A trace's requests; those whose model it does not name are of `model`.

    Raises `InputError` where neither says the model.
    """
    models = [name or model for name in trace.models]
    if not all(models):
        msg = f"{trace.name} does not say of which model its requests are; say it"
        raise InputError(msg)
    sessions = [None if session < 0 else session for session in trace.session.tolist()]
    starts, hashes = trace.block_starts.tolist(), trace.block_hashes.tolist()
    rows = zip(
        trace.arrival_s.tolist(),
        trace.model.tolist(),
        trace.input_tokens.tolist(),
        trace.output_tokens.tolist(),
        trace.priority.tolist(),
        trace.max_output_tokens.tolist(),
        trace.tenant.tolist(),
        sessions,
        starts[:-1],
        starts[1:],
        strict=True,
    )
    return tuple(
        Arrival(
            at_s=at_s,
            model=models[of],
            input_tokens=asked,
            output_tokens=answered,
            max_output_tokens=most or None,
            priority=priority,
            tenant=trace.tenants[tenant],
            session=session,
            prefix_hashes=tuple(hashes[start:end]),
        )
        for at_s, of, asked, answered, priority, most, tenant, session, start, end in rows
    )


def one_arrival(trace: Trace, at: int, model: str) -> Arrival:
    """One request of a trace, of `model` where the trace does not name one."""
    session = int(trace.session[at])
    start, end = trace.block_starts[at : at + 2].tolist()
    return Arrival(
        at_s=float(trace.arrival_s[at]),
        model=trace.models[int(trace.model[at])] or model,
        input_tokens=int(trace.input_tokens[at]),
        output_tokens=int(trace.output_tokens[at]),
        max_output_tokens=int(trace.max_output_tokens[at]) or None,
        priority=int(trace.priority[at]),
        tenant=trace.tenants[int(trace.tenant[at])],
        session=None if session < 0 else session,
        prefix_hashes=tuple(trace.block_hashes[start:end].tolist()),
    )


def arrived(request: int, arrival: Arrival, block_tokens: int | None = None) -> RequestArrived:
    """The arrival as the policy hears of it, with the hashes of the prompt's full blocks where it is known how large they are."""
    blocks = 0 if block_tokens is None else arrival.input_tokens // block_tokens
    return RequestArrived(
        at_s=arrival.at_s,
        request=request,
        model=arrival.model,
        input_tokens=arrival.input_tokens,
        max_output_tokens=arrival.max_output_tokens,
        tenant=arrival.tenant,
        priority=arrival.priority,
        prefix_hashes=arrival.prefix_hashes[:blocks],
    )
