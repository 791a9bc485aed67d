"""Which requests kept the limits of their model."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from polypod.plan.spec import Slo
from polypod.report.outcomes import Bools, Outcomes


def plan_slos(plans: Iterable[Mapping[str, Any]]) -> dict[str, Slo]:
    """The SLOs of the plans that a record names, by model: of several those of the last that has the model."""
    found: dict[str, Slo] = {}
    for service in (service for plan in plans for service in plan.get("services", [])):
        found.pop(service["model"], None)
        if service.get("slo"):
            found[service["model"]] = msgspec.convert(service["slo"], Slo)
    return found


def inside(outcomes: Outcomes, slos: Mapping[str, Slo]) -> Bools:
    """Whether each request [N] finished inside every limit that its model has; a model without an SLO has none."""
    kept = outcomes.finished.copy()
    for index, model in enumerate(outcomes.models):
        slo = slos.get(model, Slo())
        for limit_s, values_s in ((slo.ttft_s, outcomes.ttft_s), (slo.tpot_s, outcomes.tpot_s)):
            if limit_s is not None:
                kept &= (outcomes.requests.model != index) | ~(values_s > limit_s)
    return np.asarray(kept)
