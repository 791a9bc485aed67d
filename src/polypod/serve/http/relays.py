"""Streams that go from an engine's socket to a client's without a word of Python, while they are nothing but whole events (`native/relay.c`).

Waking up, an interpreter has lost its caches to the kernel: passing one event on takes it longer than the two system calls. What a relay cannot pass
on it hands back, and Python goes on, so that nothing is decided in two places. Without a C compiler or Python's headers all goes through Python.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from polypod.serve.http import native


class Relay(Protocol):
    """One stream on its way."""

    events: int
    """That passed."""
    last: list[bytes]
    """The last three parts that passed, oldest first."""
    last_s: float
    """When the last one came, on the monotonic clock; 0 if none did."""

    def stop(self) -> None:
        """Pass nothing on any more."""


OnRelayed = Callable[[Relay, bytes], None]
"""What passed, and what of it its client has not taken yet."""
OnStop = Callable[[bytes | None, bytes], None]


class Relays:
    """Those of one event loop. `close` it before the loop ends."""

    def __init__(self) -> None:
        self._poller: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, engine: asyncio.BaseTransport, client: int, on_stop: OnStop) -> Relay | None:
        """Pass on what comes on the transport `engine` to the socket `client`; None where that cannot be done.

        `on_stop` gets what was read and not passed on, None where memory ran out and it is lost, and what was passed on and not taken.
        """
        if engine.get_extra_info("sslcontext") is not None:
            return None
        try:
            poller = self._poller or self._started()
            if poller is None:
                return None
            relay: Relay = poller.relay(engine.get_extra_info("socket").fileno(), client, on_stop)
        except OSError:  # no descriptor is left, or one of them is closed
            return None
        return relay

    def close(self) -> None:
        """End them all."""
        if self._poller is not None and self._loop is not None:
            self._loop.remove_reader(self._poller.fileno())
            self._poller.close()
            self._poller = None

    def _started(self) -> Any:  # noqa: ANN401 - of a module that is compiled
        compiled = native.module("relay")
        if compiled is not None:
            poller, loop = compiled.Poller(), asyncio.get_running_loop()
            loop.add_reader(poller.fileno(), poller)
            self._poller, self._loop = poller, loop
        return self._poller
