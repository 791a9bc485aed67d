"""Ghosts over HTTP: what a client sees of them, whole, gone on with, or struck by a fault; and their times, on a clock that jumps."""

import asyncio
import json
import selectors
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import uvloop

from polypod.cost.steptime import StepTime
from polypod.engine import EngineLimits, ReplicaEmulation
from polypod.policy.events import ReplicaUp
from polypod.serve.engines.ghost import GhostFile
from polypod.serve.engines.ghost_replica import GhostReplica
from polypod.serve.engines.ghost_server import GhostServer
from polypod.serve.engines.ghost_text import natural_tokens, prompt_hash, words, words_right

MODEL = "made-up"
SECRET = "boo"
ASKED = [{"role": "user", "content": "How far is it?"}]
PROMPT = prompt_hash([("user", "How far is it?")])


def ghost_up(name: str = "g-0", *, step_s: float = 0.001, sequences: int = 4, kv_tokens: int = 10_000) -> ReplicaUp:  # fmt: skip
    return ReplicaUp(
        at_s=0.0,
        replica=name,
        epoch=1,
        model=MODEL,
        pool="main",
        role="both",
        step_time=StepTime(tokens=(1, 101), seconds=(step_s, 2 * step_s), kv_token_s=0.0, pair_s=0.0),
        context_tokens=2048,
        kv_capacity_tokens=kv_tokens,
        max_sequences=sequences,
        max_step_tokens=512,
    )  # fmt: skip


@asynccontextmanager
async def haunted(tmp_path: Path, *ups: ReplicaUp, mean_tokens: float = 20.0):
    """A server of ghosts, and a client of it that knows the secret."""
    server = GhostServer(GhostFile(ghosts=ups, mean_output_tokens={MODEL: mean_tokens}), SECRET)
    path = str(tmp_path / "ghosts.sock")
    listening = await asyncio.get_running_loop().create_unix_server(server.connection, path)
    headers = {"Authorization": f"Bearer {SECRET}"}
    async with aiohttp.ClientSession("http://ghosts", connector=aiohttp.UnixConnector(path, limit=0), headers=headers) as client:  # fmt: skip
        yield server, client
    listening.close()


def played(tmp_path: Path, test, *ups: ReplicaUp, **more) -> None:
    async def main():
        async with haunted(tmp_path, *(ups or (ghost_up(),)), **more) as (server, client):
            await test(server, client)

    uvloop.run(main())


def body(**more):
    return {"model": MODEL, "messages": ASKED, "stream": True, "stream_options": {"include_usage": True}} | more  # fmt: skip


async def read(client, name: str = "g-0", **more):
    """What a stream says: its text, its finish reason, its usage, and whether it said that this is all."""
    text, ending, usage, is_done = "", None, None, False
    async with client.post(f"/r/{name}/v1/chat/completions", json=body(**more)) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content", "")
                    ending = choice["finish_reason"] or ending
            is_done = is_done or line.startswith(b"data: [DONE]")
    return text, ending, usage, is_done


