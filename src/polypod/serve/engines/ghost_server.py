"""The process of some ghosts: an OpenAI-compatible server on a unix socket, or on a port of loopback to try it by hand.

    GET  /health, /metrics                    of all its ghosts
    GET  /news                                a line of JSON for each that dies or lives again, as long as the connection lasts
    GET  /r/NAME/health, /r/NAME/metrics, /r/NAME/v1/models
    POST /r/NAME/v1/chat/completions          one phase of a request with {"made_up": {"phase": "prefill", "cache": "7"}}, or "decode"
    POST /r/NAME/release                      {"cache": "7"}: what its prompt left is not needed any more
    POST /ghosts                              {"up": {...}, "mean_output_tokens": 256}: one more; one that lives here already stays as it is
    POST /r/NAME/leave                        it lives here no more
    POST /r/NAME/fault                        {"what": "die", "for_s": 5}: also hang, slow (with a factor), flap, heal

All but /health want the secret. One that dies breaks its connections and refuses others until it lives again; one that hangs takes requests and
answers none, and is dead for a moment at the end; one that flaps breaks every other new request.
"""

import argparse
import asyncio
import hmac
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
import uvloop

from polypod.policy.events import ReplicaUp
from polypod.serve.engines.chat import refused
from polypod.serve.engines.child import Forgiving, die_with_parent
from polypod.serve.engines.ghost import GhostFile
from polypod.serve.engines.ghost_answer import Telling, read_asked
from polypod.serve.engines.ghost_http import JSON, Connection, Request
from polypod.serve.engines.ghost_metrics import metrics_text
from polypod.serve.engines.ghost_replica import GhostReplica
from polypod.serve.engines.spec import PARENT_VARIABLE, SECRET_VARIABLE
from polypod.serve.wire import Problem, ProblemError, models_body

_PLAIN: Final = b"text/plain; version=0.0.4"
_FULL: Final = Problem(
    status=503,
    code="engine_full",
    message="as many requests wait here as may run",
    retry_after_s=1.0,
)


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What shall go wrong with one ghost. Without `for_s` it stays so until it is healed."""

    what: Literal["die", "hang", "slow", "flap", "heal"]
    for_s: float | None = None
    factor: float = 4.0  # of a slow one's step times


class Cache(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cache of a prompt, by the name it was asked under."""

    cache: str


