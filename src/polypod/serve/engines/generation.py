"""One answer in the making: tokens go in, pieces of text come out, with the stop strings looked for in between."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec

from polypod.serve.engines.chat import FinishReason
from polypod.serve.engines.text import Decode, Detokeniser, StopWatch


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """What one step added to an answer."""

    text: str
    finish: FinishReason | None = None


class Written:
    """Text of one answer. Used from the event loop alone."""

    def __init__(self, decode: Decode, stops: Sequence[str], prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.output_tokens = 0
        self._text = Detokeniser(decode)
        self._watch = StopWatch(stops)
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()

    async def pieces(self) -> AsyncIterator[Piece]:
        """One for each token that completes text; the last one says why it is the last."""
        finish = None
        while finish is None:
            piece = await self._pieces.get()
            finish = piece.finish
            yield piece

    def take(self, token: int) -> bool:
        """Add a token; True where a stop string is complete, and the answer with it."""
        self.output_tokens += 1
        text = self._watch.push(self._text.push(token))
        if self._watch.has_stopped:
            self._pieces.put_nowait(Piece(text=text, finish="stop"))
        elif text:
            self._pieces.put_nowait(Piece(text=text))
        return self._watch.has_stopped

    def finish(self, reason: FinishReason) -> None:
        """No more tokens come."""
        rest = self._watch.push(self._text.finish())
        if not self._watch.has_stopped:
            rest += self._watch.finish()
        self._pieces.put_nowait(Piece(text=rest, finish=reason))
