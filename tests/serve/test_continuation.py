"""A stream that breaks off goes on at another replica, where its client asked for that: one answer, nothing lost, nothing twice."""

import asyncio
import json

import openai
import pytest

from polypod.cost.steptime import StepTime
from polypod.policy.actions import Dispatch, Reject
from polypod.policy.events import FirstToken, ReplicaUp, RequestFailed, RequestFinished
from polypod.serve.engines.ghost import GhostFile
from polypod.serve.engines.ghost_server import Fault, GhostServer
from polypod.serve.engines.spec import Endpoint
from polypod.serve.ghosts import GhostPlan, Ghosts
from polypod.serve.supervise import Up
from tests.faults.live import Tally, Wish, judge, listen

TEXT = {"x-polypod-continue": "text"}
EXACT = {"x-polypod-continue": "exact"}
GHOST, IDS, NATIVE, OTHER = "ghost 1", "openvino 1 w", "llama.cpp 1 w", "nobody 1"


def chunk(delta, finish=None, id_="c-1", **more):
    choice = {"index": 0, "delta": delta, "finish_reason": finish} | more
    body = {"id": id_, "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    return b"data: " + json.dumps(body | {"choices": [choice]}).encode() + b"\n\n"


def said(text, **more):
    return chunk({"content": text}, **more)


def usage(prompt, completion, id_="c-1"):
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}  # fmt: skip
    return b"data: " + json.dumps({"id": id_, "choices": [], "usage": counts}).encode() + b"\n\n"


ROLE = chunk({"role": "assistant", "content": ""})
DONE = b"data: [DONE]\n\n"


def breaks(*parts):
    """A script: these events, and then the connection breaks."""

    async def play(visit):
        await visit.begin_stream()
        for part in parts:
            await visit.chunk(part)
        await asyncio.sleep(0.02)
        visit.cut()

    return play


def goes(*parts):
    """A script: these events, the end among them or not."""

    async def play(visit):
        await visit.begin_stream()
        for part in parts:
            await visit.chunk(part)
        await visit.end_stream()

    return play


class Heard:
    """What an official client makes of a stream, and the raw lines."""

    def __init__(self, body: bytes, headers=None) -> None:
        self.headers = headers or {}
        self.raw = body.decode()
        lines = [line for line in self.raw.split("\n") if line]
        self.comments = [line for line in lines if line.startswith(":")]
        self.is_done = lines[-1:] == ["data: [DONE]"]
        self.chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        self.errors = [one["error"] for one in self.chunks if "error" in one]
        choices = [one["choices"][0] for one in self.chunks if one.get("choices")]
        self.deltas = [choice["delta"] for choice in choices]
        self.text = "".join(delta.get("content") or "" for delta in self.deltas)
        self.finishes = [c["finish_reason"] for c in choices if c["finish_reason"] is not None]
        self.usages = [one["usage"] for one in self.chunks if one.get("usage")]

    def names(self, name):
        return {one.get(name) for one in self.chunks if "error" not in one}


async def hear(client, body, headers=TEXT):
    async with client.post("/v1/chat/completions", json=body, headers=headers) as response:
        return Heard(await response.read(), response.headers)


def asked(lab, **more):
    return lab.ask(stream=True, stream_options={"include_usage": True}, **more)


def bodies(engine):
    return [json.loads(visit.body) for visit in engine.visits]


def two(lab, tmp_path, first, *later, builds=(GHOST, GHOST), headers=TEXT, **body):
    """Ask a node of two replicas, of which `a` is asked first; what was heard, the node, and both engines."""
    found = {}

    async def test(node, client):
        found["a"] = await node.engine("a", first, build=builds[0])
        found["b"] = await node.engine("b", *later, step_s=0.5, build=builds[1])
        async with asyncio.timeout(45):  # engines may be silent for 60 s
            found["heard"] = await hear(client, asked(lab, **body), headers)

    node = lab.run(tmp_path, test)
    return found["heard"], node, found["a"], found["b"]


REST = goes(chunk({"role": "assistant", "content": ""}, id_="c-2"), said("three", id_="c-2"), chunk({}, "stop", "c-2"), usage(9, 1, "c-2"), DONE)  # fmt: skip