class NewGhost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One more, and how long the answers of its model are that nothing cuts."""

    up: ReplicaUp
    mean_output_tokens: float


class News(msgspec.Struct, frozen=True, kw_only=True):
    """A ghost died, or lives again."""

    replica: str
    state: Literal["up", "down"]
    reason: str = ""


class GhostServer:
    """The ghosts of a file, and who asks them."""

    def __init__(self, file: GhostFile, secret: str | None) -> None:
        self.ghosts = {up.replica: GhostReplica(up, n) for n, up in enumerate(file.ghosts)}
        self._most = len(self.ghosts)  # that there ever were
        self._means = dict(file.mean_output_tokens)
        self._wanted = f"Bearer {secret}".encode() if secret else None
        self._loop = asyncio.get_running_loop()
        self._created_unix_s = int(time.time())
        self._listeners: set[Connection] = set()
        self._ends: dict[str, asyncio.TimerHandle] = {}  # of faults
        self._kept: dict[tuple[str, str], int] = {}  # tickets, by ghost and name of a cache
        self._flapping: dict[str, bool] = {}  # whether the next request is broken
        self._pages: dict[tuple[str, str], Callable[[Connection, bytes], None]] = {
            ("GET", "/metrics"): self._all_metrics,
            ("GET", "/news"): self._news,
            ("POST", "/ghosts"): self._add,
        }
        self._of_ghost: dict[tuple[str, str], Callable[[Connection, GhostReplica, bytes], None]] = {
            ("GET", "health"): self._health,
            ("GET", "metrics"): self._metrics,
            ("GET", "v1/models"): self._models,
            ("POST", "v1/chat/completions"): self._chat,
            ("POST", "fault"): self._fault,
            ("POST", "release"): self._release,
            ("POST", "leave"): self._leave,
        }

    def connection(self) -> Connection:
        """For `create_server`."""
        return Connection(self.answer)

    def answer(self, connection: Connection, request: Request) -> None:
        """Answer one request, now or over time."""
        try:
            self._route(connection, request)
        except ProblemError as error:
            problem = error.problem
            extra = b"".join(b"%s: %s\r\n" % header for header in problem.headers)
            connection.whole(problem.status, JSON, problem.body, extra)

    def strike(self, name: str, fault: Fault) -> None:
        """Let something go wrong with a ghost, in place of what did before."""
        ghost = self.ghosts[name]
        before = self._ends.pop(name, None)
        if before is not None:
            before.cancel()
        if fault.what == "heal":
            self._heal(name)
            return
        if fault.what == "die":
            ghost.die()
            self._forget_caches(name)
            self._tell(News(replica=name, state="down", reason="it died of a fault"))
        elif fault.what == "hang":
            ghost.hang()
        elif fault.what == "slow":
            ghost.slow(fault.factor)
        else:
            self._flapping[name] = True
        if fault.for_s is not None:
            self._ends[name] = self._loop.call_later(fault.for_s, self._heal, name)

    def _heal(self, name: str) -> None:
        ghost = self.ghosts[name]
        self._ends.pop(name, None)
        self._flapping.pop(name, None)
        if ghost.state == "up":
            ghost.slow(1.0)
            return
        if ghost.state == "hung":
            self._tell(News(replica=name, state="down", reason="it hung"))
        ghost.revive()
        self._forget_caches(name)
        self._tell(News(replica=name, state="up"))

    def _forget_caches(self, name: str) -> None:
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] != name}

    def _tell(self, news: News) -> None:
        line = msgspec.json.encode(news) + b"\n"
        for listener in self._listeners:
            listener.part(line)

    # ---- routes

    def _route(self, connection: Connection, request: Request) -> None:
        if request.path == "/health":
            connection.whole(200, JSON, b'{"status":"ok"}')
            return
        self._check_secret(request)
        page = self._pages.get((request.method, request.path))
        if page is not None:
            page(connection, request.body)
            return
        _, _, rest = request.path.partition("/r/")
        name, _, what = rest.partition("/")
        ghost, route = self.ghosts.get(name), self._of_ghost.get((request.method, what))
        if ghost is None or route is None:
            msg = f"no {request.method} {request.path} here; ghosts are at /r/NAME/v1/chat/completions"
            raise refused(msg, code="not_found", status=404)
        route(connection, ghost, request.body)

    def _check_secret(self, request: Request) -> None:
        given = request.headers.get(b"authorization", b"")
        if self._wanted is not None and not hmac.compare_digest(given, self._wanted):
            msg = "wrong or missing bearer token"
            raise refused(msg, code="invalid_api_key", status=401)

    def _add(self, connection: Connection, body: bytes) -> None:
        try:
            new = msgspec.json.decode(body, type=NewGhost)
        except msgspec.DecodeError as error:
            raise refused(str(error), code="invalid_ghost") from error
        self._means[new.up.model] = new.mean_output_tokens
        if new.up.replica not in self.ghosts:
            self.ghosts[new.up.replica] = GhostReplica(new.up, self._most)
            self._most += 1
        connection.whole(200, JSON, b"{}")

    def _leave(self, connection: Connection, ghost: GhostReplica, _: bytes) -> None:
        """What it still has breaks off."""
        name = ghost.up.replica
        end = self._ends.pop(name, None)
        if end is not None:
            end.cancel()
        if ghost.state != "down":
            ghost.die()
        self._forget_caches(name)
        self._flapping.pop(name, None)
        del self.ghosts[name]
        connection.whole(200, JSON, b"{}")

    def _all_metrics(self, connection: Connection, _: bytes) -> None:
        connection.whole(200, _PLAIN, metrics_text(self.ghosts.values()))

    def _news(self, connection: Connection, _: bytes) -> None:
        """All that are down, and from then on every change."""
        down = [
            msgspec.json.encode(News(replica=name, state="down", reason="it is down")) + b"\n"
            for name, ghost in self.ghosts.items()
            if ghost.state == "down"
        ]
        connection.begin(b"application/x-ndjson", b"".join(down) or b"\n")
        self._listeners.add(connection)
        connection.when_gone = lambda: self._listeners.discard(connection)

    def _health(self, connection: Connection, ghost: GhostReplica, _: bytes) -> None:
        if self._is_broken(connection, ghost) or ghost.state == "hung":
            return  # who asks is left waiting, or cut off
        connection.whole(200, JSON, b'{"status":"ok"}')

    def _metrics(self, connection: Connection, ghost: GhostReplica, _: bytes) -> None:
        connection.whole(200, _PLAIN, metrics_text([ghost]))

    def _models(self, connection: Connection, ghost: GhostReplica, _: bytes) -> None:
        connection.whole(200, JSON, models_body([ghost.up.model], self._created_unix_s))

    def _fault(self, connection: Connection, ghost: GhostReplica, body: bytes) -> None:
        try:
            fault = msgspec.json.decode(body, type=Fault)
        except msgspec.DecodeError as error:
            raise refused(str(error), code="invalid_fault") from error
        self.strike(ghost.up.replica, fault)
        connection.whole(200, JSON, b"{}")

    def _chat(self, connection: Connection, ghost: GhostReplica, body: bytes) -> None:
        if self._is_broken(connection, ghost):
            return
        model = ghost.up.model
        asked = read_asked(body, self._means.get(model, 256.0))
        if asked.chat.model != model:
            msg = f"this engine serves {model!r}, not {asked.chat.model!r}"
            raise refused(msg, code="model_not_found", param="model", status=404)
        tokens, ending = asked.output_tokens(ghost.longest_tokens)
        if ghost.is_full:
            ghost.counts.refused += 1
            raise ProblemError(_FULL)
        telling = Telling(connection, asked, tokens, ending)
        ticket = ghost.submit(
            telling, prompt_tokens=asked.prompt_tokens, output_tokens=tokens, phase=asked.phase
        )
        if asked.phase == "prefill":
            self._kept[ghost.up.replica, asked.cache] = ticket

        def gone() -> None:
            ghost.cancel(ticket)

        telling.cancel = connection.when_gone = gone

    def _release(self, connection: Connection, ghost: GhostReplica, body: bytes) -> None:
        try:
            cache = msgspec.json.decode(body, type=Cache).cache
        except msgspec.DecodeError as error:
            raise refused(str(error), code="invalid_cache") from error
        ticket = self._kept.pop((ghost.up.replica, cache), None)
        if ticket is not None:
            ghost.release(ticket)
        connection.whole(200, JSON, b"{}")

    def _is_broken(self, connection: Connection, ghost: GhostReplica) -> bool:
        """Break the connection of a dead ghost, and every other one of a flapping ghost."""
        name = ghost.up.replica
        breaks = ghost.state == "down"
        if name in self._flapping:
            breaks = breaks or self._flapping[name]
            self._flapping[name] = not self._flapping[name]
        if breaks:
            connection.abort()
        return breaks


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ghosts", required=True, type=Path, metavar="FILE")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path)
    where.add_argument("--port", type=int, help="on loopback")
    options = parser.parse_args(argv)
    secret = os.environ.pop(SECRET_VARIABLE, None)
    sys.stdout, sys.stderr = Forgiving(sys.stdout), Forgiving(sys.stderr)
    if PARENT_VARIABLE in os.environ:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    file = msgspec.json.decode(options.ghosts.read_bytes(), type=GhostFile)
    uvloop.run(_serve(file, secret, options.socket, options.port))


async def _serve(
    file: GhostFile, secret: str | None, socket: Path | None, port: int | None
) -> None:
    ghosts, loop = GhostServer(file, secret), asyncio.get_running_loop()
    if socket is not None:
        server = await loop.create_unix_server(ghosts.connection, str(socket), backlog=4096)
    else:
        server = await loop.create_server(ghosts.connection, "127.0.0.1", port, backlog=4096)
    count = len(file.ghosts)
    print(f"{count} ghosts, whose answers are made up, on {socket or port}", flush=True)  # noqa: T201 - the child's log
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    main()
