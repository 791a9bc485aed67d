"""What Polypod decides live: routing, admission, retries and health. Events in, actions out; no clock and no I/O."""

from polypod.policy.node import Policy
from polypod.policy.settings import PolicySettings, ServiceSettings

__all__ = ["Policy", "PolicySettings", "ServiceSettings"]
