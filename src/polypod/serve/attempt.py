"""One attempt at a request: an engine is asked, its answer is read, and how it went is told as one event.

Until the first whole event of a stream, or all of an answer in one piece, is here, nothing goes to the client, so that an
attempt can fail unseen. `FirstToken` is told when a stream's first event is here; some engines send it with the role
alone, in the same moment as the first text. An answer in one piece has no such moment, and only its end is told.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from polypod.policy.actions import Decode, Dispatch, Prefill, TransferKv
from polypod.policy.events import (
    FailureKind,
    FirstToken,
    PrefillFinished,
    ReplicaBusy,
    RequestFailed,
    RequestFinished,
    StepObserved,
)
from polypod.serve.alone import Alone
from polypod.serve.continuation import HOW, OFF, Opted, engine_of
from polypod.serve.door import Lease
from polypod.serve.handover import Caches
from polypod.serve.links import Links
from polypod.serve.loop import Driver
from polypod.serve.metrics import Metrics
from polypod.serve.passage import Passage
from polypod.serve.reply import Answer, Headers, Reply
from polypod.serve.sse import EventStream, first_error
from polypod.serve.upstream import Response, Upstream, UpstreamError, Upstreams, retry_after_s
from polypod.serve.wire import ChatRequest, Usage, read_usage

Starts = Dispatch | Prefill | Decode
Ending = RequestFinished | RequestFailed | ReplicaBusy
Prefilled = PrefillFinished | RequestFailed | ReplicaBusy

STREAM_HEADERS: Final[Headers] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
NOTICE_S: Final = 0.1
"""What breaks a connection is mostly the end of a process, which its supervisor is about to tell. Whoever asked the only replica again meanwhile would
have used all attempts in a millisecond."""
_OF_THE_DEAD: Final = ("refused", "lost")
_BUSY: Final = (429, 503)
_OURS: Final = (401,)  # our secret was refused: the client's own credentials never reach an engine


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked."""

    body: bytes
    chat: ChatRequest
    request_id: str
    lease: Lease
    only_replica: str | None = None
    is_counted: bool = True  # its tokens are of an answer
    opted: Opted = OFF
    session: int | None = None
    prefix_hashes: tuple[int, ...] = ()

    @property
    def stream_headers(self) -> Headers:
        """Of a stream that begins; where more was asked for than can be done, they say so."""
        opted = self.opted
        return STREAM_HEADERS if opted.asked == "off" else [*STREAM_HEADERS, opted.header]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What every request of a node shares."""

    driver: Driver
    upstreams: Upstreams
    metrics: Metrics
    caches: Caches = field(default_factory=Caches)
    links: Links = field(default_factory=Links)
    alone: Alone = field(default_factory=Alone)


class Attempt:
    """Run once with `run`. `held` is then the engine's answer in one piece, good or 4xx, where there is one."""

    def __init__(self, action: Starts, call: Call, desk: Desk, *, arrived_s: float) -> None:
        self.held: Answer | None = None
        self._dispatch = action
        self._call = call
        self._desk = desk
        self._arrived_s = arrived_s
        self._model = desk.metrics.label(call.chat.model)
        self._sent_s = 0.0
        self._alone = 0

    async def run(self, reply: Reply) -> Ending:
        """Ask and read. Only a stream is passed on from here, part by part; its end is left to the caller."""
        dispatch = self._dispatch
        endpoint = self._desk.driver.endpoint(dispatch.replica, dispatch.epoch)
        if endpoint is None:
            return self._failed("refused", "the replica has no address")
        upstream = self._desk.upstreams.of(dispatch.replica, dispatch.epoch, endpoint)
        self._sent_s = self._desk.driver.now_s()
        self._alone = self._desk.alone.begun(dispatch.replica)
        try:
            return await self._ask(upstream, reply)
        except UpstreamError as error:
            if error.kind in _OF_THE_DEAD:
                await asyncio.sleep(NOTICE_S)
            return self._failed(error.kind, error.detail)
        finally:
            self._desk.alone.ended(dispatch.replica)

    async def _ask(self, upstream: Upstream, reply: Reply) -> Ending:
        call, is_stream = self._call, bool(self._call.chat.stream)
        response = await upstream.post(call.body, request_id=call.request_id, is_stream=is_stream)
        try:
            if response.status != 200:
                return await self._not_answered(response)
            if is_stream:
                return await self._stream(response, reply, upstream.patience.between_s)
            return await self._whole(response)
        finally:
            if is_stream:
                reply.throttle(None)
            response.release()  # back to the pool if it was read to its end, closed if not

    async def _not_answered(self, response: Response) -> Ending:
        status, body = response.status, await response.read()
        if status in _BUSY:
            pause_s = retry_after_s(response.headers.get(b"retry-after"))
            return ReplicaBusy(**self._now(), retry_after_s=pause_s)
        if not 400 <= status < 500 or status in _OURS:
            return self._failed("engine", f"HTTP {status}", status)
        self.held = Answer(status=status, headers=_content_headers(response), body=body)
        return self._failed("client", f"HTTP {status}", status)

    async def _whole(self, response: Response) -> Ending:
        body = await response.read()
        try:
            usage = read_usage(body) or Usage()
        except msgspec.DecodeError as error:
            return self._failed("engine", f"the answer is not JSON: {error}", 200)
        self.held = Answer(status=200, headers=_content_headers(response), body=body)
        return self._finished(usage)

    async def _stream(self, response: Response, reply: Reply, silence_s: float) -> Ending:
        events = EventStream()
        opening = await first_events(response, events)
        failure = self._not_a_stream(response, opening)
        if failure is not None:
            return failure
        response.hurry(silence_s)
        at = self._now()
        first_s = at["at_s"]
        reply.begin(200, self._call.stream_headers)
        reply.part_at_once(opening)
        self._desk.metrics.first_token(
            self._model, self._dispatch.replica, first_s - self._arrived_s
        )
        self._desk.driver.tell(FirstToken(**at))
        self._observe(first_s)
        last_s = await self._pass_on(response, events, reply)
        if not events.is_done:
            return self._failed("lost", "the stream ended without [DONE]")
        if rest := events.rest():
            reply.part(rest)
        usage = events.usage()
        self._time_tokens((last_s or first_s) - first_s, usage)
        return self._finished(usage)

    async def _pass_on(self, response: Response, events: EventStream, reply: Reply) -> float:
        """Copy the stream to its end, whatever that is; return when its last part came, 0 if none did."""
        passage = Passage(response, events, reply, self._desk.driver.now_s)
        reply.throttle(response.throttle)
        try:
            await passage.run()
        except UpstreamError:
            if not events.is_done:  # all was said: how the connection ends does not matter
                raise
        return passage.last_s

    def _not_a_stream(
        self, response: Response, opening: bytes
    ) -> RequestFailed | ReplicaBusy | None:
        if response.content_type != "text/event-stream":
            return self._failed("engine", f"a stream as {response.content_type}", 200)
        if not opening:
            return self._failed("lost", "the stream ended before its first event")
        error = first_error(opening)
        if error is None:
            return None
        status = error.get("code")
        if status in _BUSY:
            return ReplicaBusy(**self._now())
        if isinstance(status, int) and 400 <= status < 500 and status not in _OURS:
            body = msgspec.json.encode({"error": error})
            headers = [(b"content-type", b"application/json")]
            self.held = Answer(status=status, headers=headers, body=body)
            return self._failed("client", "an error event", status)
        return self._failed("engine", "an error event", 200)

    def _observe(self, first_s: float) -> None:
        """Tell how long the prompt took, where that can be seen: alone, whole, and none of it from a cache."""
        action, driver = self._dispatch, self._desk.driver
        prompt_s = self._desk.alone.prompt_s(action.replica, self._alone, first_s - self._sent_s)
        if prompt_s is None or not isinstance(action, Dispatch) or action.continues_after_tokens:
            return
        endpoint = driver.endpoint(action.replica, action.epoch)
        how = None if endpoint is None else HOW.get(engine_of(endpoint))
        if how is not None and not how.caches_prefixes:
            driver.tell(
                StepObserved(
                    at_s=first_s,
                    replica=action.replica,
                    epoch=action.epoch,
                    prompt_tokens=self._call.chat.input_tokens,
                    sequences=0,
                    kv_tokens=0,
                    step_s=prompt_s,
                )
            )

    def _time_tokens(self, all_s: float, usage: Usage) -> None:
        if usage.completion_tokens and usage.completion_tokens > 1:
            self._desk.metrics.per_token(
                self._model, self._dispatch.replica, all_s / (usage.completion_tokens - 1)
            )

    def _finished(self, usage: Usage) -> RequestFinished:
        output_tokens = usage.completion_tokens or 0
        if self._call.is_counted:
            self._desk.metrics.tokens(
                self._model, input_tokens=usage.prompt_tokens, output_tokens=output_tokens
            )
        return RequestFinished(
            **self._now(), input_tokens=usage.prompt_tokens, output_tokens=output_tokens
        )

    def _failed(self, kind: FailureKind, detail: str, status: int | None = None) -> RequestFailed:
        return RequestFailed(**self._now(), kind=kind, status=status, detail=detail)

    def _now(self) -> dict[str, Any]:
        return of_attempt(self._dispatch, self._desk.driver.now_s())


def of_attempt(action: Starts | TransferKv, now_s: float) -> dict[str, Any]:
    """The fields that every event about an attempt has."""
    return {
        "at_s": now_s,
        "request": action.request,
        "attempt": action.attempt,
        "replica": action.replica,
        "epoch": action.epoch,
    }


async def first_events(response: Response, events: EventStream) -> bytes:
    """The first whole events; empty where the stream ends before one."""
    while chunk := await response.readany():
        if whole := events.feed(chunk):
            return whole
    return b""


def _content_headers(response: Response) -> Headers:
    kept = (b"content-type", b"content-encoding")
    return [(name, response.headers[name]) for name in kept if name in response.headers]
