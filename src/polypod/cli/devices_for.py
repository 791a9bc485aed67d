"""polypod devices --for PLAN: which cards of a plan are not on this machine, and the nearest plan for those that are."""

import json
from pathlib import Path

import msgspec

from polypod import units
from polypod.cli.asking import model_of
from polypod.errors import PolypodError
from polypod.plan.compose import Answer, plan_model
from polypod.plan.search import Question
from polypod.plan.spec import Plan, Service, Slo, read_plan
from polypod.report.plans import plan_json, plan_text
from polypod.report.tables import entry
from polypod.serve.devices.fleet import FoundFleet, Lack, found_fleet, lacking
from polypod.serve.devices.found import Inventory


def print_for(file: str, inventory: Inventory, *, as_json: bool) -> int:
    """0 where every card of the plan is here, else 1 with what is missing and the nearest plan. Raises `FileError` for a broken plan."""
    plan = read_plan(Path(file))
    lacks = lacking(plan.fleet, inventory)
    fleet = found_fleet(inventory)
    nearest, why_none = _nearest(plan, fleet) if lacks else (None, None)
    if as_json:
        found = {
            "lacking": [_lack(lack) for lack in lacks],
            "found": msgspec.to_builtins(fleet.sources),
            "nearest": plan_json(nearest, []) if nearest else None,
            "no_nearest": why_none,
        }
        print(json.dumps(found, indent=2))
        return 1 if lacks else 0
    if not lacks:
        print(f"every accelerator of {file} is on this machine")
        return 0
    for lack in lacks:
        print(entry("missing", _text(lack)))
    if nearest is None:
        print(entry("nearest", f"no plan: {why_none}"))
    else:
        print(f"\nthe nearest plan, for what is here:\n\n{plan_text(nearest, [])}")
    return 1


def _text(lack: Lack) -> str:
    parts = ", ".join(lack.parts)
    return f"{lack.wanted - lack.found} of {lack.wanted} {lack.accelerator} (part {parts} of the plan); {lack.found} found"


def _lack(lack: Lack) -> dict[str, object]:
    return {
        "accelerator": lack.accelerator,
        "parts": list(lack.parts),
        "wanted": lack.wanted,
        "found": lack.found,
    }


def _nearest(plan: Plan, fleet: FoundFleet) -> tuple[Answer | None, str | None]:
    """The plan's own demand on what was found, or why there is none."""
    if not fleet.sources:
        return None, "no device here has a catalog entry and works"
    if len(plan.services) > 1:
        names = " ".join(service.model for service in plan.services)
        return (
            None,
            f"the plan is of several models; ask `polypod plan {names} --on found` with what each must carry",
        )
    service = plan.services[0]
    if service.traffic is None:
        return (
            None,
            f"the plan does not say its traffic; ask `polypod plan {service.model} --on found` with --input and --output",
        )
    slo = service.slo or Slo()
    try:
        return plan_model(_question(service, slo), fleet.sources, slo), None
    except PolypodError as error:
        return None, str(error)


def _question(service: Service, slo: Slo) -> Question:
    traffic = service.traffic
    assert traffic is not None
    return Question(
        model=model_of(service.model),
        input_tokens=traffic.input,
        output_tokens=traffic.output,
        ttft_s=slo.ttft_s,
        tpot_s=slo.tpot_s,
        percentile=slo.percentile,
        rate_per_s=None if traffic.rate is None else units.parse(traffic.rate, "per_s"),
    )
