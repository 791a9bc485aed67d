"""Token by token, nothing that went out is ever wrong."""

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from polypod.serve.engines.text import Detokeniser, StopWatch


def dropping(ids: Sequence[int]) -> str:
    """One byte a token; what is no character is left out, as OpenVINO's tokeniser does."""
    return bytes(ids).decode(errors="ignore")


def marking(ids: Sequence[int]) -> str:
    """The same, with U+FFFD for what is no character."""
    return bytes(ids).decode(errors="replace")


def leading_space(ids: Sequence[int]) -> str:
    """Sentencepiece's habit: the first word of a text loses its space."""
    return "".join(f" w{token}" for token in ids).removeprefix(" ")


@given(st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]), max_size=20))
def test_the_pieces_are_the_text_and_each_is_whole(text: str) -> None:
    for decode in (dropping, marking):
        words = Detokeniser(decode)
        pieces = [words.push(byte) for byte in text.encode()]

        assert "".join(pieces) == text
        assert all(len(piece) <= 1 for piece in pieces)
        assert words.finish() == ""


def test_a_character_that_is_never_finished_is_shown_only_at_the_end() -> None:
    words = Detokeniser(marking)

    assert [words.push(byte) for byte in "a汉".encode()[:3]] == ["a", "", ""]
    assert words.finish() == "\ufffd"


def test_a_word_keeps_its_leading_space() -> None:
    words = Detokeniser(leading_space)

    assert [words.push(token) for token in (1, 2, 3, 4)] == ["w1", " w2", " w3", " w4"]


def test_a_token_without_text_gives_none() -> None:
    words = Detokeniser(lambda ids: "".join("" if token == 0 else "x" for token in ids))

    assert [words.push(token) for token in (1, 0, 0, 2)] == ["x", "", "", "x"]


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_what_goes_out_is_the_text_before_the_first_stop(text: str, stops: list[str], data) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    bounds = [0, *cuts, len(text)]
    watch, out = StopWatch(stops), ""
    for start, end in itertools.pairwise(bounds):
        out += watch.push(text[start:end])
        if watch.has_stopped:
            break
    out += watch.finish()

    # The stop that ends first is seen first; of those, the one that begins first cuts.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert out == text
        assert not watch.has_stopped
    else:
        assert watch.has_stopped
        assert text.startswith(out)
        assert not any(stop in out for stop in stops)


def test_an_end_that_may_become_a_stop_is_held_back_and_given_at_the_end() -> None:
    watch = StopWatch(["###", "#!"])

    assert [watch.push(piece) for piece in ("a#", "b", "##")] == ["a", "#b", ""]
    assert watch.finish() == "##"
    assert not watch.has_stopped
