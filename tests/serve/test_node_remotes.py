"""A node with one engine of its own and one behind a URL."""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from polypod.errors import EngineError, InputError
from polypod.policy.events import LoadReported
from polypod.record import Step, read
from polypod.serve.carrying import Carrying
from polypod.serve.change import Move
from polypod.serve.engines.load import EngineLoad
from polypod.serve.engines.openai_url import Remote
from polypod.serve.engines.spec import Endpoint
from polypod.serve.http.tls import tls_context
from polypod.serve.listen import bind
from polypod.serve.node import LiveNode
from tests.serve.serving import check_record
from tests.serve.test_control import Scene, said, scene_of
from tests.serve.test_models_come_and_go import plan_with
from tests.serve.test_node import TinyEngine, prepared

MODEL = "SmolLM2-135M-Instruct"


class Elsewhere:
    """An OpenAI endpoint of somebody else's, with one model and a key."""

    def __init__(self, *models: str) -> None:
        self.models = list(models) or [MODEL]
        self.asked: list[str] = []  # for which models
        self.heads: list[tuple[str | None, str | None]] = []
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def start(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Remote:
        app = web.Application()
        app.router.add_get("/own/v2/models", self._models)
        app.router.add_post("/own/v2/chat/completions", self._chat)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        at = "127.0.0.1" if host == "localhost" else host
        await web.TCPSite(self._runner, at, 0, ssl_context=tls).start()
        port = self._runner.addresses[0][1]
        endpoint = Endpoint(
            host=host,
            port=port,
            tls=tls is not None,
            path_prefix="/own/v2",
            secret="sesame",
        )
        return Remote(name="far", endpoint=endpoint)

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": model} for model in self.models]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        headers = request.headers
        self.heads.append((headers.get("authorization"), headers.get("cookie")))
        self.asked.append((await request.json())["model"])
        await self.goes_on.wait()
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        chunks = [{"choices": [{"index": 0, "delta": {"content": "far away"}, "finish_reason": "stop"}]}]  # fmt: skip
        chunks.append({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
        for chunk in chunks:
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response


def node(tmp_path: Path, *remotes: Remote) -> LiveNode:
    tiny = TinyEngine(broken=tmp_path / "broken")
    made = replace(prepared(tmp_path), remotes=remotes)
    return LiveNode(made, bind("127.0.0.1", 0), engines={"llama.cpp": tiny})


def steps(folder: Path) -> list[Step]:
    (record,) = folder.rglob("record.jsonl")
    return [line for line in read(record) if isinstance(line, Step)]


def test_a_url_is_one_more_replica_and_hears_its_own_key_alone(tmp_path: Path) -> None:
    elsewhere = Elsewhere()

    async def run() -> None:
        remote = await elsewhere.start()
        stop = asyncio.Event()
        async with node(tmp_path, remote) as live:
            serving = asyncio.create_task(live.serve(stop))
            near = await live.ask("count", max_tokens=3)
            far = await live.ask("count", max_tokens=3, replica="far")
            assert {near.replica, far.replica} <= {"llama.cpp-0", "far"}
            assert (far.text, far.replica) == ("far away", "far")
            elsewhere.goes_on.clear()
            before = len(elsewhere.heads)
            ours = asyncio.create_task(live.ask("count", max_tokens=3, replica="far"))
            while len(elsewhere.heads) == before:
                await asyncio.sleep(0.01)
            for running in (7, 0):
                load = EngineLoad(running=running, waiting=running // 3, kv_fraction=None)
                live._hear_load("far", 1, load)
            elsewhere.goes_on.set()
            await ours
            stop.set()
            await serving
        await elsewhere.stop()

    asyncio.run(run())

    told = [step.event for step in steps(tmp_path) if isinstance(step.event, LoadReported)]
    assert [(one.replica, one.epoch, one.running) for one in told] == [
        ("far", 1, 8),
        ("far", 1, 0),
    ]  # of 9, one is ours
    assert len(elsewhere.heads) >= 5  # the warm-up's four, and what was asked
    assert set(elsewhere.heads) == {("Bearer sesame", None)}


CERTIFICATE = Path(__file__).parent / "http" / "localhost.pem"  # signs itself, and has its key


@pytest.fixture
def fresh_trust() -> Iterator[None]:
    """What is trusted is read anew, for this test alone."""
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()


@pytest.mark.parametrize("called", ["localhost", "127.0.0.2", "by nobody who trusts it"])
def test_over_tls_the_certificate_is_one_that_is_trusted_and_of_that_host(
    tmp_path: Path, fresh_trust: None, monkeypatch: pytest.MonkeyPatch, called: str
) -> None:
    """Referee: OpenSSL's own checks. A host of another name, and a certificate nobody vouches for, are of no use."""
    if called != "by nobody who trusts it":
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    elsewhere = Elsewhere()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(CERTIFICATE)

    async def run() -> None:
        remote = await elsewhere.start(
            server, "127.0.0.2" if called == "127.0.0.2" else "localhost"
        )
        live = node(tmp_path, remote)
        try:
            if called == "localhost":
                await _ask_far(live)
            else:
                with pytest.raises(EngineError, match=r"replica far at https://.* does not answer: ClientConnectorCertificateError"):  # fmt: skip
                    await live.__aenter__()
        finally:
            await elsewhere.stop()

    asyncio.run(run())

    assert {key for key, _ in elsewhere.heads} == ({"Bearer sesame"} if called == "localhost" else set())  # fmt: skip


async def _ask_far(live: LiveNode) -> None:
    stop = asyncio.Event()
    async with live:
        serving = asyncio.create_task(live.serve(stop))
        far = await live.ask("count", max_tokens=3, replica="far")
        assert (far.text, far.replica) == ("far away", "far")
        stop.set()
        await serving


def test_one_without_the_model_stops_the_start_and_leaves_nothing(tmp_path: Path) -> None:
    elsewhere = Elsewhere("another")

    async def run() -> None:
        remote = await elsewhere.start()
        live = node(tmp_path, remote)
        try:
            with pytest.raises(EngineError, match=rf"replica far .* has no model '{MODEL}'; it has another"):  # fmt: skip
                await live.__aenter__()
        finally:
            await elsewhere.stop()

    asyncio.run(run())

    assert not list(tmp_path.rglob("*.sock"))


def test_two_replicas_of_one_name_are_refused(tmp_path: Path) -> None:
    twin = Remote(name="llama.cpp-0", endpoint=Endpoint(host="127.0.0.1", port=1))
    made = replace(prepared(tmp_path), remotes=(twin,))
    with (
        bind("127.0.0.1", 0) as listener,
        pytest.raises(InputError, match=r"two replicas are called llama\.cpp-0"),
    ):
        LiveNode(made, listener)


def play(tmp_path: Path, *models: str, test: Callable[[Scene, Elsewhere], Awaitable[None]]) -> None:
    """A node with one model here, m, and these elsewhere."""
    elsewhere = Elsewhere(*models)

    async def run() -> None:
        remote = await elsewhere.start()
        try:
            async with scene_of(tmp_path, plan_with("m"), remote) as scene:
                await test(scene, elsewhere)
        finally:
            await elsewhere.stop()

    asyncio.run(asyncio.wait_for(run(), 60))
    check_record(tmp_path)


def test_another_first_model_is_another_replica_of_the_same_url(tmp_path: Path) -> None:
    async def test(scene: Scene, elsewhere: Elsewhere) -> None:
        words = await scene.order(plan_with("m", "o"))
        assert said(words) == ["add None", "start o-0"]  # and it stays
        words = await scene.order(plan_with("n", "m"))
        assert words[-1].state == "applied", words[-1]
        assert set(said(words)) == {"add None", "start n-0", "start far.2", "remove None", "retire o-0", "retire far"}  # fmt: skip
        assert said(words).index("start far.2") < said(words).index("retire far")
        assert await scene.replicas() == {"m-0": "up", "n-0": "up", "far.2": "up"}
        elsewhere.asked.clear()
        async with scene.asked(2, "n", x_polypod_replica="far.2") as response:
            assert "far away" in await response.text()
        assert elsewhere.asked == ["n"]
        words = await scene.order(plan_with("n", "m", context=4096))
        assert words[-1].state == "applied", words[-1]
        assert set(await scene.replicas()) == {"m-0.2", "n-0.2", "far.3"}

    play(tmp_path, "m", "n", test=test)


def test_what_is_elsewhere_has_no_other_model_and_nothing_is_begun(tmp_path: Path) -> None:
    async def test(scene: Scene, elsewhere: Elsewhere) -> None:
        for dry_run in (True, False):
            (word,) = await scene.order(plan_with("n", "m"), dry_run=dry_run)
            assert word.state == "refused"
            assert "replica far at http://127.0.0.1:" in word.note
            assert "has no model 'n'; it has m; engines elsewhere serve the plan's first model: name one first that it has, or stop the node" in word.note  # fmt: skip
        assert await scene.replicas() == {"m-0": "up", "far": "up"}
        assert await scene.models() == ["m"]
        assert (await scene.order(plan_with("m", queue_requests=7)))[-1].state == "applied"

    play(tmp_path, "m", test=test)


def test_a_change_that_fails_later_on_leaves_the_url_the_replica_it_was(tmp_path: Path) -> None:
    async def test(scene: Scene, elsewhere: Elsewhere) -> None:
        words = await scene.order(plan_with("m", context=4096, sequences=13))
        assert words[-1].state == "failed"
        assert await scene.replicas() == {"m-0": "up", "far": "up"}
        seat = scene.node.seats["far"]
        up = msgspec.structs.replace(seat.up, replica="far.2", model="n")
        carrying = Carrying(scene.node, {"far.2": replace(seat, up=up)}, 5.0, _nobody)
        with pytest.raises(EngineError, match="has no model 'n'"):
            await carrying.carry_out((Move(does="retire", name="far"), Move(does="start", name="far.2")))  # fmt: skip
        assert await scene.replicas() == {"m-0": "up", "far": "up"}
        assert scene.node._remotes.epoch("far") == 2
        async with scene.asked(2, "m", x_polypod_replica="far") as response:
            assert "far away" in await response.text()

    play(tmp_path, "m", test=test)


async def _nobody(_: object) -> None: ...
