"""Where the node listens, and its orderly end.

`bind` comes first, before engines are started: a port in use is found in a millisecond instead of after a minute.
"""

import asyncio
import errno
import ipaddress
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from polypod.errors import InputError, PortInUseError, RunError
from polypod.serve.gateway import Gateway

GRACE_S: Final = 5.0
_KEEP_ALIVE_S: Final = 75  # longer than clients keep idle connections, so that they close first
_BACKLOG: Final = 2048


def bind(host: str, port: int) -> socket.socket:
    """Take the port; connections wait in it until `serve`. Port 0 takes any free one.

    Raises `InputError` for a host that is not loopback, and `PortInUseError`.
    """
    address = "127.0.0.1" if host == "localhost" else host
    if not _is_loopback(address):
        msg = (
            f"cannot listen on {host!r}: this node has no API keys yet, so it listens on loopback only (127.0.0.1, ::1, "
            "localhost); to reach it from elsewhere, put a reverse proxy with authentication in front, or an ssh tunnel"
        )
        raise InputError(msg)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            msg = f"another process listens on {host}:{port}; stop it, or choose a free port with --port"
            raise PortInUseError(msg) from error
        msg = f"cannot listen on {host}:{port}: {error.strerror}"
        raise RunError(msg) from error
    listener.settimeout(0.0)  # the event loop wants it so
    return listener


async def serve(
    gateway: Gateway, listener: socket.socket, stop: asyncio.Event, *, grace_s: float = GRACE_S
) -> None:
    """Answer until `stop` is set; then accept nothing new, wait for what is in flight, and end the rest in words."""
    config = uvicorn.Config(
        gateway,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(grace_s) + 2,
        backlog=_BACKLOG,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    server.should_exit = True
    done, _ = await asyncio.wait({serving}, timeout=grace_s)
    if not done:
        gateway.stop()
    await serving


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to whoever started us: there are engines to stop as well."""
        yield


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
