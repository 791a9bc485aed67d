"""The OpenAI endpoint of a node: what is answered at which path. `serve.http` carries it, `serve.listen` opens the door.

    GET  /v1/models, /v1/models/{id}     the services of the node, whether or not a replica is up
    POST /v1/chat/completions            streamed or not; the header `x-polypod-replica: NAME` pins a replica
    GET  /healthz                        200 when every service has a replica up, else 503; the replicas either way
    GET  /metrics                        Prometheus text

It listens on loopback and has no keys, so it guards against web pages: the Host header must be a loopback name (a page
that rebinds its own name cannot have that), and so must Origin where there is one. No CORS header is ever sent. The content
type of a request is not looked at, so that `curl -d` works; the body is JSON or it is refused.
"""

import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final
from urllib.parse import urlsplit

import msgspec

from polypod.serve import wire
from polypod.serve.attempt import Call, Desk
from polypod.serve.exchange import Exchange
from polypod.serve.http.request import Request, Sizes, too_large
from polypod.serve.metrics import CONTENT_TYPE
from polypod.serve.reply import JSON, Answer, Reply, refusal
from polypod.serve.wire import Problem, ProblemError

LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_STOPPING: Final = Problem(
    status=503, code="node_stopping", message="the node is stopping", retry_after_s=5.0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What may come in."""

    largest_body_bytes: int = 8 << 20
    hosts: frozenset[str] = LOOPBACK_HOSTS  # lower case, without port or brackets


class Gateway:
    """The application. `corrections` says, by replica and phase, how measured step times compare with predicted ones."""

    def __init__(
        self,
        models: Iterable[str],
        desk: Desk,
        door: Door | None = None,
        *,
        corrections: Callable[[], Mapping[tuple[str, str], float]] = dict,
    ) -> None:
        self._models = tuple(models)
        self._desk = desk
        self._door = door or Door()
        self._corrections = corrections
        self._created_unix_s = int(time.time())
        self._exchanges: set[Exchange] = set()
        self._is_stopping = False
        self._run = secrets.token_hex(4)
        self._ids = itertools.count(1)
        self._pages: dict[str, Callable[[], Answer]] = {
            "/v1/models": self._list_models,
            "/healthz": self._health,
            "/metrics": self._metrics,
        }

    @property
    def sizes(self) -> Sizes:
        """The most a request may have."""
        return Sizes(body_bytes=self._door.largest_body_bytes)

    def request_id(self, headers: Mapping[bytes, bytes]) -> bytes:
        """The client's own name for its request, or one that we make."""
        given = headers.get(b"x-request-id", b"")
        if 0 < len(given) <= 128 and given.isascii() and given.decode().isprintable():
            return given
        return f"{self._run}-{next(self._ids)}".encode()

    def admit(self, request: Request) -> Problem | None:
        """Look at the headers, before the body is sent."""
        host = b"//" + request.headers.get(b"host", b"")
        for name, url in (("Host", host), ("Origin", request.headers.get(b"origin", host))):
            if _hostname(url) not in self._door.hosts:
                return _forbidden(name, url)
        if int(request.headers.get(b"content-length", b"0")) > self._door.largest_body_bytes:
            return too_large(self._door.largest_body_bytes)
        return None

    def take(self, request: Request, reply: Reply) -> Exchange | None:
        """Answer one request: a page at once, a chat by an exchange."""
        try:
            if request.path == "/v1/chat/completions":
                _allow(request.method, "POST")
                return self._chat(request, reply)
            reply.answer(self._page(request.path, request.method))
        except ProblemError as error:
            self.refuse(error.problem, reply)
        return None

    def refuse(self, problem: Problem, reply: Reply) -> None:
        """Answer with the problem, and count it."""
        self._desk.metrics.request_refused(problem.status)
        reply.answer(refusal(problem))

    def client_cut(self) -> None:
        """A client was too slow in taking its answer."""
        self._desk.metrics.client_cut()

    def stop(self) -> None:
        """End what is in flight, with an error its client can read, and let nothing new begin."""
        self._is_stopping = True
        for exchange in tuple(self._exchanges):
            exchange.stop(_STOPPING)

    def _page(self, path: str, method: str) -> Answer:
        page = self._pages.get(path)
        if page is None and path.startswith("/v1/models/"):
            page = partial(self._one_model, path.removeprefix("/v1/models/"))
        if page is None:
            message = f"there is nothing at {path}; chat completions are at /v1/chat/completions"
            raise ProblemError(Problem(status=404, code="unknown_url", message=message))
        _allow(method, "GET", "HEAD")
        return page()

    def _list_models(self) -> Answer:
        body = wire.models_body(self._models, self._created_unix_s)
        return Answer(status=200, headers=JSON, body=body)

    def _one_model(self, model: str) -> Answer:
        if model not in self._models:
            message = f"no model is called {model!r} here; there is {', '.join(self._models)}"
            raise ProblemError(Problem(status=404, code="model_not_found", message=message))
        body = wire.model_body(model, self._created_unix_s)
        return Answer(status=200, headers=JSON, body=body)

    def _health(self) -> Answer:
        replicas = list(self._desk.driver.replicas())
        served = {known.model for known in replicas if known.state == "up"}
        missing = [model for model in self._models if model not in served]
        shown = [
            {name: getattr(known, name) for name in ("replica", "epoch", "model", "pool", "state", "reason")}
            for known in replicas
        ]  # fmt: skip
        status = "stopping" if self._is_stopping else "unserved" if missing else "ok"
        body = msgspec.json.encode({"status": status, "unserved": missing, "replicas": shown})
        return Answer(status=200 if status == "ok" else 503, headers=JSON, body=body)

    def _metrics(self) -> Answer:
        body = self._desk.metrics.text(self._desk.driver.replicas(), self._corrections())
        return Answer(status=200, headers=[(b"content-type", CONTENT_TYPE)], body=body)

    def _chat(self, request: Request, reply: Reply) -> Exchange:
        if self._is_stopping:
            raise ProblemError(_STOPPING)
        body = bytes(request.body)
        pin = request.headers.get(b"x-polypod-replica")
        call = Call(
            body=body,
            chat=wire.read_chat(body),
            request_id=reply.request_id.decode(),
            only_replica=None if pin is None else pin.decode("latin-1")[: wire.LONGEST_NAME],
        )
        exchange = Exchange(call, self._desk, reply, self._exchanges)
        exchange.start()
        return exchange


@lru_cache(maxsize=64)
def _hostname(url: bytes) -> str | None:
    """The lower-case name in a URL, without port or brackets; None where there is none."""
    try:
        return urlsplit(url.decode("latin-1")).hostname
    except ValueError:
        return None


def _allow(method: str, *allowed: str) -> None:
    if method not in allowed:
        message = f"{method} is not possible here; {' and '.join(allowed)} are"
        raise ProblemError(
            Problem(
                status=405, code="method_not_allowed", message=message, allow=", ".join(allowed)
            )
        )


def _forbidden(header: str, url: bytes) -> Problem:
    value = url.decode("latin-1").removeprefix("//")
    message = (
        f"the {header} header is {value!r}, and this node answers loopback names only "
        "(127.0.0.1, localhost, [::1]); call it by one of those"
    )
    return Problem(status=403, code="forbidden_host", message=message)
