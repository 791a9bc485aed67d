"""Where the node listens, and its orderly end.

`bind` comes first, before engines are started: a port in use is found in a millisecond instead of after a minute.
"""

import asyncio
import errno
import ipaddress
import socket
from typing import Final

from polypod.errors import InputError, PortInUseError, RunError
from polypod.serve.gateway import Gateway
from polypod.serve.holder import holder
from polypod.serve.http.front import Front, Waits

GRACE_S: Final = 5.0
_LAST_WORDS_S: Final = 2.0  # for clients to read how it ended
_BACKLOG: Final = 4096  # clients of a replica that died may all come again at once


def bind(host: str, port: int, *, has_keys: bool = False) -> socket.socket:
    """Take the port; connections wait in it until `serve`. Port 0 takes any free one.

    Raises `InputError` for a host that is no address, or not loopback where there are no keys, and `PortInUseError`.
    """
    address = "127.0.0.1" if host == "localhost" else host
    if not has_keys and not is_loopback(address):
        msg = (
            f"cannot listen on {host!r} without an API key: whoever reaches this machine could use it; make one with "
            "`polypod keys create`, or leave --host out to listen on loopback only (127.0.0.1)"
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
            who = holder(port) or "another process"
            msg = f"{who} listens on {host}:{port}; stop it, or choose a free port with --port"
            raise PortInUseError(msg) from error
        msg = f"cannot listen on {host}:{port}: {error.strerror}"
        raise RunError(msg) from error
    listener.settimeout(0.0)  # the event loop wants it so
    return listener


async def serve(
    gateway: Gateway,
    listener: socket.socket,
    stop: asyncio.Event,
    *,
    grace_s: float = GRACE_S,
    waits: Waits | None = None,
) -> None:
    """Answer until `stop` is set; then accept nothing new, wait for what is in flight, and end the rest in words.

    Cancelled, it ends everything at once, and raises as a cancelled coroutine does.
    """
    front = Front(gateway, waits)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(front.connect, sock=listener, backlog=_BACKLOG)
    try:
        await stop.wait()
        server.close()
        front.retire()
        if not await _emptied(front, grace_s):
            gateway.stop()
            await _emptied(front, _LAST_WORDS_S)
    finally:
        server.close()
        gateway.stop()
        front.abort()


async def _emptied(front: Front, within_s: float) -> bool:
    """Whether the last connection ended in that time."""
    try:
        async with asyncio.timeout(within_s):
            await front.emptied()
    except TimeoutError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches it. A name other than localhost is no address, and is not looked up."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