def test_the_rest_comes_from_another_replica_as_one_answer(lab, tmp_path):
    heard, node, _, b = two(lab, tmp_path, breaks(ROLE, said("one "), said("two ")), REST)

    assert heard.text == "one two three"
    assert heard.comments == [": polypod continued on b after 2 tokens (text)"]
    assert (heard.names("id"), heard.names("created"), heard.names("model")) == ({"c-1"}, {1}, {"tiny"})  # fmt: skip
    assert [delta for delta in heard.deltas if "role" in delta] == [heard.deltas[0]]
    assert (heard.finishes, heard.is_done, heard.errors) == (["stop"], True, [])
    assert heard.headers["x-polypod-continue"] == "text"
    sent = bodies(b)[0]
    assert sent["messages"][-1] == {"role": "assistant", "content": "one two "}
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)
    assert lab.only(node.told(RequestFailed)).sent_tokens == 2
    assert lab.only(node.told(RequestFinished)).output_tokens == 3


def test_the_official_client_reads_it_as_one_answer(lab, tmp_path):
    async def test(node, _):
        await node.engine("a", breaks(ROLE, said("one "), said("two ")), build=GHOST)
        await node.engine("b", REST, step_s=0.5, build=GHOST)
        url = f"{node.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                stream_options={"include_usage": True},
                extra_headers=TEXT,
            )
            chunks = [chunk async for chunk in stream]
        assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == "one two three"  # fmt: skip
        assert {one.id for one in chunks} == {"c-1"}
        assert chunks[-1].usage.total_tokens == 10

    lab.run(tmp_path, test)


