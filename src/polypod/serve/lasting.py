"""An attempt at a stream that may go on elsewhere: it keeps what was made, and says how much of it there is when it fails.

The first one is asked as the client asked; a later one for the rest. An answer of which all text is there, and only its end is missing, is ended here.
"""

import msgspec

from polypod.policy.events import FirstToken, ReplicaBusy, RequestFailed, RequestFinished
from polypod.serve.attempt import (
    Attempt,
    Call,
    Desk,
    Ending,
    Starts,
    first_events,
)
from polypod.serve.continuation import engine_of
from polypod.serve.reply import Reply
from polypod.serve.resume import CannotGoOnError, asking, remaining_tokens
from polypod.serve.sse import EventStream
from polypod.serve.transcript import Leg, Transcript
from polypod.serve.upstream import Response, Upstream, UpstreamError
from polypod.serve.wire import Usage

_ENOUGH = UpstreamError(kind="lost", detail="nothing more is wanted")


class LastingAttempt(Attempt):
    """Run once with `run`, as any attempt; the transcript outlives it."""

    def __init__(
        self, action: Starts, call: Call, desk: Desk, *, arrived_s: float, transcript: Transcript
    ) -> None:
        super().__init__(action, call, desk, arrived_s=arrived_s)
        self._transcript = transcript
        self._leg = Leg(transcript)

    async def run(self, reply: Reply) -> Ending:
        """Ask and read, or end what is complete but for its end."""
        transcript = self._transcript
        is_all = transcript.finish is not None or remaining_tokens(self._call.chat, transcript) == 0
        if transcript.has_begun and is_all:
            return self._completed(reply)
        ending = await super().run(reply)
        if isinstance(ending, RequestFailed | ReplicaBusy):
            return msgspec.structs.replace(ending, sent_tokens=transcript.tokens)
        return ending

    async def _ask(self, upstream: Upstream, reply: Reply) -> Ending:
        call, action = self._call, self._dispatch
        endpoint = self._desk.driver.endpoint(action.replica, action.epoch)
        engine = "" if endpoint is None else engine_of(endpoint)
        try:
            asked = await asking(
                engine, action.replica, upstream, call.body, call.chat, self._transcript
            )
        except CannotGoOnError as error:
            return self._failed("client", str(error))
        self._leg = asked.leg
        response = await upstream.post(
            asked.body, request_id=call.request_id, is_stream=True, path=asked.path
        )
        try:
            if response.status != 200:
                return await self._not_answered(response)
            return await self._stream(response, reply, upstream.patience.between_s)
        finally:
            reply.throttle(None)
            response.release()

    async def _stream(self, response: Response, reply: Reply, silence_s: float) -> Ending:
        events = EventStream()
        opening = await first_events(response, events)
        failure = self._not_a_stream(response, opening)
        if failure is not None:
            return failure
        response.hurry(silence_s)
        first_s = self._begin(reply)
        self._give(response, reply, opening)
        try:
            last_s = await self._pass_on(response, events, reply)
        except UpstreamError:
            if self._transcript.finish is None and self._leg.error is None:
                raise
            last_s = 0.0
        if rest := events.rest():
            self._give(response, reply, rest)
        if self._leg.error is not None:
            return self._failed_within(self._leg.error)
        if self._transcript.finish is None and not self._leg.is_done:
            return self._failed("lost", "the stream ended without [DONE]")
        self._time_tokens((last_s or first_s) - first_s, self._own())
        return self._completed(reply) if not self._leg.is_done else self._finished(self._usage())

    def _begin(self, reply: Reply) -> float:
        at_s, action = self._desk.driver.now_s(), self._dispatch
        if not reply.has_begun:
            self._desk.metrics.first_token(self._model, action.replica, at_s - self._arrived_s)
        self._desk.driver.tell(FirstToken(**self._now()))
        self._observe(at_s)
        if not reply.has_begun:
            reply.begin(200, self._call.stream_headers)
        return at_s

    async def _pass_on(self, response: Response, events: EventStream, reply: Reply) -> float:
        now_s, last_s = self._desk.driver.now_s, 0.0

        def part(data: bytes) -> None:
            nonlocal last_s
            if whole := events.feed(data):
                last_s = now_s()
                self._give(response, reply, whole)

        reply.throttle(response.throttle)
        await response.pass_to(part)
        return last_s

    def _give(self, response: Response, reply: Reply, events: bytes) -> None:
        out = self._leg.take(events)
        if out:
            reply.part(out)
        if self._leg.is_over or self._leg.error is not None:
            response.broke(_ENOUGH)

    def _completed(self, reply: Reply) -> RequestFinished:
        """Give the client what its answer still lacks."""
        usage = self._usage()
        shown = Usage(
            prompt_tokens=usage.prompt_tokens or self._call.chat.input_tokens,
            completion_tokens=usage.completion_tokens,
        )
        reply.part(self._transcript.end("length", shown))
        return self._finished(usage)

    def _usage(self) -> Usage:
        """Of the whole answer: as the engine told, else as counted here."""
        told, made = self._leg.usage, self._transcript.tokens
        is_told = told.completion_tokens is not None
        return Usage(
            prompt_tokens=told.prompt_tokens,
            completion_tokens=told.completion_tokens if is_told else made,
        )

    def _own(self) -> Usage:
        """Of this attempt alone."""
        return Usage(completion_tokens=self._transcript.tokens - self._leg.tokens_before)

    def _failed_within(self, error: object) -> Ending:
        """The engine says in the middle that it cannot go on."""
        code = error.get("code") if isinstance(error, dict) else None
        if code in (429, 503):
            return ReplicaBusy(**self._now())
        return self._failed("engine", "an error event", 200)
