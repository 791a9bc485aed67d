"""KV caches handed from one llama.cpp process to another: computed and saved here, restored and decoded there.

llama.cpp keeps a sequence's cache in a numbered slot, writes a slot to a file, and reads it back into a slot of any process with the same model
and settings. So the driver says which slot each request has: a slot in use is nobody else's, and it is emptied before it is free again,
because leftovers would fill the cache that all slots share. Files are in memory where the machine has a place for that, in a folder that only this user can
enter; one is removed as soon as it was read, or nobody waits for it.

llama.cpp ends itself on a file that is cut short, so a file that is not as long as was written is not given to it.
"""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from polypod.errors import RunError
from polypod.policy.events import ReplicaUp
from polypod.serve.upstream import Upstream, UpstreamError

Post = Callable[[str, bytes], Awaitable[tuple[int, bytes]]]
"""Sends one body to a path of an engine; returned are the status and the whole answer. Raises `RunError` where none comes."""

HANDOVER_PREFIX: Final = "polypod-kv-"
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it


class HandoverError(RunError):
    """A cache could not be saved, is not whole, or could not be restored; its prompt can be computed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A computed prompt's cache in a file."""

    path: Path
    tokens: int
    size_bytes: int
    save_s: float  # by the engine's own clock

    def forget(self) -> None:
        """Nobody waits for it any more."""
        self.path.unlink(missing_ok=True)


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """What llama.cpp says of a saved or restored slot."""

    n_saved: int = 0
    n_written: int = 0
    n_restored: int = 0
    timings: dict[str, float] = {}


_TOLD: Final = msgspec.json.Decoder(_Told)


def make_handover_directory() -> Path:
    """A new folder for caches that only this user can enter, in memory where that is possible."""
    in_memory = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK | os.X_OK)
    return Path(tempfile.mkdtemp(prefix=HANDOVER_PREFIX, dir=_MEMORY if in_memory else None))


def poster(upstream: Upstream) -> Post:
    """Ask over these connections."""

    async def post(path: str, body: bytes) -> tuple[int, bytes]:
        try:
            return await upstream.ask(path, body)
        except UpstreamError as error:
            raise HandoverError(str(error)) from error

    return post


def with_slot(body: bytes, slot: int, **more: bool | int) -> bytes:
    """The client's request for that slot; what the client says of slots itself does not count.

    >>> with_slot(b'{"model": "m", "id_slot": 7}', 2, cache_prompt=True)
    b'{"model":"m","id_slot":2,"cache_prompt":true}'
    """
    return with_fields(body, id_slot=slot, **more)


def with_fields(body: bytes, **said: object) -> bytes:
    """A JSON object with these fields, whatever it says of them itself; all others stay as they are written.

    >>> with_fields(b'{"a": 1e3, "b": 2}', b=None)
    b'{"a":1e3,"b":null}'
    """
    asked: dict[str, msgspec.Raw] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields = {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in said.items()}
    return msgspec.json.encode(asked | fields)


def prompt_only(body: bytes, slot: int) -> bytes:
    """The client's request, for its prompt alone: one token, in one piece, whatever was there before.

    >>> prompt_only(b'{"stream": true, "stream_options": {"include_usage": true}, "max_tokens": 9, "n": 1}', 0)
    b'{"stream":false,"max_tokens":1,"n":1,"id_slot":0,"cache_prompt":false}'
    """
    asked = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    for key in ("stream_options", "max_completion_tokens", "n_predict"):
        asked.pop(key, None)
    kept = msgspec.json.encode(asked)
    return with_slot(kept, slot, cache_prompt=False, max_tokens=1, stream=False)


async def save(post: Post, slot: int, path: Path) -> Saved:
    """Write the slot to the file. Raises `HandoverError` where it is not all there afterwards, and leaves no file then."""
    told = await _slot(post, slot, "save", path.name)
    saved = Saved(
        path=path,
        tokens=told.n_saved,
        size_bytes=told.n_written,
        save_s=told.timings.get("save_ms", 0.0) / 1e3,
    )
    try:
        check_whole(saved)
    except HandoverError:
        saved.forget()
        raise
    return saved


