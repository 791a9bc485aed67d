"""One answer in the making: tokens go in, pieces of text come out, with the stop strings looked for in between."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec

from polypod.serve.engines.chat import FinishReason
from polypod.serve.engines.text import Decode, Detokeniser, StopWatch


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """What one step added to an answer, and the tokens that say so since the piece before, where they are shown."""

    text: str
    finish: FinishReason | None = None
    ids: tuple[int, ...] = ()


class Written:
    """Text of one answer. Used from the event loop alone.

    `before` are the tokens that it goes on after, if it does. Where it `shows_ids`, text goes out with all of its tokens and no others: what a stop
    string holds up, whole.
    """

    def __init__(
        self,
        decode: Decode,
        stops: Sequence[str],
        prompt_tokens: int,
        *,
        before: Sequence[int] = (),
        shows_ids: bool = False,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.output_tokens = 0
        self._text = Detokeniser(decode, before)
        self._watch = StopWatch(stops)
        self._shows_ids = shows_ids
        self._waiting = ""
        self._ids: list[int] = []
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
        if self._shows_ids:
            self._ids.append(token)
        if self._watch.has_stopped:
            self._tell(text, "stop")
        elif self._shows_ids and self._watch.held:
            self._waiting += text
        elif text:
            self._tell(text)
        return self._watch.has_stopped

    def finish(self, reason: FinishReason) -> None:
        """No more tokens come."""
        rest = self._watch.push(self._text.finish())
        if not self._watch.has_stopped:
            rest += self._watch.finish()
        self._tell(rest, reason)

    def _tell(self, text: str, finish: FinishReason | None = None) -> None:
        text, self._waiting = self._waiting + text, ""
        self._pieces.put_nowait(Piece(text=text, finish=finish, ids=tuple(self._ids)))
        self._ids.clear()
