"""Engines elsewhere: whom a node may speak to, with which key, and when it counts as up."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from polypod.errors import EngineError, InputError
from polypod.serve.engines.openai_url import Remote, RemotePatience, Remotes, read_url
from polypod.serve.engines.spec import Endpoint
from polypod.serve.keeper import Down, Up


@pytest.mark.parametrize(
    ("text", "chat"),
    [
        ("a=https://api.example/v1", "https://api.example:443/v1/chat/completions"),
        ("a=https://api.example/v1/", "https://api.example:443/v1/chat/completions"),
        ("a=https://api.example:8443/paas/v4", "https://api.example:8443/paas/v4/chat/completions"),
        ("a=http://10.0.0.7:8000/v1", "http://10.0.0.7:8000/v1/chat/completions"),
        ("a=http://[::1]:8000/v1", "http://[::1]:8000/v1/chat/completions"),
        ("a=http://localhost/v1", "http://localhost:80/v1/chat/completions"),
    ],
)
def test_a_url_is_a_host_and_a_path(text: str, chat: str) -> None:
    assert read_url(text).endpoint.chat_url == chat


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("https://api.example/v1", "say NAME=URL"),
        ("A b=https://api.example/v1", "say NAME=URL"),
        ("a=ftp://api.example/v1", "no URL of http or https"),
        ("a=https:///v1", "no URL of http or https"),
        ("a=http://api.example/v1", "over http a host is an address"),
        ("a=https://me:secret@api.example/v1", "its key goes in POLYPOD_KEY_A"),
        ("a=https://api.example/v1?key=secret", "its key goes in POLYPOD_KEY_A"),
        ("a=https://api.example:99999/v1", "Port out of range"),
    ],
)
def test_what_may_not_be_said_is_refused_and_no_secret_repeated(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        read_url(text)
    assert "secret" not in str(raised.value)


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPOD_KEY_BIG_ONE", "sesame")
    remote = read_url("big-one=https://api.example/v1")

    assert remote.endpoint.headers == {"Authorization": "Bearer sesame"}
    assert read_url("other=https://api.example/v1").endpoint.headers == {}


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
QUICK = RemotePatience(answer_s=2.0, watch_every_s=0.02, missed=2)


def models(*names: str) -> web.Response:
    return web.json_response({"data": [{"id": name} for name in names]})


async def served(answer: Answer, test: Callable[[Remote], Awaitable[None]]) -> None:
    app = web.Application()
    app.router.add_get("/v1/models", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    endpoint = Endpoint(host="127.0.0.1", port=port, secret="sesame")
    try:
        await test(Remote(name="far", endpoint=endpoint))
    finally:
        await runner.cleanup()


def start(answer: Answer) -> list[Up | Down]:
    told: list[Up | Down] = []

    async def tell(word: Up | Down) -> None:
        told.append(word)

    async def test(remote: Remote) -> None:
        remotes = Remotes([(remote, "m")], tell, patience=QUICK)
        await remotes.start()
        await remotes.stop()

    asyncio.run(served(answer, test))
    return told


def test_one_that_has_the_model_is_up_and_heard_its_key() -> None:
    heard: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        heard.append(request.headers.get("authorization"))
        return models("other", "m")

    (up,) = start(answer)

    assert isinstance(up, Up)
    assert (up.replica, up.epoch, up.endpoint.secret) == ("far", 1, "sesame")
    assert heard == ["Bearer sesame"]


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (lambda: models("other"), r"has no model 'm'; it has other"),
        (lambda: models(), r"it has none"),
        (lambda: web.Response(status=401), r"refuses the key \(401\); put a right one in POLYPOD_KEY_FAR"),
        (lambda: web.Response(status=302, headers={"location": "http://127.0.0.1:1/"}), r"sends elsewhere \(302\), which is not followed"),
        (lambda: web.Response(status=500), "answers 500"),
        (lambda: web.Response(text="<html>"), "no list of models"),
        (lambda: web.Response(text=json.dumps({"data": [1]})), "no list of models"),
    ],
)  # fmt: skip
def test_one_that_is_of_no_use_says_why(reply: Callable[[], web.Response], says: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return reply()

    with pytest.raises(EngineError, match=says):
        start(answer)


def test_one_that_is_not_there_says_so() -> None:
    async def main() -> None:
        async def tell(_: Any) -> None: ...

        endpoint = Endpoint(host="127.0.0.1", port=1)
        await Remotes([(Remote(name="far", endpoint=endpoint), "m")], tell, patience=QUICK).start()

    with pytest.raises(EngineError, match=r"replica far at http://127\.0\.0\.1:1 does not answer"):
        asyncio.run(main())


def test_it_is_down_after_some_missed_answers_and_up_again_with_a_good_one() -> None:
    told: asyncio.Queue[Up | Down] = asyncio.Queue()
    state = {"good": True, "asked": 0}

    async def answer(_: web.Request) -> web.Response:
        state["asked"] += 1
        return models("m") if state["good"] else web.Response(status=503)

    async def test(remote: Remote) -> None:
        remotes = Remotes([(remote, "m")], told.put, patience=QUICK)
        await remotes.start()
        first = await told.get()
        state["good"] = False
        state["asked"] = 0
        down = await told.get()
        assert state["asked"] >= QUICK.missed  # one missed answer is no death
        state["good"] = True
        second = await told.get()
        await remotes.stop()
        assert isinstance(first, Up)
        assert isinstance(down, Down)
        assert isinstance(second, Up)
        assert (first.epoch, down.epoch, second.epoch) == (1, 1, 2)
        assert down.reason == "answers 503 when asked for its models"

    asyncio.run(served(answer, test))


def test_one_that_has_the_model_and_does_not_answer_is_tried_again() -> None:
    """What is told of a start may fail, as a warm-up does."""
    told: list[Up | Down] = []
    state = {"good": True}

    async def answer(_: web.Request) -> web.Response:
        return models("m") if state["good"] else web.Response(status=503)

    async def test(remote: Remote) -> None:
        is_over = asyncio.Event()

        async def tell(word: Up | Down) -> None:
            told.append(word)
            state["good"] = isinstance(word, Down) or len(told) > 2
            if len(told) == 3:
                msg = "it does not answer"
                raise EngineError(msg)
            if len(told) == 4:
                is_over.set()

        remotes = Remotes([(remote, "m")], tell, patience=QUICK)
        await remotes.start()
        await asyncio.wait_for(is_over.wait(), 10)
        await remotes.stop()

    asyncio.run(served(answer, test))
    assert [type(word) for word in told] == [Up, Down, Up, Up]
    assert [word.epoch for word in told] == [1, 1, 2, 3]


def test_it_comes_and_goes_under_other_names_and_its_epochs_count_on() -> None:
    told: list[Up | Down] = []

    async def tell(word: Up | Down) -> None:
        told.append(word)

    async def answer(_: web.Request) -> web.Response:
        return models("m", "n")

    async def test(remote: Remote) -> None:
        remotes = Remotes([(remote, "m")], tell, patience=QUICK)
        await remotes.start()
        await remotes.check(remote, "n")
        with pytest.raises(EngineError, match=r"replica far at .* has no model 'o'; it has m, n"):
            await remotes.check(remote, "o")
        await remotes.add("far.2", remote, "n")
        with pytest.raises(EngineError, match=r"replica far\.3 at .* has no model 'o'"):
            await remotes.add("far.3", remote, "o")
        remotes.let_end("far")
        assert remotes.epoch("far") == 1
        await remotes.remove("far")
        await remotes.add("far", remote, "m")
        assert remotes.epoch("far") == 2
        await remotes.stop()

    asyncio.run(served(answer, test))
    assert [(word.replica, word.epoch) for word in told] == [("far", 1), ("far.2", 1), ("far", 2)]


@pytest.mark.parametrize(
    ("metrics", "heard"),
    [
        ('vllm:num_requests_running{engine="0"} 5.0\nvllm:num_requests_waiting{engine="0"} 2.0', (5, 2)),
        ("sglang:num_running_reqs 1\nsglang:num_queue_reqs 0", (1, 0)),
    ],
)  # fmt: skip
def test_one_with_an_engines_metrics_says_how_busy_it_is(metrics: str, heard: tuple[int, int]) -> None:  # fmt: skip
    loads: asyncio.Queue[tuple[str, int, Any]] = asyncio.Queue()

    async def listed(_: web.Request) -> web.Response:
        return models("x" * 100_000, "m")

    async def measured(_: web.Request) -> web.Response:
        return web.Response(text=metrics)

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/v1/models", listed)
        app.router.add_get("/metrics", measured)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        endpoint = Endpoint(host="127.0.0.1", port=runner.addresses[0][1])

        async def tell(_: Any) -> None: ...

        remotes = Remotes(
            [(Remote(name="far", endpoint=endpoint), "m")],
            tell,
            lambda *said: loads.put_nowait(said),
            QUICK,
        )
        await remotes.start()
        replica, epoch, load = await loads.get()
        assert (replica, epoch, (load.running, load.waiting)) == ("far", 1, heard)
        await remotes.stop()
        await runner.cleanup()

    asyncio.run(main())