async def restore(post: Post, slot: int, saved: Saved) -> float:
    """Read the file into the slot; return the engine's seconds. Raises `HandoverError` where not every token is there."""
    check_whole(saved)
    told = await _slot(post, slot, "restore", saved.path.name)
    if told.n_restored != saved.tokens:
        msg = f"{told.n_restored} of {saved.tokens} tokens were restored"
        raise HandoverError(msg)
    return told.timings.get("restore_ms", 0.0) / 1e3


async def erase(post: Post, slot: int) -> None:
    """Empty the slot, after what runs in it."""
    await _slot(post, slot, "erase", "")


def check_whole(saved: Saved) -> None:
    """Raise `HandoverError` unless the file has tokens, and as many bytes as were written."""
    try:
        found_bytes = saved.path.stat().st_size
    except OSError as error:
        msg = f"the saved cache cannot be read: {error.strerror}"
        raise HandoverError(msg) from error
    if not saved.tokens or found_bytes != saved.size_bytes:
        msg = f"the saved cache has {found_bytes:,} of {saved.size_bytes:,} bytes, of {saved.tokens} tokens"
        raise HandoverError(msg)


async def _slot(post: Post, slot: int, action: str, filename: str) -> _Told:
    body = msgspec.json.encode({"filename": filename} if filename else {})
    try:
        status, answer = await post(f"/slots/{slot}?action={action}", body)
        if status != 200:
            msg = f"the engine answered HTTP {status} when asked to {action} slot {slot}"
            raise HandoverError(msg)
        return _TOLD.decode(answer)
    except msgspec.DecodeError as error:
        msg = f"the engine's answer, asked to {action} slot {slot}, is not readable: {error}"
        raise HandoverError(msg) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One of an engine's places for a sequence."""

    replica: str
    epoch: int
    number: int


class Slots:
    """The slots of the engines that hand caches on, by start of a replica."""

    def __init__(self, background: Callable[[Coroutine[None, None, None]], None]) -> None:
        self._background = background
        self._free: dict[tuple[str, int], asyncio.Queue[int]] = {}

    def attach(self, replica: str, epoch: int, slots: int) -> None:
        """A replica is up with so many slots, all of them empty; its earlier starts have none any more."""
        self.forget(replica)
        free = self._free[replica, epoch] = asyncio.Queue()
        for slot in range(slots):
            free.put_nowait(slot)

    def forget(self, replica: str) -> None:
        """It is gone for good."""
        for known in [known for known in self._free if known[0] == replica]:
            del self._free[known]

    async def take(self, replica: str, epoch: int) -> Slot:
        """A free slot, as soon as there is one. Raises `HandoverError` for a start that is over."""
        free = self._free.get((replica, epoch))
        if free is None:
            msg = f"replica {replica} is not up any more"
            raise HandoverError(msg)
        return Slot(replica=replica, epoch=epoch, number=await free.get())

    def give(self, at: Slot, post: Post, stray: Path | None = None) -> None:
        """Empty the slot after what runs in it, and let others have it. Of an engine that does not answer it stays taken.

        What that may write meanwhile to the `stray` file, nobody waits for.
        """
        self._background(self._empty(at, post, stray))

    async def _empty(self, at: Slot, post: Post, stray: Path | None) -> None:
        with suppress(RunError):
            await erase(post, at.number)
            free = self._free.get((at.replica, at.epoch))
            if free is not None:
                free.put_nowait(at.number)
        if stray is not None:
            stray.unlink(missing_ok=True)


class Caches:
    """Where the caches of a node's requests are: files in a folder, and slots of its engines."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.slots = Slots(self.background)
        self._tasks: set[asyncio.Task[None]] = set()
        self.latest: tuple[Saved, float] | None = (
            None  # that arrived, and the seconds to restore it
        )

    async def attach(self, up: ReplicaUp, post: Post) -> None:
        """Take the slots of a replica that is ready, all emptied. Raises `HandoverError` where it does not empty them."""
        for slot in range(up.max_sequences):
            await erase(post, slot)
        self.slots.attach(up.replica, up.epoch, up.max_sequences)

    def background(self, work: Coroutine[None, None, None]) -> None:
        """Have something given back that nobody waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Remove the folder with what is in it."""
        for task in self._tasks:
            task.cancel()
        if self.folder is not None:
            for path in self.folder.iterdir():
                path.unlink(missing_ok=True)
            self.folder.rmdir()
