"""The virtual clock: the same policy that serves live, driven over emulated engines as fast as this machine can."""

from polypod.simulate.fleet import scenario_of
from polypod.simulate.replay import Difference, replay
from polypod.simulate.run import Run, simulate
from polypod.simulate.scenario import Fault, Scenario
from polypod.simulate.trace import Arrival, poisson_trace, read_trace

__all__ = [
    "Arrival",
    "Difference",
    "Fault",
    "Run",
    "Scenario",
    "poisson_trace",
    "read_trace",
    "replay",
    "scenario_of",
    "simulate",
]