def test_a_stream_is_the_words_of_its_prompt_and_ends_as_asked(tmp_path):
    async def test(_, client):
        text, ending, usage, is_done = await read(client, max_tokens=7, ignore_eos=True)

        assert (text, ending, is_done) == (words(PROMPT, 0, 7), "length", True)
        assert usage == {"prompt_tokens": 14 // 4 + 4, "completion_tokens": 7, "total_tokens": 14}

    played(tmp_path, test)


def test_an_answer_ends_by_itself_where_its_prompt_says(tmp_path):
    async def test(_, client):
        text, ending, _, _ = await read(client)

        assert (text, ending) == (words(PROMPT, 0, natural_tokens(PROMPT, 20.0)), "stop")

    played(tmp_path, test)


def test_in_one_piece_it_is_the_same(tmp_path):
    async def test(_, client):
        async with client.post("/r/g-0/v1/chat/completions", json={"model": MODEL, "messages": ASKED, "max_tokens": 5, "ignore_eos": True}) as response:  # fmt: skip
            answer = await response.json()

        choice = answer["choices"][0]
        assert choice["message"]["content"] == words(PROMPT, 0, 5)
        assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 5)

    played(tmp_path, test)


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_stop_string_ends_it_and_frees_the_engine(tmp_path, is_stream):
    stop = words(PROMPT, 3, 5)[:-1]  # over two tokens

    async def test(server, client):
        if is_stream:
            text, ending, _, is_done = await read(client, stop=stop, ignore_eos=True)
            assert is_done
        else:
            asked = {"model": MODEL, "messages": ASKED, "stop": [stop], "ignore_eos": True, "max_tokens": 20}  # fmt: skip
            async with client.post("/r/g-0/v1/chat/completions", json=asked) as response:
                choice = (await response.json())["choices"][0]
                text, ending = choice["message"]["content"], choice["finish_reason"]

        assert (text, ending) == (words(PROMPT, 0, 3), "stop")
        assert server.ghosts["g-0"]._aboard == {}

    played(tmp_path, test)


def test_another_ghost_goes_on_where_one_stopped_at_any_byte(tmp_path):
    async def test(_, client):
        whole, *_ = await read(client, name="g-0")
        for cut in range(1, len(whole) + 1):
            given = [*ASKED, {"role": "assistant", "content": whole[:cut]}]
            rest, ending, _, is_done = await read(client, name="g-1", messages=given, continue_final_message=True, add_generation_prompt=False)  # fmt: skip
            assert (whole[:cut] + rest, ending, is_done) == (whole, "stop", True)

    played(tmp_path, test, ghost_up("g-0"), ghost_up("g-1"), mean_tokens=4.0)


def test_what_cannot_be_answered_is_refused_by_name(tmp_path):
    async def refused(client, path="/r/g-0/v1/chat/completions", headers=None, **more):
        async with client.post(path, json=body(**more), headers=headers) as response:
            return response.status, (await response.json())["error"]["code"]

    async def test(_, client):
        long = [{"role": "user", "content": "x" * 9000}]
        assert await refused(client, headers={"Authorization": "Bearer no"}) == (401, "invalid_api_key")  # fmt: skip
        assert await refused(client, model="other") == (404, "model_not_found")
        assert await refused(client, path="/r/g-9/v1/chat/completions") == (404, "not_found")
        assert await refused(client, messages=long) == (400, "context_length_exceeded")
        assert await refused(client, tools=[{"type": "function"}]) == (400, "unsupported_parameter")
        assert await refused(client, max_tokens=0) == (400, "invalid_value")
        assert await refused(client, continue_final_message=True) == (400, "invalid_value")
        async with client.get("/health", headers={"Authorization": ""}) as response:
            assert response.status == 200

    played(tmp_path, test)


def test_a_full_ghost_says_so_and_when_to_come_again(tmp_path):
    async def test(server, client):
        asking = [asyncio.create_task(read(client, ignore_eos=True, max_tokens=50)) for _ in range(2)]  # fmt: skip
        while server.ghosts["g-0"].waiting < 1:
            await asyncio.sleep(0.001)
        async with client.post("/r/g-0/v1/chat/completions", json=body()) as response:
            assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert all(is_done for *_, is_done in await asyncio.gather(*asking))

    played(tmp_path, test, ghost_up(sequences=1, step_s=0.005))


def test_a_client_that_leaves_frees_the_engine(tmp_path):
    async def test(server, client):
        ghost = server.ghosts["g-0"]
        async with client.post("/r/g-0/v1/chat/completions", json=body(ignore_eos=True, max_tokens=2000)) as response:  # fmt: skip
            await response.content.readline()
        while ghost.running or not ghost.counts.cancelled:
            await read(client, max_tokens=1)  # the emulation moves on when somebody looks
        assert ghost.counts.cancelled == 1

    played(tmp_path, test)


