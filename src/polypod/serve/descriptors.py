"""How many descriptors this process may open, and how many streams at once they are enough for."""

import resource
from typing import Final

from polypod.serve.http.room import SPARE_CONNECTIONS

OF_STREAM: Final = 2  # the client's connection, and the engine's
OF_ENGINE: Final = 6  # its process, its log while it starts, and who asks whether it is well
OWN: Final = 64  # the loop, the record, keys, control
ENDLESS: Final = 1 << 20


def raise_limit() -> int:
    """Let this process open as many as it may raise its own limit to; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return ENDLESS if hard == resource.RLIM_INFINITY else min(hard, ENDLESS)


def streams_within(limit: int, engines: int) -> int:
    """How many streams at once so many descriptors are enough for, those of clients that are turned away left aside.

    >>> streams_within(20_000, engines=8)
    9912
    """
    kept = OWN + OF_ENGINE * engines + SPARE_CONNECTIONS
    return max((limit - kept) // OF_STREAM, 1)


def shortage(limit: int, engines: int, sequences: int) -> str:
    """What to say where the plan has room for more sequences than there are descriptors for; empty where it has not.

    >>> shortage(1024, engines=2, sequences=400)
    ''
    >>> shortage(1024, engines=2, sequences=512)
    'this process may open 1,024 files, enough for 442 streams at once, and the plan has room for 512: raise the hard limit to 1,164 (ulimit -Hn, LimitNOFILE=)'
    """
    enough_for = streams_within(limit, engines)
    if sequences <= enough_for:
        return ""
    wanted = limit + OF_STREAM * (sequences - enough_for)
    return (
        f"this process may open {limit:,} files, enough for {enough_for:,} streams at once, and the plan has room for {sequences:,}: "
        f"raise the hard limit to {wanted:,} (ulimit -Hn, LimitNOFILE=)"
    )
