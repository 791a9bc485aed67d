"""Links between ghosts: how long a cache is on its way, beside others.

    seconds = latency_s + bytes / min(share of the source's link, share of the target's)
    share   = link / max(caches on it, this one included, data-parallel ranks)

as `policy.pairing` predicts it. A share stays as it was when the cache left: caches that join later slow none that are on their way, which
`polypod simulate` does count.
"""

import asyncio
from collections import Counter

from polypod.policy.events import ReplicaUp


class Links:
    """How many caches are on their way at each replica."""

    def __init__(self) -> None:
        self._moving: Counter[str] = Counter()

    def way_s(self, source: ReplicaUp, target: ReplicaUp, kv_tokens: int) -> float:
        """Seconds for one cache more, from now on.

        Both ends' links are taken as `ReplicaUp` tells them; one of 0 bytes/s lets everything through at once.
        """
        shares = [
            up.kv_link_bytes_per_s / max(self._moving[up.replica] + 1, up.step_time.data_ranks)
            for up in (source, target)
            if up.kv_link_bytes_per_s
        ]
        latency_s = max(source.kv_link_latency_s, target.kv_link_latency_s)
        return latency_s + (kv_tokens * source.kv_token_bytes / min(shares) if shares else 0.0)

    async def move(self, source: ReplicaUp, target: ReplicaUp, kv_tokens: int) -> float:
        """Let a cache take its time; return it."""
        seconds = self.way_s(source, target, kv_tokens)
        ends = (source.replica, target.replica)
        self._moving.update(ends)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._moving.subtract(ends)
        return seconds