def test_one_that_dies_breaks_its_streams_and_is_told_and_lives_again_empty(tmp_path):
    async def test(server, client):
        async with client.get("/news") as news:
            assert await news.content.readline() == b"\n"
            asking = asyncio.create_task(read(client, ignore_eos=True, max_tokens=2000))
            while not server.ghosts["g-0"].running:
                await asyncio.sleep(0.001)
            async with client.post("/r/g-0/fault", json={"what": "die", "for_s": 0.05}) as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ClientError):
                await asking
            with pytest.raises(aiohttp.ClientError):
                await read(client)
            assert (await read(client, name="g-1"))[3]

            told = [json.loads(await news.content.readline()) for _ in range(2)]
            assert [(one["replica"], one["state"]) for one in told] == [("g-0", "down"), ("g-0", "up")]  # fmt: skip
            assert (await read(client))[3]
            assert server.ghosts["g-0"].counts.lives == 2

    played(tmp_path, test, ghost_up("g-0"), ghost_up("g-1"))


def test_one_that_hangs_answers_nobody_and_is_dead_for_a_moment_at_the_end(tmp_path):
    async def test(_, client):
        async with client.get("/news") as news:
            await news.content.readline()
            asking = asyncio.create_task(read(client, ignore_eos=True, max_tokens=100))
            await asyncio.sleep(0.01)
            async with client.post("/r/g-0/fault", json={"what": "hang", "for_s": 0.1}):
                pass
            later = asyncio.create_task(read(client))
            told = [json.loads(await news.content.readline())["state"] for _ in range(2)]
            assert told == ["down", "up"]
            for task in (asking, later):
                with pytest.raises(aiohttp.ClientError):
                    await task
            assert (await read(client))[3]

    played(tmp_path, test)


def test_one_that_flaps_breaks_every_other_request_until_it_is_healed(tmp_path):
    async def test(_, client):
        async def strike(**fault):
            async with client.post("/r/g-0/fault", json=fault) as response:
                return response.status

        assert await strike(what="flap") == 200
        heard = []
        for _ in range(4):
            try:
                heard.append((await read(client))[3])
            except aiohttp.ClientError:
                heard.append(False)
        assert heard == [False, True, False, True]
        assert await strike(what="heal") == 200
        assert [(await read(client))[3] for _ in range(3)] == [True] * 3
        assert await strike(what="vanish") == 400

    played(tmp_path, test)


def test_its_counters_are_called_as_those_of_vllm(tmp_path):
    async def test(_, client):
        await read(client, max_tokens=6, ignore_eos=True)
        async with client.get("/r/g-1/metrics") as response:
            text = await response.text()
        assert 'vllm:generation_tokens_total{engine="g-1",model_name="made-up"} 0\n' in text
        async with client.get("/metrics") as response:
            text = await response.text()
        assert 'vllm:generation_tokens_total{engine="g-0",model_name="made-up"} 6\n' in text
        assert 'vllm:request_success_total{engine="g-0",model_name="made-up"} 1\n' in text

    played(tmp_path, test, ghost_up("g-0"), ghost_up("g-1"))


def test_words_show_what_was_cut_glued_or_said_to_somebody_else():
    said = words(PROMPT, 0, 6)

    assert words_right(PROMPT, said) == 6
    assert words_right(PROMPT, said[:-3]) == 5
    assert words_right(PROMPT, said + said) is None
    assert words_right(PROMPT, said[:10] + said[11:]) is None
    assert words_right(PROMPT + 1, said) is None


# ---- times, on a clock that jumps to whatever is waited for


class JumpingLoop(asyncio.SelectorEventLoop):
    """Nobody waits: time goes on when all there is to do is wait."""

    def __init__(self) -> None:
        self._at_s = 0.0
        super().__init__(_Impatient(self))

    def time(self) -> float:
        return self._at_s


