"""Loopback ports for engines that know no unix socket: a free one at each start, and never a word to a stranger's.

Between choosing a port and the engine's listening on it, another process may take it. So before anything is sent there, the secret least of
all, the kernel is asked whose it is: a socket of another user is not spoken to, and the start fails and is tried again with another port.
"""

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Final

from polypod.serve.engines.spec import Endpoint, Engine, EngineSpec

LOOPBACK: Final = "127.0.0.1"
_LISTENS: Final = "0A"  # the state of a listening socket in /proc/net/tcp


def endpoint_of(engine: Engine, spec: EngineSpec) -> Endpoint:
    """Where a process started so is reached."""
    where = (
        Endpoint(socket=spec.socket)
        if spec.port is None
        else Endpoint(host=LOOPBACK, port=spec.port)
    )
    return replace(where, secret=spec.secret, keeps_connections=engine.keeps_connections)


def with_own_port(spec: EngineSpec) -> EngineSpec:
    """The same with a port that is free now; as it is where it uses a socket."""
    return spec if spec.port is None else replace(spec, port=free_port())


def free_port() -> int:
    """One that nobody listens on now, nor on the two above it, which MindIE takes too."""
    while True:
        with socket.socket() as first:
            first.bind((LOOPBACK, 0))
            port: int = first.getsockname()[1]
            if port < 65_534 and _are_free(port + 1, port + 2):
                return port


def is_ours(endpoint: Endpoint) -> bool:
    """Whether a process of this user listens there; a unix socket is in a folder of this user's own."""
    if endpoint.port is None:
        return True
    return listening_user(endpoint.port) == os.getuid()


def listening_user(port: int) -> int | None:
    """The user whose process listens on a port of loopback or of every address; None where nobody does."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    for fields in (line.split() for line in lines):
        address, _, hexadecimal = fields[1].partition(":")
        if fields[3] == _LISTENS and int(hexadecimal, 16) == port and address in _LOCAL:
            return int(fields[7])
    return None


_LOCAL: Final = ("0100007F", "00000000", "7F000001")  # 127.0.0.1 in either byte order, and any


def _are_free(*ports: int) -> bool:
    for port in ports:
        with socket.socket() as one:
            try:
                one.bind((LOOPBACK, port))
            except OSError:
                return False
    return True