def test_usage_counts_what_was_sent_as_answer_and_not_as_prompt(lab, tmp_path):
    heard, *_ = two(lab, tmp_path, breaks(ROLE, said("one "), said("two ")), REST)

    assert heard.usages == [{"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}]


def test_the_rest_may_be_as_long_as_is_left(lab, tmp_path):
    _, _, _, b = two(lab, tmp_path, breaks(ROLE, said("one "), said("two ")), REST, max_tokens=5, max_completion_tokens=5)  # fmt: skip

    assert (bodies(b)[0]["max_tokens"], bodies(b)[0]["max_completion_tokens"]) == (3, 3)


def test_where_nothing_is_left_the_answer_is_ended_without_asking_anybody(lab, tmp_path):
    heard, _, _, b = two(lab, tmp_path, breaks(ROLE, said("one "), said("two ")), max_tokens=2)

    assert (heard.text, heard.finishes, heard.is_done) == ("one two ", ["length"], True)
    assert heard.usages[0]["completion_tokens"] == 2
    assert b.visits == []


def test_an_answer_that_lacks_only_its_end_gets_it(lab, tmp_path):
    heard, node, _, b = two(lab, tmp_path, breaks(ROLE, said("all"), chunk({}, "stop")))

    assert (heard.text, heard.finishes, heard.is_done) == ("all", ["stop"], True)
    assert (b.visits, node.answered(Reject)) == ([], [])


def test_usage_that_was_told_is_not_told_again(lab, tmp_path):
    heard, *_ = two(lab, tmp_path, breaks(ROLE, said("all"), chunk({}, "stop"), usage(7, 1)))

    assert [one["completion_tokens"] for one in heard.usages] == [1]
    assert heard.is_done


def test_one_that_ends_cleanly_and_too_early_goes_on_too(lab, tmp_path):
    heard, *_ = two(lab, tmp_path, goes(ROLE, said("one two ")), REST)

    assert (heard.text, heard.is_done) == ("one two three", True)


def test_an_error_event_in_the_middle_is_not_shown_where_another_goes_on(lab, tmp_path):
    error = b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
    heard, *_ = two(lab, tmp_path, goes(ROLE, said("one two "), error), REST)

    assert (heard.text, heard.errors, heard.is_done) == ("one two three", [], True)


def test_a_stream_of_which_only_the_role_was_sent_begins_anew_unseen(lab, tmp_path):
    heard, _, _, b = two(lab, tmp_path, breaks(ROLE), REST)

    assert heard.text == "three"
    assert len(bodies(b)[0]["messages"]) == 1
    assert len([delta for delta in heard.deltas if "role" in delta]) == 1


def test_a_second_and_a_third_break_are_gone_on_after_too(lab, tmp_path):
    found = {}

    async def test(node, client):
        engines = [
            await node.engine("a", breaks(ROLE, said("1 ")), build=GHOST),
            await node.engine("b", breaks(ROLE, said("2 ")), step_s=0.1, build=GHOST),
            await node.engine("c", breaks(ROLE, said("3 ")), step_s=0.5, build=GHOST),
            await node.engine("d", REST, step_s=2.0, build=GHOST),
        ]
        found["heard"], found["d"] = await hear(client, asked(lab)), engines[-1]

    lab.run(tmp_path, test)
    assert found["heard"].text == "1 2 3 three"
    assert [line.split()[4] for line in found["heard"].comments] == ["b", "c", "d"]
    assert bodies(found["d"])[0]["messages"][-1]["content"] == "1 2 3 "


def test_a_death_told_by_the_supervisor_alone_moves_the_stream_with_its_count(lab, tmp_path):
    found = {}

    async def hangs(visit):
        await visit.begin_stream()
        await visit.chunk(ROLE + said("one ") + said("two "))
        await visit.until_left()

    async def test(node, client):
        await node.engine("a", hangs, build=GHOST)
        await node.engine("b", REST, step_s=0.5, build=GHOST)
        hearing = asyncio.ensure_future(hear(client, asked(lab)))
        while not node.told(RequestFinished) and "two" not in str(node.lines[-1:]):
            await asyncio.sleep(0.01)
            if node.answered(Dispatch) and len(node.lines) > 3:
                await asyncio.sleep(0.05)
                node.tell_down("a")
                break
        found["heard"] = await hearing

    node = lab.run(tmp_path, test)
    assert found["heard"].text == "one two three"
    assert [one.continues_after_tokens for one in node.answered(Dispatch)] == [0, 2]


def test_without_the_header_it_ends_with_an_error_event_as_ever(lab, tmp_path):
    heard, *_ = two(lab, tmp_path, breaks(ROLE, said("one ")), headers={})

    assert (heard.text, heard.is_done) == ("one ", False)
    assert lab.only(heard.errors)["code"] == "replica_lost"
    assert "x-polypod-continue" not in heard.headers


def test_where_no_engine_can_go_on_it_ends_with_an_error_event(lab, tmp_path):
    heard, *_ = two(lab, tmp_path, breaks(ROLE, said("one ")), builds=(GHOST, OTHER))
    alone, *_ = two(lab, tmp_path, breaks(ROLE, said("one ")), builds=(OTHER, OTHER))

    assert lab.only(alone.errors)["code"] == "replica_lost"
    assert "no replica can go on with it (text)" in lab.only(alone.errors)["message"]
    assert heard.text == "one t0 t1 t2 "  # `a` took it up again itself


@pytest.mark.parametrize(
    ("why", "body"),
    [
        ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("seed", {"seed": 1}),
        ("logprobs", {"logprobs": True}),
        ("n", {"n": 2}),
    ],
)
def test_what_would_not_be_the_same_answer_is_not_gone_on_with(lab, tmp_path, why, body):
    heard, _, _, b = two(lab, tmp_path, breaks(ROLE, said("one ")), REST, **body)

    assert heard.headers["x-polypod-continue"] == f"off; {why}"
    assert lab.only(heard.errors)["code"] == "replica_lost"
    assert b.visits == []


def test_an_answer_that_holds_more_than_text_is_not_gone_on_with(lab, tmp_path):
    thought = chunk({"reasoning_content": "hm"})
    heard, _, _, b = two(lab, tmp_path, breaks(ROLE, thought, said("one ")), REST)

    assert "more than text" in lab.only(heard.errors)["message"]
    assert b.visits == []


def test_a_continuation_that_an_engine_refuses_counts_against_nobody(lab, tmp_path):
    refuses = lab.status("400 Bad Request")
    heard, node, *_ = two(lab, tmp_path, breaks(ROLE, said("one ")), refuses)

    error = lab.only(
        heard.errors
    )  # the client's own request was taken: what it asked was right, and asking again may help
    assert error["code"] == "replica_lost"
    assert "HTTP 400" in error["message"]
    assert node.told(RequestFailed)[-1].kind == "client"


def test_an_engine_that_is_busy_with_the_template_is_asked_again(lab, tmp_path):
    """What is asked for on the way to a continuation is no word about the client's request."""
    found = {}

    async def test(node, client):
        found["a"] = await node.engine("a", breaks(ROLE, said("one ")), build=NATIVE)
        found["b"] = await node.engine("b", lab.status("503 Loading"), step_s=0.5, build=NATIVE)
        await hear(client, asked(lab), EXACT)
        found["told"] = node.told(RequestFailed)

    lab.run(tmp_path, test, max_attempts=1)
    assert [one.kind for one in found["told"]] == ["lost", "engine"]


def test_a_header_that_says_nothing_known_is_refused(lab, tmp_path):
    async def test(node, client):
        await node.engine("a", build=GHOST)
        heard = await hear(client, asked(lab), {"x-polypod-continue": "maybe"})
        assert "it can be off, text, exact" in heard.raw

    lab.run(tmp_path, test)


def test_an_answer_in_one_piece_is_asked_for_again_whatever_the_header_says(lab, tmp_path):
    async def test(node, client):
        await node.engine("a", lab.cut_after(1, cleanly=False), build=GHOST)
        await node.engine("b", step_s=0.5, build=GHOST)
        async with client.post("/v1/chat/completions", json=lab.ask(), headers=TEXT) as response:
            assert (await response.json())["choices"][0]["message"]["content"] == "hello"

    lab.run(tmp_path, test)


# ---- the seam


def test_a_stop_string_of_which_a_part_was_sent_still_stops_the_answer(lab, tmp_path):
    async def goes_on_for_ever(visit):
        await visit.begin_stream()
        await visit.chunk(ROLE + said("D and more") + said(" of it"))
        await visit.until_left()

    heard, _, _, b = two(lab, tmp_path, breaks(ROLE, said("x EN")), goes_on_for_ever, stop=["END"])

    assert (heard.text, heard.finishes, heard.is_done) == ("x EN", ["stop"], True)
    assert b.visits[0].was_left.is_set()


def test_what_might_have_become_a_stop_string_is_not_lost(lab, tmp_path):
    rest = goes(ROLE, said("D"), said("IVE"), said(" E"), said("N"), chunk({}, "stop"), DONE)
    heard, *_ = two(lab, tmp_path, breaks(ROLE, said("x EN")), rest, stop="END.")

    assert heard.text == "x ENDIVE EN"


def test_what_was_held_back_when_a_second_replica_broke_is_neither_lost_nor_said_twice(lab, tmp_path):  # fmt: skip
    found = {}

    async def test(node, client):
        await node.engine("a", breaks(ROLE, said("x ")), build=GHOST)
        await node.engine("b", breaks(ROLE, said("y EN")), step_s=0.1, build=GHOST)
        found["c"] = await node.engine("c", goes(ROLE, said("TER"), chunk({}, "stop"), DONE), step_s=0.5, build=GHOST)  # fmt: skip
        found["heard"] = await hear(client, asked(lab, stop="END"))

    lab.run(tmp_path, test)
    assert found["heard"].text == "x y ENTER"
    assert bodies(found["c"])[0]["messages"][-1]["content"] == "x y EN"


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ("one  ", "  two", "one  two"),
        ("one ", "two", "one two"),
        ("one\n\n", "\n\ntwo", "one\n\ntwo"),
        ("one\n\n", "\ntwo", "one\n\ntwo"),
        ("one ", "\n two", "one \n two"),
    ],
)
def test_spaces_that_a_template_trims_are_there_once(lab, tmp_path, before, after, text):
    rest = goes(ROLE, said(after[:1]), said(after[1:]), chunk({}, "stop"), DONE)
    heard, _, _, b = two(lab, tmp_path, breaks(ROLE, said(before)), rest, builds=("vllm 1", "vllm 1"))  # fmt: skip

    assert bodies(b)[0]["messages"][-1]["content"] == before.rstrip()
    assert heard.text == text


