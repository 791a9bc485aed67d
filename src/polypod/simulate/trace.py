"""What arrives, one request at a time, as the simulator plays it."""

from dataclasses import dataclass

from polypod.workload.traffic import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request to be. `output_tokens` is what the answer will have: the driver knows, the policy does not."""

    at_s: float
    model: str
    input_tokens: int
    output_tokens: int
    max_output_tokens: int | None = None  # what the client says
    priority: int = 0
    patience_s: float | None = None  # a client whose answer is not complete by then leaves
    prefix_hashes: tuple[
        int, ...
    ] = ()  # of its full blocks, each of all before it too; those past the prompt are of the answer


def arrivals(trace: Trace, model: str) -> tuple[Arrival, ...]:
    """A trace's requests, all of one model."""
    rows = zip(
        trace.arrival_s.tolist(),
        trace.input_tokens.tolist(),
        trace.output_tokens.tolist(),
        strict=True,
    )
    return tuple(
        Arrival(at_s=at_s, model=model, input_tokens=asked, output_tokens=answered)
        for at_s, asked, answered in rows
    )
