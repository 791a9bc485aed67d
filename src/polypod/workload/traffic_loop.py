"""Users who send the next request when the last one ended: a fixed number in flight, as most benchmarks drive a server.

What is asked does not depend on who asks: the k-th request that is sent has the k-th lengths, so a driver needs a counter and no more.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from polypod.errors import InputError
from polypod.workload.traffic_make import Synthetic, made
from polypod.workload.traffic_rows import Floats, Trace, join


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClosedLoop:
    """`users` who each wait for an answer, think, and ask again.

    `trace` is the requests in the order in which they are sent (its `arrival_s` are 0 and mean nothing); `think_s`, as long, is the time from the end of the
    request before to this one. After `duration_s` nothing new is sent.

    A driver keeps `sent`, how many it has sent so far. At time 0 it sends the first `num_first` of them, and whenever a request ends, whatever
    the end, it asks `next_s(sent, ended_s)`: when request number `sent` (from 0) goes out, or None where that user is done.
    """

    users: int
    trace: Trace
    think_s: Floats
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if self.users < 1:
            msg = f"users={self.users} send nothing; give 1 or more"
            raise InputError(msg)
        if len(self.think_s) != len(self.trace):
            msg = (
                f"{len(self.think_s)} times to think for {len(self.trace)} requests; give one each"
            )
            raise InputError(msg)

    @property
    def sha256(self) -> str:
        """The same for the same users and requests."""
        trace = self.trace
        arrays = (self.think_s, trace.input_tokens, trace.output_tokens, trace.model, trace.block_hashes)  # fmt: skip
        found = hashlib.sha256(repr((self.users, self.duration_s, trace.models)).encode())
        for array in arrays:
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    @property
    def num_first(self) -> int:
        """Requests that go out at time 0."""
        return min(self.users, len(self.trace))

    def next_s(self, sent: int, ended_s: float) -> float | None:
        """When the next request goes out after one that ended then; None: no more."""
        if sent >= len(self.trace):
            return None
        at_s = ended_s + float(self.think_s[sent])
        return None if self.duration_s is not None and at_s >= self.duration_s else at_s


def closed_loop(users: int, synthetic: Synthetic, mean_think_s: float = 0.0) -> ClosedLoop:
    """As many requests as `synthetic` says, with its lengths and services; its arrivals do not count. Thinking is exponential.

    Raises `InputError` where the number of requests is not said, or they are turns of conversations.
    """
    if synthetic.requests is None:
        msg = f"how many requests {users} users send depends on how fast they are answered; say at most how many with requests"
        raise InputError(msg)
    if synthetic.turns is not None:
        msg = "a closed loop has no conversations: a user sends whatever is next; leave out the turns, or the loop"
        raise InputError(msg)
    if not 0 <= mean_think_s < float("inf"):
        msg = f"mean_think_s={mean_think_s:g} is no time to think; give 0 or more"
        raise InputError(msg)
    rows = join(list(made(replace(synthetic, duration_s=None), synthetic.requests)))
    rng = np.random.default_rng([synthetic.seed, 7])
    trace = replace(
        rows,
        name=f"closed loop of {users}, seed {synthetic.seed}",
        arrival_s=np.zeros(len(rows)),
    )
    return ClosedLoop(
        users=users,
        trace=trace,
        think_s=rng.exponential(mean_think_s, len(rows)),
        duration_s=synthetic.duration_s,
    )
