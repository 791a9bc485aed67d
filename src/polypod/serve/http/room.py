"""What all clients together may take of a node: so many connections, and so many bytes of request bodies at a time.

Bytes are counted as they come, and until their request is answered: engines may have to be asked again. For a connection beyond the limit an idle one is closed (`idle`);
where none is idle, it is let in for one request, so that it can be told why, or be shown how the node is; one beyond those too is cut.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from polypod.serve.wire import Problem

SPARE_CONNECTIONS: Final = 64
_RETRY_AFTER_S: Final = 2.0

What = Literal["connections", "bodies"]


@dataclass(slots=True, kw_only=True)
class Room:
    """One node's. `tell` hears of everybody who is refused for want of it, `made_way` of every idle connection that is closed for another."""

    most_connections: int = 16_384
    most_body_bytes: int = 1 << 30
    tell: Callable[[What], None] = lambda _: None
    made_way: Callable[[], None] = lambda: None
    connections: int = 0
    body_bytes: int = 0

    @property
    def is_crowded(self) -> bool:
        """Whether the latest connection is one too many."""
        return self.connections > self.most_connections

    @property
    def is_overrun(self) -> bool:
        """Whether the latest connection is one too many even to be told so."""
        return self.connections > self.most_connections + SPARE_CONNECTIONS

    def has_room(self, more_bytes: int) -> bool:
        """Whether a body of so many bytes would fit now."""
        return self.body_bytes + more_bytes <= self.most_body_bytes

    def refuse(self, what: What) -> Problem:
        """Count one that is refused; the answer it gets."""
        self.tell(what)
        if what == "connections":
            message = f"this node has {self.most_connections:,} connections, its limit, and none that is idle; `polypod up --max-connections` sets it"
        else:
            message = f"this node holds {self.body_bytes:,} bytes of requests under way and takes {self.most_body_bytes:,}; `polypod up --max-bodies` sets it"
        return Problem(status=503, code="node_full", message=message, retry_after_s=_RETRY_AFTER_S)
