"""What an inference engine does inside: continuous batching, emulated once and used everywhere."""

from polypod.engine.replica import EngineLimits, Progress, ReplicaEmulation

__all__ = ["EngineLimits", "Progress", "ReplicaEmulation"]
