"""One chat request as a client sees it, timed: for warming an engine up, and for showing that the endpoint answers."""

import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import msgspec

from polypod.errors import RunError
from polypod.serve.http.tls import tls_context

_PREFIX: Final = b"data:"
_DONE: Final = b"[DONE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An answer and when it came. Times are from sending the request; `tpot_s` is None for a single token."""

    text: str
    input_tokens: int
    output_tokens: int
    ttft_s: float
    tpot_s: float | None
    replica: str | None


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, Any] | None = None


_CHUNK: Final = msgspec.json.Decoder(_Chunk)


class Asker:
    """A client of one chat endpoint, over TCP or a unix socket."""

    def __init__(
        self,
        origin: str,
        *,
        socket: Path | None = None,
        headers: dict[str, str] | None = None,
        path_prefix: str = "/v1",
    ) -> None:
        trust = tls_context() if origin.startswith("https://") else True
        connector = (  # llama.cpp closes a connection after a stream, whatever its headers say
            aiohttp.UnixConnector(path=str(socket), force_close=True)
            if socket
            else aiohttp.TCPConnector(force_close=True, ssl=trust)
        )
        self._url = f"{origin}{path_prefix}/chat/completions"
        self._session = aiohttp.ClientSession(connector=connector, headers=headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def ask(
        self, model: str, question: str, *, max_tokens: int, replica: str | None = None
    ) -> Asked:
        """Ask greedily, streamed. Raises `RunError` where there is no answer."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"x-polypod-replica": replica} if replica else {}
        sent_s = time.monotonic()
        try:
            async with self._session.post(self._url, json=body, headers=headers) as response:
                if response.status != 200:
                    text = await response.text()
                    msg = f"{self._url} answered {response.status}: {text[:500]}"
                    raise RunError(msg)
                answer = _Answer()
                async for line in response.content:
                    answer.take(line, time.monotonic() - sent_s)
                return answer.asked(response.headers.get("x-polypod-replica"))
        except aiohttp.ClientError as error:
            msg = f"{self._url} did not answer: {error}"
            raise RunError(msg) from error


class _Answer:
    """A stream being read."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._first_s = self._last_s = 0.0
        self._usage: _Usage | None = None

    def take(self, line: bytes, at_s: float) -> None:
        data = line.removeprefix(_PREFIX).strip()
        if not line.startswith(_PREFIX) or data == _DONE:
            return
        chunk = _CHUNK.decode(data)
        if chunk.error is not None:
            msg = f"the answer broke off: {chunk.error.get('message', chunk.error)}"
            raise RunError(msg)
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices:
            self._last_s = at_s  # the last one may bear no text: the token that ends the answer was computed too
            if choice.delta.content:
                self._first_s = self._first_s or at_s
                self._texts.append(choice.delta.content)

    def asked(self, replica: str | None) -> Asked:
        usage = self._usage
        if usage is None or not self._texts:
            msg = "the engine's answer has no text or no usage"
            raise RunError(msg)
        gaps = usage.completion_tokens - 1
        return Asked(
            text="".join(self._texts),
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            ttft_s=self._first_s,
            tpot_s=(self._last_s - self._first_s) / gaps if gaps > 0 else None,
            replica=replica,
        )
