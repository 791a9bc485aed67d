"""Engines that run elsewhere, behind an OpenAI-compatible URL that a person named: `--engine-url NAME=https://host/v1`.

Nobody else can name one: a plan has no place for a URL, and a redirect is not followed. A host is named by https, whose certificate says
who answers, or by an address, which no name server can turn elsewhere. The key is read from POLYPOD_KEY_NAME in the environment; it is in no
plan, record, log or command line, and goes to that host alone.

There is no process to start: the URL is asked for its models, at first and ever again, and is a replica while it has the node's. Of another plan it is another
replica, where the plan asks another model of it.
"""

import asyncio
import ipaddress
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from polypod.errors import EngineError, InputError
from polypod.serve.engines.load import EngineLoad, read_any
from polypod.serve.engines.spec import Endpoint
from polypod.serve.http.tls import tls_context
from polypod.serve.keeper import Down, Tell, Up

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,40}", re.ASCII)
_LOCAL: Final = ("localhost",)
_LOG: Final = logging.getLogger("polypod.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """One URL."""

    name: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class RemotePatience:
    """How long to wait for what."""

    answer_s: float = 10.0  # for the list of models
    watch_every_s: float = 5.0
    missed: int = 3  # answers in a row, until it counts as down


def key_variable(name: str) -> str:
    """The environment variable with a URL's key; `big-one.2` is the same URL's second replica.

    >>> key_variable("big-one"), key_variable("big-one.2")
    ('POLYPOD_KEY_BIG_ONE', 'POLYPOD_KEY_BIG_ONE')
    """
    return f"POLYPOD_KEY_{name.partition('.')[0].upper().replace('-', '_')}"


def read_url(text: str) -> Remote:
    """Read NAME=URL, and the key from the environment.

    >>> read_url("big=https://api.example/v1").endpoint.chat_url
    'https://api.example:443/v1/chat/completions'

    Raises `InputError` for what may not be said so, with how it may.
    """
    name, equals, url = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        msg = f"--engine-url {text!r}: say NAME=URL, with a name of small letters, digits and dashes, as big=https://host/v1"
        raise InputError(msg)
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        msg = f"--engine-url {name}=...: {error}"
        raise InputError(msg) from error
    host = parts.hostname
    if parts.scheme not in ("https", "http") or host is None:
        msg = f"--engine-url {name}={url}: no URL of http or https"
        raise InputError(msg)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        msg = f"--engine-url {name}=...: a URL is a host and a path; its key goes in {key_variable(name)}"
        raise InputError(msg)
    if parts.scheme == "http" and not _is_address(host):
        msg = f"--engine-url {name}={url}: over http a host is an address, for a name may be turned elsewhere and the key with it; use https, or the address"
        raise InputError(msg)
    endpoint = Endpoint(
        host=host,
        port=port or {"https": 443, "http": 80}[parts.scheme],
        tls=parts.scheme == "https",
        path_prefix=parts.path.rstrip("/"),
        secret=os.environ.get(key_variable(name)),
    )
    return Remote(name=name, endpoint=endpoint)


Report = Callable[[str, int, EngineLoad], None]
"""Hears of a replica, by its start, how busy it says it is with whatever anybody asked of it."""


class Remotes:
    """Watches the URLs, and tells of them what a supervisor tells of processes. Each is one replica, or two while one takes the place of another."""

    def __init__(
        self,
        remotes: Sequence[tuple[Remote, str]],
        tell: Tell,
        report: Report = lambda *_: None,
        patience: RemotePatience | None = None,
    ) -> None:
        self._tell, self._report = tell, report
        self._patience = patience or RemotePatience()
        self._watches = {
            remote.name: self._watch(remote.name, remote, model) for remote, model in remotes
        }
        self._epochs: dict[str, int] = {}  # the latest, of those that were taken away
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def _watch(self, name: str, remote: Remote, model: str, epoch: int = 0) -> "_Watch":
        words = self._tell, self._report
        return _Watch(replace(remote, name=name), model, words, self._patience, epoch)

    async def start(self) -> None:
        """Wait until all have their model. Raises `EngineError` for one that does not answer, or has other models."""
        await asyncio.gather(*(watch.start() for watch in self._watches.values()))
        self._tasks = {
            name: asyncio.create_task(watch.keep()) for name, watch in self._watches.items()
        }

    async def check(self, remote: Remote, model: str) -> None:
        """Raises `EngineError` for one that does not answer, or has not this model; nothing is told."""
        await self._watch(remote.name, remote, model).check()

    async def add(self, name: str, remote: Remote, model: str) -> None:
        """Watch it under this name too. Raises as `start` does, when it is not watched."""
        watch = self._watch(name, remote, model, self._epochs.get(name, 0))
        try:
            await watch.start()
        finally:
            self._epochs[name] = watch.epoch
        self._watches[name] = watch
        self._tasks[name] = asyncio.create_task(watch.keep())

    def let_end(self, name: str) -> None:
        """Watch it no more, and tell nothing more of it: it is to go soon."""
        self._tasks[name].cancel()

    async def remove(self, name: str) -> None:
        """Forget it. Says no `Down`. It may be added again, in a later epoch."""
        self._epochs[name] = self._watches.pop(name).epoch
        task = self._tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def epoch(self, name: str) -> int:
        """Of its latest start."""
        return self._watches[name].epoch

    async def stop(self) -> None:
        """Watch no more."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


class _Watch:
    """`remote` has the replica's name."""

    def __init__(
        self,
        remote: Remote,
        model: str,
        words: tuple[Tell, Report],
        patience: RemotePatience,
        epoch: int,
    ) -> None:
        self._remote = remote
        self._model = model
        self._tell, self._report = words
        self._patience = patience
        self.epoch = epoch

    async def check(self) -> None:
        problem = await self._problem()
        if problem is not None:
            msg = f"replica {self._remote.name} at {self._remote.endpoint.origin} {problem}"
            raise EngineError(msg)

    async def start(self) -> None:
        await self.check()
        await self._up()

    async def keep(self) -> None:
        """Until cancelled: down after some missed answers in a row, up again with the first good one."""
        missed = 0
        while True:
            await asyncio.sleep(self._patience.watch_every_s)
            problem = await self._problem()
            is_down = missed >= self._patience.missed
            if problem is None:
                if is_down and not await self._is_up():
                    continue
                missed = 0
                await self._report_load()
            elif not is_down:
                missed += 1
                if missed >= self._patience.missed:
                    await self._tell(self._down(problem))

    async def _is_up(self) -> bool:
        """Whether it is up again; one that has the model and does not answer is asked again later."""
        try:
            await self._up()
        except EngineError as error:
            _LOG.warning("%s", error)
            return False
        return True

    async def _up(self) -> None:
        self.epoch += 1
        up = Up(
            replica=self._remote.name,
            epoch=self.epoch,
            endpoint=self._remote.endpoint,
            process=0,
            load_s=0.0,
        )
        await self._tell(up)

    def _down(self, problem: str) -> Down:
        return Down(replica=self._remote.name, epoch=self.epoch, reason=problem, log_tail=())

    async def _report_load(self) -> None:
        """Where the host has an engine's own metrics at /metrics; an answer that is none says nothing."""
        answered = await self._get("/metrics")
        if isinstance(answered, str) or answered[0] != 200:
            return
        load = read_any(answered[1].decode(errors="replace"))
        if load is not None:
            self._report(self._remote.name, self.epoch, load)

    async def _problem(self) -> str | None:
        """Why it is of no use; None where it has the model. Nothing that it says is repeated: it may be anything."""
        answered = await self._get(f"{self._remote.endpoint.path_prefix}/models")
        if isinstance(answered, str):
            return f"does not answer: {answered}"
        status, body = answered
        return self._lacking(body) if status == 200 else _meaning(status, self._remote.name)

    async def _get(self, path: str) -> tuple[int, bytes] | str:
        """Status and body, or the kind of failure. No redirect is followed."""
        endpoint = self._remote.endpoint
        timeout = aiohttp.ClientTimeout(total=self._patience.answer_s)
        context = tls_context() if endpoint.tls else True
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=endpoint.headers) as client,
                client.get(endpoint.origin + path, allow_redirects=False, ssl=context) as response,
            ):
                body = bytearray()
                async for part in response.content.iter_any():
                    body += part
                    if len(body) > _LONGEST_BYTES:
                        return "TooLong"
                return response.status, bytes(body)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return type(error).__name__

    def _lacking(self, body: bytes) -> str | None:
        try:
            models = msgspec.json.decode(body, type=_Models).data
        except msgspec.DecodeError:
            return "answers with no list of models"
        names = [one.id for one in models]
        if self._model in names:
            return None
        shown = ", ".join(name[:60] for name in names[:5]) or "none"
        return f"has no model {self._model!r}; it has {shown}"


_LONGEST_BYTES: Final = 4 << 20


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def _meaning(status: int, name: str) -> str:
    """What a status says about how the URL was named."""
    if status in (401, 403):
        return f"refuses the key ({status}); put a right one in {key_variable(name)}"
    if 300 <= status < 400:
        return f"sends elsewhere ({status}), which is not followed; name the place itself"
    return f"answers {status} when asked for its models"


def _is_address(host: str) -> bool:
    if host in _LOCAL:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
