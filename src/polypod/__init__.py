"""Polypod: one pod out of many chips.

The public surface is what `__all__` names. Each name is imported when it is first used, so that `import polypod` costs
nothing that is not needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from polypod.catalog.load import load_accelerator, load_model, load_pod
    from polypod.cost.deployment import Deployment, native_precision
    from polypod.cost.steptime import StepTime
    from polypod.errors import PolypodError
    from polypod.plan.compose import plan_model
    from polypod.plan.place import island, parse_fleet
    from polypod.plan.search import Question
    from polypod.plan.spec import Plan, read_plan, write_plan
    from polypod.policy.node import Policy
    from polypod.report.runs import summarise
    from polypod.simulate.fleet import scenario_of
    from polypod.simulate.replay import replay
    from polypod.simulate.run import play
    from polypod.simulate.trace import arrivals
    from polypod.workload.config import read_model
    from polypod.workload.layout import Layout
    from polypod.workload.traffic import poisson, read_trace

__all__ = [
    "Deployment",
    "Layout",
    "Plan",
    "Policy",
    "PolypodError",
    "Question",
    "StepTime",
    "arrivals",
    "island",
    "load_accelerator",
    "load_model",
    "load_pod",
    "native_precision",
    "parse_fleet",
    "plan_model",
    "play",
    "poisson",
    "read_model",
    "read_plan",
    "read_trace",
    "replay",
    "scenario_of",
    "summarise",
    "write_plan",
]

_HOMES = {
    "catalog.load": ("load_accelerator", "load_model", "load_pod"),
    "cost.deployment": ("Deployment", "native_precision"),
    "cost.steptime": ("StepTime",),
    "errors": ("PolypodError",),
    "plan.compose": ("plan_model",),
    "plan.place": ("island", "parse_fleet"),
    "plan.search": ("Question",),
    "plan.spec": ("Plan", "read_plan", "write_plan"),
    "policy.node": ("Policy",),
    "report.runs": ("summarise",),
    "simulate.fleet": ("scenario_of",),
    "simulate.replay": ("replay",),
    "simulate.run": ("play",),
    "simulate.trace": ("arrivals",),
    "workload.config": ("read_model",),
    "workload.layout": ("Layout",),
    "workload.traffic": ("poisson", "read_trace"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (a module's attributes are of any type)
    if name not in _HOME_OF:
        msg = f"module 'polypod' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"polypod.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
