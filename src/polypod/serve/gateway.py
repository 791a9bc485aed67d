"""The OpenAI endpoint of a node: what is answered at which path. `serve.http` carries it, `serve.listen` opens the door.

    GET  /v1/models, /v1/models/{id}     the services of the node, whether or not a replica is up
    POST /v1/chat/completions            streamed or not. Headers: `x-polypod-replica: NAME` pins a replica, `x-polypod-session: TEXT` would
                                         rather go where it was, `x-polypod-continue: text|exact|off` lets a stream go on elsewhere
    GET  /healthz                        200 when every service has a replica up, else 503; the replicas either way
    GET  /metrics                        Prometheus text

Who may come in, and with what, is decided by `door`. The content type of a request is not looked at, so that `curl -d` works; the
body is JSON or it is refused.
"""

import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, TypeVar

import msgspec

from polypod.policy.events import Continuation
from polypod.serve import wire
from polypod.serve.affine import SESSION, prefix_hashes, session_of
from polypod.serve.attempt import Call, Desk
from polypod.serve.continuation import HEADER, opted
from polypod.serve.door import Door, Principal
from polypod.serve.exchange import Exchange
from polypod.serve.http.request import Request, Sizes, too_large
from polypod.serve.http.room import Room
from polypod.serve.metrics import CONTENT_TYPE
from polypod.serve.reply import JSON, Answer, Reply, refusal
from polypod.serve.wire import Problem, ProblemError

Allowed = TypeVar("Allowed")
_STOPPING: Final = Problem(
    status=503, code="node_stopping", message="the node is stopping", retry_after_s=5.0
)
_ALWAYS_SHOWN: Final = ("/healthz", "/metrics")  # also where there is no room for more clients