class _Impatient(selectors.SelectSelector):
    def __init__(self, loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        self._loop._at_s += timeout or 0.0
        return super().select(0)


class Ear:
    """Writes down when it hears what."""

    def __init__(self, *, is_stream: bool = True) -> None:
        self.is_stream = is_stream
        self.heard: list[tuple[float, int]] = []
        self.end_s: float | None = None
        self.was_dropped = False

    def gave(self, tokens: int) -> None:
        self.heard.append((asyncio.get_running_loop().time(), tokens))

    def finished(self) -> None:
        self.end_s = asyncio.get_running_loop().time()

    def dropped(self) -> None:
        self.was_dropped = True


def jump(main) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main())


def test_tokens_come_when_the_step_time_says():
    async def main():
        ghost, ear = GhostReplica(ghost_up(step_s=0.010), 0), Ear()
        ghost.submit(ear, prompt_tokens=101, output_tokens=5)
        await asyncio.sleep(1.0)

        # The prompt takes 20 ms, each step after it 10; timers of a loop may be a tick late.
        assert [tokens for _, tokens in ear.heard] == [1, 2, 3, 4, 5]
        assert [at_s for at_s, _ in ear.heard] == pytest.approx([0.02, 0.03, 0.04, 0.05, 0.06], abs=2e-3)  # fmt: skip

    jump(main)


def test_a_ghost_and_the_emulation_alone_agree_on_a_crowd():
    up = ghost_up(step_s=0.004, sequences=3, kv_tokens=300)
    crowd = [(0.013 * n, 50 + 37 * n % 60, 20 + 11 * n % 60) for n in range(24)]

    async def main():
        ghost, ears, loop = GhostReplica(up, 0), [], asyncio.get_running_loop()
        for number, (at_s, prompt_tokens, output_tokens) in enumerate(crowd):
            await asyncio.sleep(at_s - loop.time())
            ears.append(Ear(is_stream=number % 3 != 0))
            ghost.submit(ears[-1], prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        await asyncio.sleep(10.0)

        alone = ReplicaEmulation(up.step_time, EngineLimits(max_sequences=3, max_step_tokens=512, kv_capacity_tokens=300))  # fmt: skip
        firsts, ends = {}, {}
        progress = []
        for number, (at_s, prompt_tokens, output_tokens) in enumerate(crowd):
            progress += alone.advance(at_s)
            alone.submit(at_s, request=number, prompt_tokens=prompt_tokens, output_tokens=output_tokens)  # fmt: skip
        for one in progress + alone.advance(10.0):
            (firsts if one.kind == "first" else ends)[one.request] = one.at_s
        assert alone.preemptions > 0  # the cache is full at times
        assert ghost.preemptions == alone.preemptions
        for number, ear in enumerate(ears):
            counts = [tokens for _, tokens in ear.heard]
            assert counts[-1] == crowd[number][2]
            assert ear.end_s == pytest.approx(ends[number], abs=4e-3)
            if ear.is_stream:
                assert counts == sorted(set(counts))
                assert ear.heard[0][0] == pytest.approx(firsts[number], abs=4e-3)

    jump(main)


def test_a_slow_ghost_takes_as_much_longer_until_it_is_healed():
    async def main():
        ghost = GhostReplica(ghost_up(step_s=0.010), 0)
        ghost.slow(3.0)
        first, then = Ear(is_stream=False), Ear(is_stream=False)
        ghost.submit(first, prompt_tokens=1, output_tokens=10)
        await asyncio.sleep(1.0)
        ghost.slow(1.0)
        ghost.submit(then, prompt_tokens=1, output_tokens=10)
        await asyncio.sleep(1.0)

        assert first.end_s == pytest.approx(0.3, abs=2e-3)
        assert then.end_s == pytest.approx(1.1, abs=2e-3)

    jump(main)
