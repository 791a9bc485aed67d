"""From token ids to text, one token at a time, and where to stop.

A token may end inside a character (Chinese and emoji take several bytes-tokens), and a stop string may be spread over
tokens. Both are held back until they are decided, so that what went out is never wrong.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_WINDOW = 8
"""Tokens that are enough to see how the next one is written."""


class Detokeniser:
    """Gives each token's text as soon as it is whole.

    Decodes a short window rather than the token alone, because a tokeniser may write a token differently at the start
    of a text (a leading space, for one). `decode` may drop an unfinished character or show it as U+FFFD.

    >>> table = {1: b"a", 2: bytes([0xE6, 0xB1]), 3: bytes([0x89]), 4: b"!"}
    >>> text = Detokeniser(lambda ids: b"".join(table[i] for i in ids).decode(errors="replace"))
    >>> [text.push(token) for token in (1, 2, 3, 4)]
    ['a', '', '汉', '!']
    """

    def __init__(self, decode: Decode, before: Sequence[int] = ()) -> None:
        """`before` are tokens that the text goes on after, shown elsewhere."""
        self._decode = decode
        self._ids = list(before[-_WINDOW:])
        self._window_start = 0
        self._shown_end = len(self._ids)

    def push(self, token: int) -> str:
        """The text this token completes; empty where it completes none."""
        self._ids.append(token)
        shown, text = self._decode(self._ids[self._window_start : self._shown_end]), self._window()
        if len(text) <= len(shown) or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._window_start, self._shown_end = self._shown_end, len(self._ids)
        return text[len(shown) :]

    def finish(self) -> str:
        """What is left at the end: a character the model never finished shows as the tokeniser writes it."""
        shown = self._decode(self._ids[self._window_start : self._shown_end])
        return self._window()[len(shown) :]

    def _window(self) -> str:
        return self._decode(self._ids[self._window_start :])


class StopWatch:
    """Ends a text before the first of some strings.

    >>> watch = StopWatch(["END"])
    >>> [watch.push(piece) for piece in ("one E", "N", "T", "wo EN", "D three")]
    ['one ', '', 'ENT', 'wo ', '']
    >>> watch.has_stopped, watch.finish()
    (True, '')
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.has_stopped = False

    @property
    def held(self) -> str:
        """What may yet become a stop string."""
        return self._held

    def push(self, piece: str) -> str:
        """What may go out now: all of it, less an end that may yet become a stop string."""
        if not self._stops:
            return piece
        text = self._held + piece
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.has_stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, now that no more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