class Gateway:
    """The application. `foresight` says, by replica, what was predicted and what came (`policy.forecasts.MEASURES`)."""

    def __init__(
        self,
        models: Iterable[str],
        desk: Desk,
        door: Door | None = None,
        *,
        foresight: Callable[[], Mapping[str, Mapping[str, float]]] = dict,
        continuation: Continuation = "off",
    ) -> None:
        self._models = tuple(models)
        self._desk = desk
        self._door = door or Door()
        rules = self._door.rules
        self.room = Room(
            most_connections=rules.most_connections,
            most_body_bytes=rules.most_body_bytes,
            tell=desk.metrics.refused_full,
            made_way=desk.metrics.idle_closed,
        )
        desk.metrics.show(self.room)
        self._foresight = foresight
        self._continuation = continuation
        self._created_unix_s = int(time.time())
        self._exchanges: set[Exchange] = set()
        self._is_stopping = False
        self._run = secrets.token_hex(4)
        self._ids = itertools.count(1)
        self._pages: dict[str, Callable[[Principal], Answer]] = {
            "/v1/models": self._list_models,
            "/healthz": self._health,
            "/metrics": self._metrics,
        }

    def offer(self, models: Iterable[str], continuation: Continuation | None = None) -> None:
        """List these models, and no others; streams that do not say go on elsewhere as that says, where it does."""
        self._models = tuple(models)
        self._continuation = continuation or self._continuation

    @property
    def sizes(self) -> Sizes:
        """The most a request may have."""
        return Sizes(body_bytes=self._door.rules.largest_body_bytes)

    @property
    def in_flight(self) -> int:
        """Chat requests that are not yet answered."""
        return len(self._exchanges)

    def request_id(self, headers: Mapping[bytes, bytes]) -> bytes:
        """The client's own name for its request, or one that we make."""
        given = headers.get(b"x-request-id", b"")
        if 0 < len(given) <= 128 and given.isascii() and given.decode().isprintable():
            return given
        return f"{self._run}-{next(self._ids)}".encode()

    def admit(self, request: Request) -> Problem | None:
        """Look at the headers, before the body is sent."""
        if request.is_extra and request.path not in _ALWAYS_SHOWN:
            return self.room.refuse("connections")
        found = self._door.admit(request.headers, request.peer, request.path)
        if isinstance(found, Problem):
            return found
        request.sender = found
        limit_bytes = self._door.rules.largest_body_bytes
        size_bytes = int(request.headers.get(b"content-length", b"0"))
        if size_bytes > limit_bytes:
            return too_large(limit_bytes)
        return None if self.room.has_room(size_bytes) else self.room.refuse("bodies")

    def take(self, request: Request, reply: Reply) -> Exchange | None:
        """Answer one request: a page at once, a chat by an exchange."""
        try:
            if request.path == "/v1/chat/completions":
                _allow(request.method, "POST")
                return self._chat(request, reply)
            reply.answer(self._page(_sender(request), request.path, request.method))
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

    def _page(self, principal: Principal, path: str, method: str) -> Answer:
        page = self._pages.get(path)
        if page is None and path.startswith("/v1/models/"):
            page = partial(self._one_model, path.removeprefix("/v1/models/"))
        if page is None:
            message = f"there is nothing at {path}; chat completions are at /v1/chat/completions"
            raise ProblemError(Problem(status=404, code="unknown_url", message=message))
        _allow(method, "GET", "HEAD")
        return page(principal)

    def _list_models(self, principal: Principal) -> Answer:
        body = wire.models_body(filter(principal.may_use, self._models), self._created_unix_s)
        return Answer(status=200, headers=JSON, body=body)

    def _one_model(self, model: str, principal: Principal) -> Answer:
        models = list(filter(principal.may_use, self._models))
        if model not in models:
            message = f"no model is called {model!r} here; there is {', '.join(models)}"
            raise ProblemError(Problem(status=404, code="model_not_found", message=message))
        body = wire.model_body(model, self._created_unix_s)
        return Answer(status=200, headers=JSON, body=body)

    def _health(self, principal: Principal) -> Answer:
        replicas = list(self._desk.driver.replicas())
        served = {known.model for known in replicas if known.state == "up"}
        missing = [model for model in self._models if model not in served]
        foresight = self._foresight()
        shown = [
            {name: getattr(known, name) for name in ("replica", "epoch", "model", "pool", "state", "reason")}
            | {"foresight": foresight.get(known.replica, {})}
            for known in replicas
        ]  # fmt: skip
        status = "stopping" if self._is_stopping else "unserved" if missing else "ok"
        details = {"unserved": missing, "replicas": shown} if principal.is_known else {}
        body = msgspec.json.encode({"status": status, **details})
        return Answer(status=200 if status == "ok" else 503, headers=JSON, body=body)

    def _metrics(self, _: Principal) -> Answer:
        body = self._desk.metrics.text(self._desk.driver.replicas(), self._foresight())
        return Answer(status=200, headers=[(b"content-type", CONTENT_TYPE)], body=body)

    def _chat(self, request: Request, reply: Reply) -> Exchange:
        if self._is_stopping:
            raise ProblemError(_STOPPING)
        body = bytes(request.body)
        pin = request.headers.get(b"x-polypod-replica")
        chat = wire.read_chat(body)
        header, is_stream = request.headers.get(HEADER), bool(chat.stream)
        may_go_on = opted(header, self._continuation, body, is_stream=is_stream)
        lease = _checked(self._door.begin(_sender(request), chat))
        may_cache = self._desk.driver.caches_prefixes(chat.model)
        call = Call(
            body=body,
            chat=chat,
            request_id=reply.request_id.decode(),
            lease=lease,
            only_replica=None if pin is None else pin.decode("latin-1")[: wire.LONGEST_NAME],
            opted=may_go_on,
            session=session_of(request.headers.get(SESSION), chat),
            prefix_hashes=prefix_hashes(chat.messages) if may_cache else (),
        )
        if self._door.log_prompt is not None:
            self._door.log_prompt(lease.principal, call.request_id, body)
        exchange = Exchange(call, self._desk, reply, self._exchanges)
        lease.stop = exchange.stop
        exchange.start()
        return exchange


def _sender(request: Request) -> Principal:
    assert isinstance(request.sender, Principal)  # admit came before
    return request.sender


def _checked(given: Allowed | Problem) -> Allowed:
    if isinstance(given, Problem):
        raise ProblemError(given)
    return given


def _allow(method: str, *allowed: str) -> None:
    if method not in allowed:
        message = f"{method} is not possible here; {' and '.join(allowed)} are"
        raise ProblemError(
            Problem(
                status=405, code="method_not_allowed", message=message, allow=", ".join(allowed)
            )
        )
