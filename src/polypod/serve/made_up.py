"""One request over two ghosts: the cache between them is made up, and takes its time all the same.

Prefill      the request with `made_up: {phase: prefill, cache: NAME}`; the ghost keeps the cache                     -> PrefillFinished
TransferKv   latency + bytes / share, the share of the narrower end as it is when the cache leaves; then it is freed   -> KvArrived
Decode       the request with `made_up: {phase: decode, cache: NAME}`
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace

import msgspec

from polypod.policy.actions import Prefill, TransferKv
from polypod.policy.events import (
    KvArrived,
    KvLost,
    PrefillFinished,
    RequestFinished,
)
from polypod.serve.attempt import Attempt, Call, Desk, Prefilled, of_attempt
from polypod.serve.handover import with_fields
from polypod.serve.reply import Answer, Reply
from polypod.serve.upstream import UpstreamError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A cache that a ghost has."""

    replica: str
    epoch: int
    name: str
    tokens: int


@dataclass(slots=True, kw_only=True)
class MadeUp:
    """What a request has at either ghost, until it is left."""

    call: Call
    desk: Desk
    held: Answer | None = None  # what the prefill ghost answered, where it refused the request
    _kept: _Kept | None = field(default=None, init=False)

    async def prefill(self, action: Prefill, reply: Reply) -> Prefilled:
        """Have the prompt computed."""
        self.leave()
        name = f"{action.request}-{action.attempt}"
        chat = msgspec.structs.replace(self.call.chat, stream=False)
        body = with_fields(self._body("prefill", name), stream=False, max_tokens=1)
        call = msgspec.structs.replace(self.call, body=body, chat=chat, is_counted=False)
        kept = _Kept(replica=action.replica, epoch=action.epoch, name=name, tokens=0)
        try:
            attempt = Attempt(action, call, self.desk, arrived_s=0.0)
            ending = await attempt.run(reply)
        except asyncio.CancelledError:
            self._free(kept)  # it may have been computed in this very moment
            raise
        if not isinstance(ending, RequestFinished):
            self.held = attempt.held
            return ending
        self._kept = replace(kept, tokens=ending.input_tokens or 0)
        return PrefillFinished(**of_attempt(action, self._now_s()), kv_tokens=self._kept.tokens)

    async def transfer(self, action: TransferKv) -> KvArrived | KvLost:
        """Let the cache take the time of its way."""
        kept = self._kept
        assert kept is not None, f"{action} without a computed prompt"
        announced = self.desk.driver.announced
        source, target = announced(action.source), announced(action.replica)
        seconds = await self.desk.links.move(source, target, kept.tokens)
        self.leave()
        size_bytes = int(kept.tokens * source.kv_token_bytes)
        self.desk.metrics.cache_restored(seconds, size_bytes)
        return KvArrived(**of_attempt(action, self._now_s()))

    def answer(self) -> Call:
        """The client's request, for a ghost that has its cache."""
        return msgspec.structs.replace(self.call, body=self._body("decode", ""))

    def leave(self) -> None:
        """Free what is kept."""
        if self._kept is not None:
            self._free(self._kept)
            self._kept = None

    def _body(self, phase: str, cache: str) -> bytes:
        return with_fields(self.call.body, made_up={"phase": phase, "cache": cache})

    def _free(self, kept: _Kept) -> None:
        self.desk.caches.background(self._release(kept))

    async def _release(self, kept: _Kept) -> None:
        endpoint = self.desk.driver.endpoint(kept.replica, kept.epoch)
        if endpoint is not None:
            path = endpoint.path_prefix.removesuffix("/v1") + "/release"
            upstream = self.desk.upstreams.of(kept.replica, kept.epoch, endpoint)
            with suppress(UpstreamError):  # it is dead, and the cache with it
                await upstream.ask(path, msgspec.json.encode({"cache": kept.name}))

    def _now_s(self) -> float:
        return self.desk.driver.now_s()
