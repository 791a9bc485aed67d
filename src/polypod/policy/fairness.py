"""Whose turn it is among tenants: each gets tokens in proportion to its weight while several wait.

Start-time fair queueing (Goyal, Vin, Cheng 1996), with tokens for its unit as in the virtual token counter (Sheng et al. 2024):

    start_tokens  = max(virtual time, the tenant's last end tag)
    end tag    = start_tokens + (input tokens + 2 * output tokens) / weight

The one with the least start tag goes first, and virtual time is the greatest start tag that was placed. So a tenant that floods the queue stands
behind its own requests, not before others', and one that was away gets no credit for it. Output is what is expected of the request until it ends;
the tenant is then charged, or paid back, the difference. A request that never ran costs nothing.
"""

from collections.abc import Mapping
from typing import Final

OUTPUT_COST: Final = 2.0
"""Tokens of a prompt that one of the answer counts for, as in the virtual token counter's own evaluation."""

MOST_TENANTS: Final = 10_000
"""Tenants that are remembered; those whose turn is long past are forgotten first."""


def cost_tokens(input_tokens: int, output_tokens: float) -> float:
    """What a request counts.

    >>> cost_tokens(100, 50)
    200.0
    """
    return input_tokens + OUTPUT_COST * output_tokens


class Shares:
    """The tenants of one model.

    >>> shares = Shares({})
    >>> [shares.charge("loud", 100.0) for _ in range(3)]
    [0.0, 100.0, 200.0]
    >>> shares.charge("quiet", 100.0)
    0.0
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._tags: dict[str, tuple[float, float]] = {}  # of its latest request: start, end
        self._virtual = 0.0

    def weigh(self, weights: Mapping[str, float]) -> None:
        """From here on tenants have these weights; what they were charged stays."""
        self._weights = weights

    def charge(self, tenant: str, tokens: float) -> float:
        """Take in a request of so many tokens; returns its start tag."""
        start = max(self._virtual, *self._tags.get(tenant, (0.0, 0.0)))
        self._tags[tenant] = (start, start + tokens / self._weights.get(tenant, 1.0))
        if len(self._tags) > MOST_TENANTS:
            self._forget()
        return start

    def placed(self, start_tokens: float) -> None:
        """A request with this tag has got its place."""
        self._virtual = max(self._virtual, start_tokens)

    def correct(self, tenant: str, tokens: float) -> None:
        """The tenant has used so many tokens more than it was charged for; fewer where negative."""
        if tenant in self._tags:
            start, end = self._tags[tenant]
            self._tags[tenant] = (start, end + tokens / self._weights.get(tenant, 1.0))

    def _forget(self) -> None:
        """Those at or behind virtual time start at it whether they are known or not."""
        kept = {tenant: tags for tenant, tags in self._tags.items() if max(tags) > self._virtual}
        for tenant in list(kept)[: max(len(kept) - MOST_TENANTS, 0)]:
            del kept[tenant]
        self._tags = kept
