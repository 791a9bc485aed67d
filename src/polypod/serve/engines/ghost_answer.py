"""One answer of a ghost, on its way to whoever asked: the words as they come, whole or in events, with OpenAI's names."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from polypod.serve.engines.chat import Answer, ChatRequest, FinishReason, checked, refused
from polypod.serve.engines.ghost_http import EVENTS, JSON, Connection
from polypod.serve.engines.ghost_replica import Phase
from polypod.serve.engines.ghost_text import natural_tokens, prompt_hash, resume, word
from polypod.serve.engines.text import StopWatch
from polypod.serve.wire import BYTES_PER_TOKEN

TEMPLATE_TOKENS: Final = 4
"""What a chat template puts around each turn."""

_PARSED: Final = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as a ghost takes it: how long it is, and which words it asks for."""

    chat: ChatRequest
    prompt: int  # the hash
    prompt_tokens: int
    first: int  # index of the first whole word
    begun: str  # what the answer's beginning, which came with the request, lacks of its last word
    last: int  # index past the last word, where nothing but its nature ends the answer
    phase: Phase = "whole"
    cache: str = ""  # what a prompt's cache is called, where only that is asked for

    def output_tokens(self, longest_tokens: int) -> tuple[int, FinishReason]:
        """Tokens to give and why no more. Raises `ProblemError` (400) where prompt and answer do not fit."""
        most = self.chat.max_new_tokens(self.prompt_tokens, longest_tokens)
        left = self.last - self.first + bool(self.begun)
        if self.chat.ignore_eos or left > most:
            return most, "length"
        return max(left, 1), "stop"

    def word(self, told: int) -> str:
        """What token number `told` of this answer says: nothing where all was said before, and only the end is missing."""
        index = self.first + told - bool(self.begun)
        if told == 0 and self.begun:
            return self.begun
        return word(self.prompt, index) if index < self.last or self.chat.ignore_eos else ""


def read_asked(body: bytes, mean_output_tokens: float) -> Asked:
    """Raises `ProblemError` (400) that names the parameter at fault.

    With `continue_final_message`, as vLLM and SGLang have it, the last message is the answer's own beginning.
    """
    try:
        given = _PARSED.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        msg = f"the request body is not a JSON object: {error}"
        raise refused(msg, code="invalid_json") from error
    goes_on = given.pop("continue_final_message", None) is True
    given.pop("add_generation_prompt", None)
    phase, cache = _phase(given.pop("made_up", None))
    chat = checked(given)
    turns = [(turn["role"], turn["content"]) for turn in (one.turn for one in chat.messages)]
    size_bytes = sum(len(text.encode()) for _, text in turns)
    before = ""
    if goes_on:
        role, before = turns.pop()
        if role != "assistant" or not turns:
            msg = "continue_final_message wants a last message of the assistant after another one"
            raise refused(msg, code="invalid_value", param="continue_final_message")
    prompt = prompt_hash(turns)
    first, begun = resume(prompt, before)
    return Asked(
        chat=chat,
        prompt=prompt,
        prompt_tokens=max(size_bytes // BYTES_PER_TOKEN, 1) + TEMPLATE_TOKENS * len(chat.messages),
        first=first,
        begun=begun,
        last=natural_tokens(prompt, mean_output_tokens),
        phase=phase,
        cache=cache,
    )


def _phase(given: object) -> tuple[Phase, str]:
    """One phase of a request, as `serve.made_up` asks for it."""
    match given:
        case None:
            return "whole", ""
        case {"phase": "prefill" | "decode" as phase, "cache": str(cache)}:
            return phase, cache
    msg = f"made_up is {given!r}, and wants a phase, prefill or decode, and the name of a cache"
    raise refused(msg, code="invalid_value", param="made_up")


class Telling:
    """Hears of tokens from a ghost, and writes them to a connection."""

    def __init__(
        self, connection: Connection, asked: Asked, tokens: int, ending: FinishReason
    ) -> None:
        self.is_stream = bool(asked.chat.stream)
        self.cancel: Callable[[], None] = lambda: None
        self._connection = connection
        self._asked = asked
        self._tokens = tokens
        self._ending = ending
        self._answer = Answer(secrets.token_hex(8), asked.chat.model)
        self._stops = StopWatch(asked.chat.stops) if asked.chat.stops else None
        self._told = 0
        self._has_begun = False
        shown = self._answer.event({"content": "@"})
        self._before, self._after = shown.split(b"@")

    def gave(self, tokens: int) -> None:
        """Write the words up to this many, each an event."""
        if not self.is_stream:
            return
        events = []
        while self._told < tokens and not self._has_stopped:
            text = self._asked.word(self._told)
            self._told += 1
            text = self._stops.push(text) if self._stops is not None else text
            if text:
                events.append(self._before + text.encode() + self._after)
        if events:
            self._send(b"".join(events))
        if self._has_stopped:
            self.cancel()
            self._end("stop")

    def finished(self) -> None:
        """Write the rest."""
        if self.is_stream:
            if not self._has_stopped:
                rest = self._stops.finish() if self._stops is not None else ""
                if rest:
                    self._send(self._before + rest.encode() + self._after)
                self._end(self._ending)
            return
        text = "".join(map(self._asked.word, range(self._tokens)))
        tokens, ending = self._tokens, self._ending
        if self._stops is not None:
            shown = self._stops.push(text) + self._stops.finish()
            if self._stops.has_stopped:
                ending, tokens = "stop", shown.count(" ") + 1
            text = shown
        body = self._answer.whole(text, ending, self._asked.prompt_tokens, tokens)
        self._connection.whole(200, JSON, body)

    def dropped(self) -> None:
        """The ghost died."""
        self._connection.abort()

    @property
    def _has_stopped(self) -> bool:
        return self._stops is not None and self._stops.has_stopped

    def _send(self, events: bytes) -> None:
        if self._has_begun:
            self._connection.part(events)
            return
        self._has_begun = True
        opening = self._answer.event({"role": "assistant", "content": ""})
        self._connection.begin(EVENTS, opening + events)

    def _end(self, ending: FinishReason) -> None:
        last = self._answer.event({}, ending)
        if self._asked.chat.wants_usage:
            last += self._answer.usage_event(self._asked.prompt_tokens, self._told)
        if not self._has_begun:  # all that was said is a stop string
            self._send(last)
            last = b""
        self._connection.end(last + b"data: [DONE]\n\n")
