"""What can be said of a simulation before it is played: requests that nothing holds, and more of them than the plan carries."""

import numpy as np

from polypod import units
from polypod.cli.asking import note
from polypod.errors import InputError
from polypod.simulate.capacity import Lengths, capacity_per_s, held_tokens
from polypod.simulate.scenario import Scenario
from polypod.workload.traffic import Trace
from polypod.workload.traffic_rows import Counts


def check_traffic(scenario: Scenario, first: Trace, expected_s: float) -> None:
    """Look at the first requests; a note where they are too long or too many.

    Raises `InputError` where no replica of a model holds even its shortest request.
    """
    span_s = max(float(first.arrival_s[-1] - first.arrival_s[0]), 1e-9)
    is_all = expected_s <= span_s * 1.01
    for number, name in enumerate(first.models):
        rows = np.flatnonzero(first.model == number)
        model = name or scenario.settings.services[0].model
        if len(rows) > 1:
            _check_lengths(scenario, model, first.input_tokens[rows])
            lengths = Lengths(
                rate_per_s=len(rows) / span_s,
                input_tokens=float(first.input_tokens[rows].mean()),
                output_tokens=float(first.output_tokens[rows].mean()),
            )
            _check_rate(scenario, model, lengths, "" if is_all else f" at first, over {units.show(span_s, 's')}")  # fmt: skip


def _check_lengths(scenario: Scenario, model: str, input_tokens: Counts) -> None:
    most = held_tokens(scenario.replicas, model)
    if not most:
        return  # no replica of it: every request is told so
    shortest, too_long = int(input_tokens.min()), int((input_tokens >= most).sum())
    if shortest >= most:
        msg = f"no replica of {model} holds more than {most:,} tokens, and its shortest prompt has {shortest:,}; plan a layout with room for longer ones, or play shorter requests"
        raise InputError(msg)
    if too_long:
        note(f"{too_long:,} of the first {len(input_tokens):,} prompts of {model} are longer than the {most:,} tokens that a replica holds, and are refused")  # fmt: skip


def _check_rate(scenario: Scenario, model: str, lengths: Lengths, when: str) -> None:
    carried_per_s = capacity_per_s(scenario.replicas, model, lengths)
    if 0 < carried_per_s < lengths.rate_per_s:
        asked, carried = (units.significant(rate) for rate in (lengths.rate_per_s, carried_per_s))
        note(
            f"{asked} requests/s come for {model}{when}, and its replicas carry about {carried} of these lengths: queues fill, and what waits longer than "
            f"{units.show(scenario.settings.queue_wait_s, 's')} is rejected"
        )
