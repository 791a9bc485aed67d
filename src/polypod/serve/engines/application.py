"""The OpenAI-compatible server of engines that have none of their own: raw ASGI on uvicorn, on a unix socket.

    GET  /health, /metrics, /v1/models      POST /v1/chat/completions

What computes is behind `Computes`: it takes a request and hands out its text piece by piece.
"""

import asyncio
import contextlib
import hmac
import secrets
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    MutableMapping,
    Sequence,
)
from typing import Any, Final, Protocol

import uvicorn

from polypod.serve.engines.chat import Answer, ChatRequest, Continued, read_request, refused
from polypod.serve.engines.child import ChildOptions
from polypod.serve.engines.generation import Piece
from polypod.serve.wire import ProblemError, models_body

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_JSON: Final = b"application/json"
_EVENTS: Final = b"text/event-stream"
_LONGEST_BODY_BYTES: Final = 16 << 20


class Answering(Protocol):
    """One answer in the making."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    def pieces(self) -> AsyncIterator[Piece]: ...
    def cancel(self) -> None: ...


class Computes(Protocol):
    """An engine's running sequences, and what it has done so far."""

    @property
    def sequences(self) -> int: ...
    @property
    def max_sequences(self) -> int: ...
    @property
    def prompt_tokens_total(self) -> int: ...
    @property
    def output_tokens_total(self) -> int: ...
    @property
    def steps_total(self) -> int: ...
    def submit(self, request: ChatRequest, given: Continued) -> Answering: ...


async def serve(
    options: ChildOptions, application: "Application", *beside: Coroutine[Any, Any, None]
) -> None:
    """Serve on the socket until a signal ends the process; what runs `beside` ends it too when it fails."""
    config = uvicorn.Config(
        application,
        uds=str(options.socket),
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=3600,  # the gateway keeps its connections, and closes them
    )
    print(f"{application.engine} serves {options.model} on {options.socket}", flush=True)  # noqa: T201 - the child's log
    async with asyncio.TaskGroup() as tasks:
        for work in beside:
            tasks.create_task(work)
        tasks.create_task(_Server(config).serve())


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals as `settle` set them: SIGTERM ends the process at once."""
        yield


class Application:
    """The ASGI application."""

    def __init__(self, engine: str, options: ChildOptions, batch: Computes) -> None:
        self.engine = engine
        self._model = options.model
        self._secret = options.secret
        self._batch = batch
        self._started_unix_s = int(time.time())
        self._routes: Final = {
            ("GET", "/metrics"): self._metrics,
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/chat/completions"): self._chat,
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        connection = _Connection(receive, send)
        try:
            await self._answer(scope, connection)
        except ProblemError as error:
            await connection.send(error.problem.status, _JSON, error.problem.body)

    async def _answer(self, scope: Message, connection: "_Connection") -> None:
        method, path = scope["method"], scope["path"]
        if path == "/health":
            await connection.send(200, _JSON, b'{"status":"ok"}')
            return
        self._check_secret(scope)
        route = self._routes.get((method, path))
        if route is None:
            msg = f"no {method} {path} here"
            raise refused(msg, code="not_found", status=404)
        await route(connection)

    def _check_secret(self, scope: Message) -> None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        wanted = f"Bearer {self._secret}".encode()
        if self._secret and not hmac.compare_digest(given, wanted):
            msg = "wrong or missing bearer token"
            raise refused(msg, code="invalid_api_key", status=401)

    async def _models(self, connection: "_Connection") -> None:
        await connection.send(200, _JSON, models_body([self._model], self._started_unix_s))

    async def _metrics(self, connection: "_Connection") -> None:
        batch = self._batch
        running = min(batch.sequences, batch.max_sequences)
        values = {
            "requests_processing": running,
            "requests_deferred": batch.sequences - running,
            "prompt_tokens_total": batch.prompt_tokens_total,
            "tokens_predicted_total": batch.output_tokens_total,
            "n_decode_total": batch.steps_total,
        }
        lines = "".join(f"{self.engine}:{name} {value}\n" for name, value in values.items())
        await connection.send(200, b"text/plain; version=0.0.4", lines.encode())

    async def _chat(self, connection: "_Connection") -> None:
        request, given = read_request(await connection.body())
        if request.model != self._model:
            msg = f"this engine serves {self._model!r}, not {request.model!r}"
            raise refused(msg, code="model_not_found", param="model", status=404)
        generation = self._batch.submit(request, given)
        answer = Answer(secrets.token_hex(12), self._model)
        work = self._stream if request.stream else self._whole
        task = asyncio.create_task(work(connection, request, generation, answer))
        gone = asyncio.create_task(connection.gone())
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            generation.cancel()
        for each in (task, gone):
            each.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _whole(
        self,
        connection: "_Connection",
        request: ChatRequest,
        generation: Answering,
        answer: Answer,
    ) -> None:
        text, finish = "", None
        async for piece in generation.pieces():
            text += piece.text
            finish = piece.finish
        assert finish is not None
        counts = generation.prompt_tokens, generation.output_tokens
        await connection.send(200, _JSON, answer.whole(text, finish, *counts))

    async def _stream(
        self,
        connection: "_Connection",
        request: ChatRequest,
        generation: Answering,
        answer: Answer,
    ) -> None:
        has_begun = False
        async for piece in generation.pieces():
            if (
                not has_begun
            ):  # nothing goes out before the first token: until then another replica can take over
                has_begun = True
                await connection.start(200, _EVENTS)
                await connection.write(answer.event({"role": "assistant", "content": ""}))
            if piece.text:
                event = answer.event({"content": piece.text}, ids=piece.ids or None)
                await connection.write(event)
            if piece.finish:
                await connection.write(answer.event({}, piece.finish))
        if request.wants_usage:
            counts = generation.prompt_tokens, generation.output_tokens
            await connection.write(answer.usage_event(*counts))
        await connection.write(b"data: [DONE]\n\n", more=False)


class _Connection:
    """ASGI's two callables, in the verbs used here."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send

    async def body(self) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await self._receive()
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > _LONGEST_BODY_BYTES:
                msg = f"the request body is over {_LONGEST_BODY_BYTES:,} bytes"
                raise refused(msg, code="request_too_large", status=413)
            more = message.get("more_body", False)
        return b"".join(parts)

    async def gone(self) -> None:
        """Return when the client has gone away."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send(self, status: int, content_type: bytes, body: bytes) -> None:
        await self.start(status, content_type, [(b"content-length", b"%d" % len(body))])
        await self.write(body, more=False)

    async def start(
        self, status: int, content_type: bytes, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        named = [(b"content-type", content_type), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": named})

    async def write(self, body: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})