def test_characters_of_several_bytes_stay_whole(lab, tmp_path):
    rest = goes(ROLE, said("字 🎉"), chunk({}, "stop"), DONE)
    heard, _, _, b = two(lab, tmp_path, breaks(ROLE, said("汉")), rest)

    assert heard.text == "汉字 🎉"
    assert bodies(b)[0]["messages"][-1]["content"] == "汉"


# ---- exactly


def test_an_exact_continuation_gives_the_very_tokens_back(lab, tmp_path):
    first = breaks(ROLE, said("one ", token_ids=[11, 12]), said("two", token_ids=[13]))
    rest = goes(ROLE, said(" three", token_ids=[14]), chunk({}, "stop"), usage(10, 1), DONE)
    heard, _, a, b = two(lab, tmp_path, first, rest, builds=(IDS, IDS), headers=EXACT, temperature=0, seed=5)  # fmt: skip

    assert bodies(a)[0]["return_token_ids"] is True
    assert bodies(b)[0]["continue_token_ids"] == [11, 12, 13]
    assert len(bodies(b)[0]["messages"]) == 1
    assert heard.text == "one two three"
    assert heard.usages == [{"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}]
    assert "token_ids" not in heard.raw


def test_exactly_means_within_one_build(lab, tmp_path):
    first = breaks(ROLE, said("one", token_ids=[11]))
    _, _, a, b = two(lab, tmp_path, first, REST, builds=(IDS, "openvino 2 w"), headers=EXACT)

    assert b.visits == []
    assert len(a.visits) == 2  # itself again: the connection broke, and it lives


def test_llama_cpp_is_asked_by_its_own_completion_behind_its_template(lab, tmp_path):
    def told(text, id_, made):
        event = json.loads(said(text, logprobs={"content": [{"id": id_}]})[6:])
        return b"data: " + json.dumps(event | {"timings": {"predicted_n": made}}).encode() + b"\n\n"

    first = breaks(ROLE, told("one ", 11, 1), told("🎉", 230, 4))

    async def template(visit):
        await visit.whole(b'{"prompt": "<user>hi<assistant>"}')

    async def tokenize(visit):
        assert json.loads(visit.body)["content"] == "🎉"
        await visit.whole(b'{"tokens": [228, 229, 230]}')

    def native(**event):
        return b"data: " + json.dumps(event).encode() + b"\n\n"

    rest = goes(
        native(content=" two", tokens=[13], tokens_predicted=1, stop=False),
        native(content="", tokens=[], tokens_predicted=2, tokens_evaluated=12, stop=True, stop_type="eos"),
    )  # fmt: skip
    found = {}

    async def test(node, client):
        found["a"] = await node.engine("a", first, build=NATIVE)
        found["b"] = await node.engine("b", template, tokenize, rest, step_s=0.5, build=NATIVE)
        found["heard"] = await hear(client, asked(lab, max_tokens=20, temperature=0), EXACT)

    lab.run(tmp_path, test)
    assert bodies(found["a"])[0]["logprobs"] is True
    asked_b = [visit.head.split()[1].decode() for visit in found["b"].visits]
    assert asked_b == ["/apply-template", "/tokenize", "/completion"]
    sent = bodies(found["b"])[2]
    assert sent["prompt"] == ["<user>hi<assistant>", 11, 228, 229, 230]
    assert (sent["n_predict"], sent["stream"], sent["temperature"]) == (16, True, 0)
    assert found["heard"].text == "one 🎉 two"
    assert "logprobs" not in found["heard"].raw
    assert "timings" not in found["heard"].raw
    assert found["heard"].is_done
    assert found["heard"].finishes == ["stop"]


# ---- under kills, judged word by word


def ghost_up(number):
    step = StepTime(tokens=(1, 101), seconds=(0.002, 0.004), kv_token_s=0.0, pair_s=0.0)
    return ReplicaUp(at_s=0.0, replica=f"g-{number}", epoch=1, model="tiny", pool="g", role="both", step_time=step, context_tokens=4096, kv_capacity_tokens=10**6, max_sequences=64, max_step_tokens=512)  # fmt: skip


def test_under_kills_streams_go_on_and_every_word_is_there_once(lab, tmp_path):
    ups, tally = tuple(ghost_up(n) for n in range(4)), Tally()
    limits = {"max_continuations": 9, "quarantine_deaths": 9, "max_attempts": 9}

    async def test(node, client):
        server = GhostServer(GhostFile(ghosts=ups, mean_output_tokens={}), "boo")
        socket = tmp_path / "ghosts.sock"
        listening = await asyncio.get_running_loop().create_unix_server(server.connection, str(socket))  # fmt: skip
        told = Ghosts(GhostPlan(ups=ups, mean_output_tokens={}), node.driver)
        endpoint = Endpoint(socket=socket, secret="boo")
        await told.hear(Up(replica="ghosts-0", epoch=1, endpoint=endpoint, process=0, load_s=0.0))

        async def one(number):
            wish = Wish(model="tiny", text=f"stream {number}", tokens=120 + number % 60, headers=tuple(TEXT.items()))  # fmt: skip
            tally.add(judge(wish, await listen(node.port, wish, patience_s=60.0)))

        async def kill():
            """Up to six times, whoever began an answer last."""
            seen = 0
            for _ in range(6):
                while len(begun := node.told(FirstToken)) == seen:
                    if tally.counts.total() == 24:  # all is said already
                        return
                    await asyncio.sleep(0.01)
                seen = len(begun)
                server.strike(begun[-1].replica, Fault(what="die", for_s=0.1))
                await asyncio.sleep(0.1)

        killing = asyncio.ensure_future(kill())
        await asyncio.gather(*(one(number) for number in range(24)))
        killing.cancel()
        await told.close()
        listening.close()

    lab.run(tmp_path, test, **limits)
    assert tally.counts["continued"] > 0
    assert set(tally.counts) <= {"whole", "moved", "continued"}, tally.lines()
