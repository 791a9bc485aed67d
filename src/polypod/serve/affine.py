"""Where a request would rather go: the beginning of its prompt and its session, as numbers that say nothing of the text.

The blocks of a prompt are pieces of `messages` as they came, each hashed together with all before it. The next turn of a conversation begins with the same
bytes, and so does every request with the same system prompt, as long as the client writes its JSON alike.
"""

import hashlib
import secrets
from typing import Final

import msgspec

from polypod.policy.settings import ServiceSettings
from polypod.serve.wire import BYTES_PER_TOKEN, ChatRequest

SESSION: Final = b"x-polypod-session"
BLOCK_BYTES: Final = ServiceSettings(model="", context_tokens=1).block_tokens * BYTES_PER_TOKEN
MOST_BLOCKS: Final = 1024
_KEY: Final = secrets.token_bytes(16)  # a record's numbers cannot be guessed at without it


def prefix_hashes(messages: msgspec.Raw) -> tuple[int, ...]:
    """One for each whole block; the last, which ends with the messages, is not told.

    >>> short, long = (msgspec.Raw(b"[" + b"x" * size + b"]") for size in (5000, 9000))
    >>> prefix_hashes(short) == prefix_hashes(long)[:2], len(prefix_hashes(long))
    (True, 4)
    """
    data = memoryview(messages)
    if len(data) <= BLOCK_BYTES:
        return ()
    hashes = []
    digest = hashlib.blake2b(digest_size=8, key=_KEY)
    for block in range(min((len(data) - 1) // BLOCK_BYTES, MOST_BLOCKS)):
        digest.update(data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
        hashes.append(_number(digest.copy().digest()))
    return tuple(hashes)


def session_of(header: bytes | None, chat: ChatRequest) -> int | None:
    """The header's, else the request's `user`; None where neither says anything.

    >>> chat = ChatRequest(model="m", messages=msgspec.Raw(b"[]"), user="ann")
    >>> session_of(None, chat) == session_of(b"ann", chat), session_of(b"", ChatRequest(model="m", messages=msgspec.Raw(b"[]")))
    (True, None)
    """
    said = header or (chat.user.encode() if isinstance(chat.user, str) else b"")
    return _number(hashlib.blake2b(said, digest_size=8, key=_KEY).digest()) if said else None


def _number(digest: bytes) -> int:
    """Positive, and no wider than the arrays it may come into."""
    return int.from_bytes(digest, "big") >> 1
