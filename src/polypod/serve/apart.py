"""One request over two replicas: its prompt on one, its answer on another, and the cache between them.

    Prefill      the client's request for one token, in a slot of its own; the slot is saved to a file and empty again     -> PrefillFinished
    TransferKv   the file is restored in a slot of the decode replica, and gone                                            -> KvArrived, KvLost
    Decode       the client's request as it is, in that slot: the engine finds the prompt there and computes its last token

Every token of the answer is the decode replica's own, the first too, so that nothing has to be joined. A cache that was lost is computed again, as the
policy says; if it is lost again, the decode replica computes the prompt itself, in the slot that was meant for the cache.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from polypod.policy.actions import Prefill, TransferKv
from polypod.policy.events import (
    KvArrived,
    KvLost,
    PrefillFinished,
    RequestFailed,
    RequestFinished,
)
from polypod.serve.attempt import Attempt, Call, Desk, Prefilled, of_attempt
from polypod.serve.handover import (
    HandoverError,
    Post,
    Saved,
    Slot,
    Slots,
    poster,
    prompt_only,
    restore,
    save,
    with_slot,
)
from polypod.serve.reply import Answer, Reply


@dataclass(slots=True, kw_only=True)
class Apart:
    """What a request has at either replica, until it is left."""

    call: Call
    desk: Desk
    held: Answer | None = None  # what the prefill replica answered, where it refused the request
    _saved: Saved | None = field(default=None, init=False)
    _slot: Slot | None = field(default=None, init=False)  # on the decode replica

    async def prefill(self, action: Prefill, reply: Reply) -> Prefilled:
        """Compute the prompt and save its cache."""
        self.leave()
        try:
            slot = await self._slots.take(action.replica, action.epoch)
        except HandoverError as error:
            return RequestFailed(**self._at(action), kind="refused", detail=str(error))
        path = self._path(action)
        try:
            attempt = Attempt(action, self._prompt(slot), self.desk, arrived_s=0.0)
            ending = await attempt.run(reply)
            if not isinstance(ending, RequestFinished):
                self.held = attempt.held
                return ending
            self._saved = await save(self._post(action.replica, action.epoch), slot.number, path)
        except HandoverError as error:
            return RequestFailed(**self._at(action), kind="engine", detail=str(error))
        finally:
            self._give(slot, None if self._saved else path)
        self.desk.metrics.cache_saved(self._saved.save_s)
        return PrefillFinished(**self._at(action), kv_tokens=self._saved.tokens)

    async def transfer(self, action: TransferKv) -> KvArrived | KvLost:
        """Restore the cache where the answer will be computed."""
        saved, self._saved = self._saved, None
        assert saved is not None, f"{action} without a saved cache"
        try:
            self._slot = slot = await self._slots.take(action.replica, action.epoch)
            post = self._post(action.replica, action.epoch)
            restore_s = await restore(post, slot.number, saved)
        except HandoverError:
            if action.attempt == 1 or self._slot is None:
                self.desk.metrics.cache_lost("computed again")
                self.leave()
                return KvLost(**self._at(action))
            self.desk.metrics.cache_lost("computed where it was to go")
        else:
            self.desk.metrics.cache_restored(restore_s, saved.size_bytes)
            self.desk.caches.latest = saved, restore_s
        finally:
            saved.forget()
        return KvArrived(**self._at(action))

    def answer(self) -> Call:
        """The client's request, for the slot that has its cache."""
        assert self._slot is not None, "decoding without a slot"
        body = with_slot(self.call.body, self._slot.number, cache_prompt=True)
        return msgspec.structs.replace(self.call, body=body)

    def leave(self) -> None:
        """Give back what is held anywhere."""
        if self._saved is not None:
            self._saved.forget()
            self._saved = None
        if self._slot is not None:
            self._give(self._slot)
            self._slot = None

    def _prompt(self, slot: Slot) -> Call:
        chat = msgspec.structs.replace(self.call.chat, stream=False)
        body = prompt_only(self.call.body, slot.number)
        return msgspec.structs.replace(self.call, body=body, chat=chat, is_counted=False)

    def _path(self, action: Prefill) -> Path:
        folder = self.desk.caches.folder
        assert folder is not None, "caches are handed over, and there is no folder for them"
        return folder / f"{action.request}-{action.attempt}"

    @property
    def _slots(self) -> Slots:
        return self.desk.caches.slots

    def _give(self, slot: Slot, stray: Path | None = None) -> None:
        self._slots.give(slot, self._post(slot.replica, slot.epoch), stray)

    def _post(self, replica: str, epoch: int) -> Post:
        endpoint = self.desk.driver.endpoint(replica, epoch)
        if endpoint is None:
            return _gone
        return poster(self.desk.upstreams.of(replica, epoch, endpoint))

    def _at(self, action: Prefill | TransferKv) -> dict[str, Any]:
        return of_attempt(action, self.desk.driver.now_s())


async def _gone(path: str, _: bytes) -> tuple[int, bytes]:
    msg = f"the replica is not up any more, and was asked for {path}"
    raise HandoverError(msg)
