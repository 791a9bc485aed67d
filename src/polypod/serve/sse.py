"""Server-sent events on their way through: whole events out, tokens counted, not one byte changed.

An engine's chunk may end inside an event. The rest is held back until the event is whole, so that an error can be put
after any chunk that went out, and a client never has to parse half an event. Bytes and order stay as the engine sent them.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from polypod.serve.wire import Usage

_ENDS: Final = (b"\n\n", b"\r\n\r\n")
_DONE: Final = b"data: [DONE]"


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    delta: dict[str, Any] = {}


class _Chunk(msgspec.Struct, frozen=True, kw_only=True):
    choices: list[_Choice] = []
    usage: Usage | None = None

    @property
    def bears_text(self) -> bool:
        return any(
            value for choice in self.choices for key, value in choice.delta.items() if key != "role"
        )


_CHUNKS: Final = msgspec.json.Decoder(_Chunk)


class EventStream:
    """What passed so far.

    `output_tokens` is the engine's own count where it reports `usage`. Otherwise it is the number of events, less those at
    the two ends that bear no text (the role, the finish reason, the usage, `[DONE]`): an engine that puts several tokens
    in an event, as with speculative decoding, is undercounted by that factor, and with several choices all are counted.
    """

    def __init__(self) -> None:
        self.events = 0  # with text, as far as is known
        self._held = b""
        self._last: deque[bytes] = deque(maxlen=3)

    def feed(self, chunk: bytes) -> bytes:
        """Take a chunk as the engine sent it; return the whole events that can go out now.

        >>> stream = EventStream()
        >>> stream.feed(b'data: {"choices": [{"delta": {"content": "a"}}]}\\n'), stream.feed(b"\\n")
        (b'', b'data: {"choices": [{"delta": {"content": "a"}}]}\\n\\n')
        """
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        if not chunk.endswith(_ENDS):
            cut = max(chunk.rfind(end) + len(end) if end in chunk else 0 for end in _ENDS)
            chunk, self._held = chunk[:cut], chunk[cut:]
            if not chunk:
                return b""
        first = not self._last
        # A line break inside JSON is escaped, so these bytes are the beginning of a line and of nothing else.
        self.events += chunk.count(b"\ndata:") + chunk.startswith(b"data:")
        self._last.append(chunk)
        if first:
            self.events -= not _bears_text(chunk.split(b"\n", 1)[0])
        return chunk

    @property
    def is_between(self) -> bool:
        """Whether all that came was whole events, and some did."""
        return not self._held and bool(self._last)

    def passed(self, events: int, last: Iterable[bytes]) -> None:
        """So many events went by another way, whole; the last parts of them."""
        self.events += events
        self._last.extend(last)

    def rest(self) -> bytes:
        """What is left when the stream has ended without a last blank line."""
        rest, self._held = self._held, b""
        return rest

    @property
    def is_done(self) -> bool:
        """Whether the engine said that this is all."""
        return any(_DONE in chunk for chunk in (*self._last, self._held))

    def usage(self) -> Usage:
        """The tokens of a stream that has ended."""
        reported, tokens = Usage(), self.events
        lines = b"".join(self._last).splitlines()
        for line in reversed([line for line in lines if line.startswith(b"data:")]):
            chunk = _decoded(line)
            if chunk and chunk.usage and reported.completion_tokens is None:
                reported = chunk.usage
            if chunk and chunk.bears_text:
                break
            tokens -= 1
        if reported.completion_tokens is not None:
            return reported
        return Usage(prompt_tokens=reported.prompt_tokens, completion_tokens=max(tokens, 0))


def first_error(chunk: bytes) -> dict[str, Any] | None:
    """The error object, if an engine opens its stream with one; some answer 200 first and fail afterwards."""
    if not chunk.startswith(b'data: {"error"'):
        return None
    try:
        error = msgspec.json.decode(chunk.split(b"\n", 1)[0][len(b"data:") :])["error"]
    except msgspec.DecodeError:
        return None
    return error if isinstance(error, dict) else {"message": str(error)}


def _bears_text(line: bytes) -> bool:
    chunk = _decoded(line)
    return chunk is not None and chunk.bears_text


def _decoded(line: bytes) -> _Chunk | None:
    try:
        return _CHUNKS.decode(line[len(b"data:") :])
    except msgspec.DecodeError:
        return None
