"""Which requests kept the limits of their model."""

from collections.abc import Mapping

import msgspec
import numpy as np

from polypod.plan.spec import Slo
from polypod.record import Header
from polypod.report.outcomes import Bools, Outcomes


def plan_slos(header: Header | None) -> dict[str, Slo]:
    """The SLOs of the plan that a record names, by model."""
    services = (header.plan or {}).get("services", []) if header is not None else []
    return {
        service["model"]: msgspec.convert(service["slo"], Slo)
        for service in services
        if service.get("slo")
    }


def inside(outcomes: Outcomes, slos: Mapping[str, Slo]) -> Bools:
    """Whether each request [N] finished inside every limit that its model has; a model without an SLO has none."""
    kept = outcomes.finished.copy()
    for index, model in enumerate(outcomes.models):
        slo = slos.get(model, Slo())
        for limit_s, values_s in ((slo.ttft_s, outcomes.ttft_s), (slo.tpot_s, outcomes.tpot_s)):
            if limit_s is not None:
                kept &= (outcomes.requests.model != index) | ~(values_s > limit_s)
    return np.asarray(kept)
