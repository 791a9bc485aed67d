"""A request over two replicas, driven by the policy, over engines that keep caches in files as llama.cpp does."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import aiohttp
import pytest

from polypod.policy.actions import Decode, Dispatch, Prefill, TransferKv, WakeAt
from polypod.policy.events import KvArrived, KvLost, PrefillFinished, RequestFailed

TOKENS = 5


class Slotted:
    """Keeps the last body that every slot computed, and files of it. What `wrong` names, it does wrong so many times."""

    def __init__(self, lab: ModuleType, folder: Path, **wrong: int) -> None:
        self.lab, self.folder, self.wrong = lab, folder, wrong
        self.slots: dict[int, str] = {}
        self.bodies: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.stands = asyncio.Event()

    async def play(self, visit: Any) -> None:
        path = visit.head.split()[1].decode()
        what = path.partition("action=")[2] or "chat"
        self.asked.append(what)
        if self.wrong.get(what, 0) > 0:
            self.wrong[what] -= 1
            await self.fail(visit, what)
        elif what == "chat":
            await self.chat(visit)
        else:
            await self.move(visit, what, int(path.split("/")[2].partition("?")[0]))

    async def fail(self, visit: Any, what: str) -> None:
        if "hang" in self.wrong:
            self.stands.set()
            await visit.until_left()
        else:
            await visit.whole(b'{"error": {"message": "no"}}', self.status(what))

    def status(self, what: str) -> str:
        return "500 No" if what != "chat" else f"{self.wrong.get('status', 500)} No"

    async def chat(self, visit: Any) -> None:
        body = json.loads(visit.body)
        self.bodies.append(body)
        found, self.slots[body["id_slot"]] = self.slots.get(body["id_slot"]), asked(body)
        body["found"] = body["cache_prompt"] and found == asked(body)
        await self.lab.good()(visit)

    async def move(self, visit: Any, what: str, slot: int) -> None:
        name = json.loads(visit.body).get("filename", "")
        if what == "save":
            (self.folder / name).write_text(self.slots[slot])
        elif what == "restore":
            self.slots[slot] = (self.folder / name).read_text()
        else:
            self.slots.pop(slot, None)
        size = len(self.slots.get(slot, ""))
        said = {"n_saved": TOKENS, "n_written": size, "n_restored": TOKENS, "timings": {}}
        await visit.whole(json.dumps(said).encode())


def asked(body: dict[str, Any]) -> str:
    return json.dumps(body["messages"])


Test = Callable[[Any, aiohttp.ClientSession, Slotted, Slotted], Awaitable[None]]


def pair(lab: ModuleType, tmp_path: Path, test: Test, *, slots: int = 2, prefill: dict[str, int] | None = None, decode: dict[str, int] | None = None) -> Any:  # fmt: skip
    """Run a test over one prefill and one decode replica. Nothing is left in a slot or in a file."""
    engines: list[Slotted] = []

    async def main(node: Any, client: aiohttp.ClientSession) -> None:
        for name, wrong in (("prefill", prefill), ("decode", decode)):
            slotted = Slotted(lab, node.caches.folder, **(wrong or {}))
            engines.append(slotted)
            await node.engine(name, *[slotted.play] * 99, role=name, slots=slots)
        await test(node, client, *engines)
        async with asyncio.timeout(5):
            while any(engine.slots for engine in engines) or any(node.caches.folder.iterdir()):
                await asyncio.sleep(0.01)

    return lab.run(tmp_path, main)


async def post(client: aiohttp.ClientSession, body: dict[str, Any]) -> tuple[int, str, Any]:
    async with client.post("/v1/chat/completions", json=body) as response:
        return response.status, await response.text(), response.headers


def test_the_prompt_is_computed_here_and_every_token_of_the_answer_there(
    lab: ModuleType, tmp_path: Path
) -> None:
    async def test(node: Any, client: aiohttp.ClientSession, first: Slotted, second: Slotted) -> None:  # fmt: skip
        async with client.post("/v1/chat/completions", json=lab.ask(stream=True)) as response:
            said = await lab.texts(response)
            assert response.headers["x-polypod-replica"] == "decode"
        assert said == (["t0 ", "t1 ", "t2 "], [], True)
        status, body, _ = await post(client, lab.ask(max_tokens=9))
        assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "hello")
        for prompt in first.bodies:
            assert (prompt["max_tokens"], prompt["stream"], prompt["cache_prompt"]) == (1, False, False)  # fmt: skip
        assert [answer["found"] for answer in second.bodies] == [True, True]
        assert [answer["stream"] for answer in second.bodies] == [True, False]
        assert second.bodies[1]["max_tokens"] == 9
        async with client.get("/metrics") as response:
            shown = await response.text()
        assert 'polypod_cache_handovers_total{result="restored"} 2.0' in shown
        assert 'polypod_tokens_total{direction="output",model="tiny"} 6.0' in shown

    node = pair(lab, tmp_path, test)
    actions = [action for step in node.steps for action in step.actions]
    kinds = [type(action) for action in actions if not isinstance(action, WakeAt)]
    assert kinds == [Prefill, TransferKv, Decode] * 2
    assert [event.kv_tokens for event in node.told(PrefillFinished)] == [TOKENS] * 2


def test_a_cache_that_is_lost_is_computed_again(lab: ModuleType, tmp_path: Path) -> None:
    async def test(node: Any, client: aiohttp.ClientSession, first: Slotted, second: Slotted) -> None:  # fmt: skip
        status, _, headers = await post(client, lab.ask())
        assert (status, headers["x-polypod-attempts"]) == (200, "2")
        assert (len(first.bodies), [one["found"] for one in second.bodies]) == (2, [True])

    node = pair(lab, tmp_path, test, decode={"restore": 1})
    assert len(node.told(KvLost)) == len(node.told(KvArrived)) == 1


def test_a_cache_that_is_lost_again_is_computed_where_it_was_to_go(
    lab: ModuleType, tmp_path: Path
) -> None:
    async def test(node: Any, client: aiohttp.ClientSession, first: Slotted, second: Slotted) -> None:  # fmt: skip
        status, _, _ = await post(client, lab.ask())
        assert (status, [one["found"] for one in second.bodies]) == (200, [False])
        async with client.get("/metrics") as response:
            shown = await response.text()
        assert 'polypod_cache_handovers_total{result="computed where it was to go"} 1.0' in shown

    node = pair(lab, tmp_path, test, decode={"restore": 99})
    assert not node.answered(Dispatch)


def test_a_cache_that_cannot_be_saved_fails_the_attempt_and_not_the_request(
    lab: ModuleType, tmp_path: Path
) -> None:
    async def test(node: Any, client: aiohttp.ClientSession, first: Slotted, second: Slotted) -> None:  # fmt: skip
        status, _, headers = await post(client, lab.ask())
        assert (status, headers["x-polypod-attempts"]) == (200, "2")

    node = pair(lab, tmp_path, test, prefill={"save": 1})
    (failed,) = node.told(RequestFailed)
    assert (failed.kind, failed.replica) == ("engine", "prefill")
    assert "HTTP 500 when asked to save slot" in failed.detail


def test_a_request_that_the_prefill_engine_refuses_is_the_clients_own_fault(
    lab: ModuleType, tmp_path: Path
) -> None:
    async def test(node: Any, client: aiohttp.ClientSession, first: Slotted, second: Slotted) -> None:  # fmt: skip
        status, body, _ = await post(client, lab.ask())
        assert (status, json.loads(body)) == (422, {"error": {"message": "no"}})
        assert (await post(client, lab.ask()))[0] == 200

    pair(lab, tmp_path, test, prefill={"chat": 1, "status": 422})


@pytest.mark.parametrize(("where", "what"), [("prefill", "chat"), ("prefill", "save"), ("decode", "restore"), ("decode", "chat")])  # fmt: skip
def test_a_client_that_goes_away_leaves_nothing_behind(
    lab: ModuleType, tmp_path: Path, where: str, what: str
) -> None:
    """Whichever step it leaves in, its slots are emptied and its files are gone."""

    async def test(node: Any, client: aiohttp.ClientSession, first: Slotted, second: Slotted) -> None:  # fmt: skip
        hanging = first if where == "prefill" else second
        going = asyncio.create_task(post(client, lab.ask(stream=True)))
        await hanging.stands.wait()
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        hanging.wrong.clear()
        assert (await post(client, lab.ask()))[0] == 200

    pair(lab, tmp_path, test, slots=2, **{where: {what: 1, "hang": 1}})


def test_more_requests_than_slots_wait_for_each_other(lab: ModuleType, tmp_path: Path) -> None:
    async def test(node: Any, client: aiohttp.ClientSession, first: Slotted, second: Slotted) -> None:  # fmt: skip
        bodies = [lab.ask(messages=[{"role": "user", "content": str(n)}]) for n in range(12)]
        answers = await asyncio.gather(*(post(client, body) for body in bodies))
        assert [status for status, _, _ in answers] == [200] * 12
        assert all(one["found"] for one in second.bodies)

    pair(lab, tmp_path, test, slots=1)


def test_a_decode_replica_that_dies_before_the_first_token_costs_only_time(
    lab: ModuleType, tmp_path: Path
) -> None:
    async def test(node: Any, client: aiohttp.ClientSession, first: Slotted, second: Slotted) -> None:  # fmt: skip
        asking = asyncio.create_task(post(client, lab.ask()))
        await second.stands.wait()
        second.wrong.clear()
        second.slots.clear()
        node.tell_down("decode")
        node.attach(node._engines[1], role="decode", slots=2)
        assert (await asking)[0] == 200

    pair(lab, tmp_path, test, decode={"chat": 1, "hang": 1})


def test_an_answer_that_breaks_off_where_it_is_decoded_goes_on_at_a_whole_replica(
    lab: ModuleType, tmp_path: Path
) -> None:
    async def test(node: Any, client: aiohttp.ClientSession, first: Slotted, second: Slotted) -> None:  # fmt: skip
        body, headers = lab.ask(stream=True), {"x-polypod-continue": "text"}
        gone_on = await node.engine("whole", build="ghost 1", step_s=5.0)
        second.lab = SimpleNamespace(good=lambda: lab.cut_after(2, cleanly=False))
        async with client.post("/v1/chat/completions", json=body, headers=headers) as response:
            text = await response.text()
        assert ": polypod continued on whole after 2 tokens (text)" in text
        assert text.endswith("data: [DONE]\n\n")
        sent = json.loads(lab.only(gone_on.visits).body)
        assert sent["messages"][-1] == {"role": "assistant", "content": "t0 t1 "}
        assert "id_slot" not in sent

    pair(lab, tmp_path, test)
