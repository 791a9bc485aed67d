"""What ghosts say: one word for each token, which whoever has the prompt can check.

The i-th word of the answer to a prompt is `i.xxx` and a space, where xxx are twelve bits of a hash of the prompt and i. So a text shows by itself
whether it is whole, broken off, begun twice, or of another prompt, and one ghost goes on where another one stopped.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Final

_MOST_OVER_MEAN: Final = 8.0


def prompt_hash(turns: Sequence[tuple[str, str]]) -> int:
    """Thirty-two bits of the conversation: each turn's role and text."""
    value = 0
    for role, text in turns:
        value = zlib.crc32(f"{role}\0{text}\0".encode(), value)
    return value


def word(prompt: int, index: int) -> str:
    """The word that stands at `index` in the answer.

    >>> word(prompt_hash([("user", "hi")]), 7)
    '7.7ca '
    """
    return f"{index}.{zlib.crc32(b'%d/%d' % (prompt, index)) & 0xFFF:03x} "


def words(prompt: int, first: int, last: int) -> str:
    """The words from `first` up to and without `last`."""
    return "".join([word(prompt, index) for index in range(first, last)])


def natural_tokens(prompt: int, mean_tokens: float) -> int:
    """How long the answer is where nothing cuts it: exponential about the mean, and the same for the same prompt.

    >>> lengths = [natural_tokens(prompt_hash([("user", str(n))]), 100.0) for n in range(4000)]
    >>> min(lengths) >= 1, 95 < sum(lengths) / 4000 < 105
    (True, True)
    """
    share = (zlib.crc32(b"length %d" % prompt) + 0.5) / 2**32
    return max(round(min(-math.log(share), _MOST_OVER_MEAN) * mean_tokens), 1)


def words_right(prompt: int, text: str) -> int | None:
    """How many whole words of the answer a text is, one that is cut short not counted; None where it is anything else.

    >>> prompt = prompt_hash([("user", "hi")])
    >>> words_right(prompt, words(prompt, 0, 5)), words_right(prompt, words(prompt, 0, 5)[:-2])
    (5, 4)
    >>> words_right(prompt, words(prompt, 0, 3) + words(prompt, 0, 3)) is None
    True
    """
    count = text.count(" ")
    return count if words(prompt, 0, count + 1).startswith(text) else None


def resume(prompt: int, given: str) -> tuple[int, str]:
    """Where to go on after a text that was given: the next word's index, and what a word that is cut short still lacks.

    A text that no ghost gave is counted in words, and gone on after.
    """
    count = words_right(prompt, given)
    if count is None:
        return len(given.split()), ""
    begun = given[given.rfind(" ") + 1 :]
    return (count + 1, word(prompt, count)[len(begun) :]) if begun else (count, "")
