"""The virtual clock: the same policy that serves live, driven over emulated engines as fast as this machine can."""

from polypod.simulate.fleet import scenario_of
from polypod.simulate.replay import Difference, replay
from polypod.simulate.run import Run, play
from polypod.simulate.scenario import Fault, Scenario
from polypod.simulate.trace import Arrival, arrivals

__all__ = [
    "Arrival",
    "Difference",
    "Fault",
    "Run",
    "Scenario",
    "arrivals",
    "play",
    "replay",
    "scenario_of",
]
