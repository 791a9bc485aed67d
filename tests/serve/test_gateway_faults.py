"""Engines that fail, clients that leave, nodes that stop: what the client sees, and what the policy hears."""

import asyncio
import json
import time

import aiohttp
import pytest

from polypod.policy.actions import Cancel, Dispatch, Reject, Retry, WakeAt
from polypod.policy.events import (
    ClientGone,
    FirstToken,
    ReplicaBusy,
    RequestArrived,
    RequestFailed,
    RequestFinished,
)
from polypod.record import encode
from polypod.serve.upstream import Patience

CHAT = "/v1/chat/completions"


async def wait_until(is_so, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not is_so():
            await asyncio.sleep(0.005)


async def answered(lab, response: aiohttp.ClientResponse) -> None:
    """A whole answer came, streamed or not."""
    assert response.status == 200
    if response.headers["content-type"].startswith("text/event-stream"):
        assert await lab.texts(response) == (["t0 ", "t1 ", "t2 "], [], True)
    else:
        assert await response.read() == lab.answer_body()


# ---- before the first byte: tried elsewhere, unseen


def broken(lab) -> dict[str, object]:
    return {
        "cut before headers": lab.cut_before_headers(),
        "cut after headers": lab.cut_after(0, cleanly=False),
        "500": lab.status("500 Internal Server Error"),
        "302": lab.status("302 Found", extra="location: /elsewhere\r\n"),
        "401": lab.status("401 Unauthorized"),
        "not HTTP": lambda visit: visit.chunk(b"hello"),
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("cut before headers", "lost"),
        ("cut after headers", "lost"),
        ("500", "engine"),
        ("302", "engine"),
        ("401", "engine"),
        ("not HTTP", "engine"),
    ],
)
def test_a_request_survives_an_engine_that_fails_before_the_first_byte(
    lab, tmp_path, fault, kind, stream
):
    async def test(node, client):
        bad = await node.engine("bad", broken(lab)[fault], step_s=0.001)
        await node.engine("good", step_s=0.1)
        response = await client.post(CHAT, json=lab.ask(stream))

        await answered(lab, response)
        assert len(bad.visits) == 1
        assert response.headers["x-polypod-replica"] == "good"
        assert response.headers["x-polypod-attempts"] == "2"
        assert lab.only(node.told(RequestFailed)).kind == kind
        assert lab.only(node.answered(Retry)).reason == kind

    lab.run(tmp_path, test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_survives_an_engine_that_refuses_the_connection(lab, tmp_path, stream):
    async def test(node, client):
        bad = await node.engine("bad", step_s=0.001)
        await node.engine("good", step_s=0.1)
        await bad.die()
        await answered(lab, await client.post(CHAT, json=lab.ask(stream)))

        assert lab.only(node.told(RequestFailed)).kind == "refused"

    lab.run(tmp_path, test)


def test_an_answer_cut_in_the_middle_is_no_answer_and_is_tried_elsewhere(lab, tmp_path):
    async def test(node, client):
        await node.engine("bad", lab.cut_after(1, cleanly=False), step_s=0.001)
        await node.engine("good", step_s=0.1)
        await answered(lab, await client.post(CHAT, json=lab.ask()))

        assert lab.only(node.told(RequestFailed)).kind == "lost"

    lab.run(tmp_path, test)


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (False, "whole not JSON"),
        (True, "stream as JSON"),
        (True, "empty stream"),
        (True, "half an event"),
        (True, "an error event"),
        (True, "an odd error event"),
    ],
)
def test_a_200_that_is_no_answer_is_tried_elsewhere(lab, tmp_path, stream, fault):
    scripts = {
        "whole not JSON": lab.status("200 OK", b'{"choices": '),
        "stream as JSON": lab.status("200 OK", b"{}"),
        "empty stream": lab.chunks(),
        "half an event": lab.chunks(b"data: {"),
        "an odd error event": lab.chunks(b'data: {"error": "no"}\n\n', lab.DONE),
        "an error event": lab.chunks(
            b'data: {"error": {"message": "no", "code": 500}}\n\n', lab.DONE
        ),
    }

    async def test(node, client):
        await node.engine("bad", scripts[fault], step_s=0.001)
        await node.engine("good", step_s=0.1)
        await answered(lab, await client.post(CHAT, json=lab.ask(stream)))

        assert lab.only(node.told(RequestFailed)).kind in ("engine", "lost")

    lab.run(tmp_path, test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_silent_engine_is_given_up_in_time(lab, tmp_path, stream):
    async def test(node, client):
        bad = await node.engine("bad", lab.hang(), step_s=0.001)
        await node.engine("good", step_s=0.1)
        began_s = time.monotonic()
        await answered(lab, await client.post(CHAT, json=lab.ask(stream)))

        assert 0.2 < time.monotonic() - began_s < 10
        assert lab.only(node.told(RequestFailed)).kind == "timeout"
        await wait_until(lab.only(bad.visits).was_left.is_set)

    lab.run(tmp_path, test, patience=Patience(first_byte_s=0.3, whole_answer_s=0.3))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("line", "extra", "retry_after_s"),
    [
        ("503 Service Unavailable", "retry-after: 7\r\n", 7.0),
        ("429 Too Many Requests", "", None),
        ("503 Service Unavailable", "retry-after: soon\r\n", None),
    ],
)
def test_a_busy_engine_is_passed_over_and_not_blamed(
    lab, tmp_path, line, extra, retry_after_s, stream
):
    async def test(node, client):
        await node.engine("busy", lab.status(line, extra=extra), step_s=0.001)
        await node.engine("good", step_s=0.1)
        await answered(lab, await client.post(CHAT, json=lab.ask(stream)))

        assert node.told(RequestFailed) == []
        assert lab.only(node.told(ReplicaBusy)).retry_after_s == retry_after_s
        assert lab.only(node.answered(Retry)).reason == "busy"

    lab.run(tmp_path, test)


def test_an_engine_that_is_busy_in_its_first_event_is_passed_over_as_well(lab, tmp_path):
    busy = b'data: {"error": {"message": "full", "code": 429}}\n\n'

    async def test(node, client):
        await node.engine("busy", lab.chunks(busy, lab.DONE), step_s=0.001)
        await node.engine("good", step_s=0.1)
        await answered(lab, await client.post(CHAT, json=lab.ask(stream=True)))

        assert node.told(RequestFailed) == []
        assert len(node.told(ReplicaBusy)) == 1

    lab.run(tmp_path, test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_moves_on_when_its_replica_is_said_to_be_down(lab, tmp_path, stream):
    async def test(node, client):
        bad = await node.engine("bad", lab.hang(), step_s=0.001)
        await node.engine("good", step_s=0.1)
        asking = asyncio.create_task(client.post(CHAT, json=lab.ask(stream)))
        await wait_until(lambda: bad.visits)
        node.tell_down("bad")
        await answered(lab, await asking)

        await wait_until(lab.only(bad.visits).was_left.is_set, 1.0)
        assert node.told(RequestFailed) == []  # the abandoned attempt says nothing more

    lab.run(tmp_path, test)


def test_a_replica_that_comes_back_is_asked_at_its_new_start(lab, tmp_path):
    async def test(node, client):
        engine = await node.engine("a")
        await answered(lab, await client.post(CHAT, json=lab.ask()))
        node.tell_down("a")
        await engine.die()
        await engine.start()
        node.attach(engine, secret="new")
        await answered(lab, await client.post(CHAT, json=lab.ask()))

        assert b"Bearer new" in engine.visits[1].head
        assert [event.epoch for event in node.told(RequestFinished)] == [1, 2]
        assert node.told(RequestFailed) == []

    lab.run(tmp_path, test)


# ---- what is nobody's fault, or the client's


def test_an_engines_4xx_is_handed_on_and_never_counts_against_it(lab, tmp_path):
    body = (
        b'{"error": {"message": "too hot", "type": "BadRequestError", "param": null, "code": 400}}'
    )

    async def test(node, client):
        refusing = [lab.status("422 Unprocessable Entity", body)] * 20
        await node.engine("a", *refusing)
        for number in range(20):
            response = await client.post(CHAT, json=lab.ask(stream=number % 2 == 1))
            assert response.status == 422
            assert response.headers["content-type"] == "application/json"
            assert await response.read() == body
        await answered(lab, await client.post(CHAT, json=lab.ask()))

        assert {event.kind for event in node.told(RequestFailed)} == {"client"}
        assert node.answered(Retry) == []

    lab.run(tmp_path, test)


def test_a_4xx_that_comes_as_the_first_event_is_a_4xx(lab, tmp_path):
    error = {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}

    async def test(node, client):
        script = lab.chunks(b"data: " + json.dumps({"error": error}).encode() + b"\n\n", lab.DONE)
        await node.engine("a", script)
        response = await client.post(CHAT, json=lab.ask(stream=True))

        assert response.status == 400
        assert (await response.json()) == {"error": error}

    lab.run(tmp_path, test)


def test_an_unknown_model_is_a_404(lab, tmp_path):
    async def test(node, client):
        await node.engine("a")
        response = await client.post(CHAT, json=lab.ask(model="huge"))

        assert response.status == 404
        error = (await response.json())["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "x-polypod-replica" not in response.headers

    lab.run(tmp_path, test)


def test_a_known_model_without_a_replica_is_a_503_that_says_when_to_come_back(lab, tmp_path):
    async def test(node, client):
        response = await client.post(CHAT, json=lab.ask())

        assert response.status == 503
        assert int(response.headers["retry-after"]) >= 1
        assert (await response.json())["error"]["code"] == "no_replica"

    lab.run(tmp_path, test)


def test_a_replica_can_be_asked_for_by_name(lab, tmp_path):
    async def test(node, client):
        await node.engine("fast", step_s=0.001)
        await node.engine("slow", step_s=1.0)
        for name in ("slow", "fast", "slow"):
            response = await client.post(CHAT, json=lab.ask(), headers={"x-polypod-replica": name})
            assert response.headers["x-polypod-replica"] == name
        response = await client.post(CHAT, json=lab.ask(), headers={"x-polypod-replica": "none"})
        assert response.status == 404

    lab.run(tmp_path, test)


def test_when_every_attempt_fails_the_client_gets_an_error_and_not_silence(lab, tmp_path):
    async def test(node, client):
        for name in ("a", "b", "c"):
            await node.engine(name, *[lab.status("500 Internal Server Error")] * 5)
        response = await client.post(CHAT, json=lab.ask())

        assert response.status >= 500
        assert (await response.json())["error"]["type"] == "server_error"

    lab.run(tmp_path, test, max_attempts=2)


# ---- after the first byte: said in-band, never silently


@pytest.mark.parametrize("cleanly", [False, True])
@pytest.mark.parametrize("then", [b"", b'data: {"choices":[{"del'])
def test_a_stream_whose_engine_dies_ends_with_an_error_and_without_done(
    lab, tmp_path, cleanly, then
):
    async def test(node, client):
        await node.engine("bad", lab.cut_after(2, cleanly=cleanly, then=then), step_s=0.001)
        good = await node.engine("good", step_s=0.1)
        response = await client.post(CHAT, json=lab.ask(stream=True))
        said, errors, is_done = await lab.texts(response)

        assert response.status == 200
        assert said == ["t0 ", "t1 "]
        assert (lab.only(errors)["code"], is_done) == ("replica_lost", False)
        assert good.visits == []
        assert lab.only(node.told(RequestFailed)).kind == "lost"
        assert 'status="broken_stream"} 1.0' in await (await client.get("/metrics")).text()

    lab.run(tmp_path, test)


def test_a_stream_that_falls_silent_ends_with_an_error(lab, tmp_path):
    async def speak_once(visit):
        await visit.begin_stream()
        await visit.chunk(lab.event("t0 "))
        await visit.until_left()

    async def test(node, client):
        engine = await node.engine("a", speak_once)
        began_s = time.monotonic()
        said, errors, is_done = await lab.texts(await client.post(CHAT, json=lab.ask(stream=True)))

        assert 0.2 < time.monotonic() - began_s < 10
        assert (said, len(errors), is_done) == (["t0 "], 1, False)
        assert lab.only(node.told(RequestFailed)).kind == "timeout"
        await wait_until(lab.only(engine.visits).was_left.is_set)

    lab.run(tmp_path, test, patience=Patience(first_byte_s=30, between_s=0.3))


def test_a_stream_whose_replica_is_said_to_be_down_ends_with_an_error(lab, tmp_path):
    async def test(node, client):
        engine = await node.engine("a", lab.good(tokens=1000, gap_s=0.02))
        response = await client.post(CHAT, json=lab.ask(stream=True))
        await response.content.readline()
        node.tell_down("a")
        _, errors, is_done = await lab.texts(response)

        assert (lab.only(errors)["code"], is_done) == ("replica_lost", False)
        assert len(engine.visits) == 1

    lab.run(tmp_path, test)


def test_a_stream_that_said_all_is_complete_however_its_connection_ends(lab, tmp_path):
    async def test(node, client):
        await node.engine("a", lab.cut_after(3, cleanly=False, then=lab.DONE))
        await answered(lab, await client.post(CHAT, json=lab.ask(stream=True)))

        assert node.told(RequestFailed) == []
        assert lab.only(node.told(RequestFinished)).output_tokens == 3

    lab.run(tmp_path, test)


def test_a_slow_client_is_not_a_silent_engine(lab, tmp_path):
    piece = lab.event("x" * 50_000)

    async def flood(visit):
        await visit.begin_stream()
        for _ in range(400):
            await visit.chunk(piece)
        await visit.chunk(lab.DONE)
        await visit.end_stream()

    async def test(node, client):
        await node.engine("a", flood)
        response = await client.post(CHAT, json=lab.ask(stream=True))
        await asyncio.sleep(2.0)
        assert len(await response.read()) == 400 * len(piece) + len(lab.DONE)
        assert node.told(RequestFailed) == []

    lab.run(tmp_path, test, patience=Patience(between_s=1.0))


# ---- clients that leave


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_its_engine_within_a_second(lab, tmp_path, stream):
    async def test(node, client):
        engine = await node.engine("a", lab.hang())
        asking = asyncio.create_task(client.post(CHAT, json=lab.ask(stream)))
        await wait_until(lambda: engine.visits)
        asking.cancel()
        await wait_until(lab.only(engine.visits).was_left.is_set, 1.0)

        assert len(node.told(ClientGone)) == 1
        assert len(node.answered(Cancel)) == 1
        assert 'status="client_gone"} 1.0' in await (await client.get("/metrics")).text()

    lab.run(tmp_path, test)


def test_a_client_that_leaves_in_mid_stream_stops_its_engine_within_a_second(lab, tmp_path):
    async def speak_and_watch(visit):
        await visit.begin_stream()
        await visit.chunk(lab.event("t0 "))
        await visit.until_left()

    async def test(node, client):
        engine = await node.engine("a", speak_and_watch)
        response = await client.post(CHAT, json=lab.ask(stream=True))
        await response.content.readline()
        response.close()
        await wait_until(lab.only(engine.visits).was_left.is_set, 1.0)

        assert len(node.told(ClientGone)) == 1

    lab.run(tmp_path, test)


def test_a_client_that_leaves_the_queue_is_forgotten(lab, tmp_path):
    async def test(node, client):
        engine = await node.engine(
            "a", lab.status("503 Service Unavailable", extra="retry-after: 60\r\n")
        )
        asking = asyncio.create_task(client.post(CHAT, json=lab.ask()))
        await wait_until(lambda: node.told(ReplicaBusy))
        asking.cancel()
        await wait_until(lambda: node.told(ClientGone))

        assert len(engine.visits) == 1
        assert node.answered(Cancel) == []

    lab.run(tmp_path, test)


def test_a_client_that_leaves_before_its_body_is_complete_is_never_heard_of(lab, tmp_path):
    async def test(node, _):
        _, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(
            b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{" % CHAT.encode()
        )
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.sleep(0.05)

        assert node.steps == []

    lab.run(tmp_path, test)


# ---- the end of a node


def test_a_stopping_node_lets_short_answers_finish(lab, tmp_path):
    async def test(node, client):
        engine = await node.engine("a", lab.good(tokens=3, gap_s=0.03))
        asking = asyncio.create_task(client.post(CHAT, json=lab.ask(stream=True)))
        await wait_until(lambda: engine.visits)
        node.stop.set()
        await answered(lab, await asking)

        async def ask_until_refused() -> None:
            async with asyncio.timeout(5):
                while True:
                    await client.get("/healthz")

        with pytest.raises(aiohttp.ClientConnectorError):
            await ask_until_refused()

    lab.run(tmp_path, test, grace_s=10)


def test_a_stopping_node_ends_long_answers_in_words(lab, tmp_path):
    async def test(node, client):
        stuck = await node.engine("a", lab.hang())
        whole = asyncio.create_task(client.post(CHAT, json=lab.ask()))
        await wait_until(lambda: stuck.visits)
        node.tell_down("a")  # so that the next request goes elsewhere; this one waits again
        await node.engine("b", lab.hang(), lab.good(tokens=1000, gap_s=0.02))
        await wait_until(lambda: node.answered(Retry))
        stream = await client.post(CHAT, json=lab.ask(stream=True))
        await wait_until(lambda: node.told(FirstToken))
        node.stop.set()
        began_s = time.monotonic()

        _, errors, is_done = await lab.texts(stream)
        response = await whole
        assert 0.2 < time.monotonic() - began_s < 10
        assert (lab.only(errors)["code"], is_done) == ("node_stopping", False)
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "node_stopping"
        assert len(node.told(ClientGone)) == 2
        assert node.answered(Reject) == []

    lab.run(tmp_path, test)


def test_a_request_whose_body_is_complete_after_the_end_is_refused(lab, tmp_path):
    async def test(node, _):
        await node.engine("a", lab.hang())
        body = json.dumps(lab.ask()).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:5])
        await asyncio.sleep(0.05)
        node.stop.set()
        await asyncio.sleep(0.5)
        writer.write(body[5:])
        answer = await reader.read()
        writer.close()

        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"node_stopping" in answer
        assert node.told(RequestArrived) == []

    lab.run(tmp_path, test)


# ---- the record


def test_a_record_of_many_faults_replays_to_the_same_actions(lab, tmp_path):
    """The same holds of every test here; this one mixes them."""

    async def test(node, client):
        faults = [lab.cut_before_headers(), lab.status("503 X"), lab.cut_after(1, cleanly=True)]
        await node.engine("a", *faults, *[lab.good()] * 2, lab.status("400 X"))
        await node.engine("b", lab.good(), *faults)

        async def one(number: int) -> None:
            model = "huge" if number == 7 else "tiny"
            response = await client.post(CHAT, json=lab.ask(number % 2 == 0, model=model))
            await response.read()

        await asyncio.gather(*(one(number) for number in range(30)))
        node.tell_down("a")
        await one(31)

    node = lab.run(tmp_path, test, busy_pause_s=0.05)

    kinds = {type(action) for step in node.steps for action in step.actions}
    assert {Dispatch, Retry, Reject, WakeAt} <= kinds
    assert len(node.steps) > 60


def test_a_record_holds_no_word_of_prompt_or_answer(lab, tmp_path):
    async def garbage(visit):
        visit.writer.write(b"zebra-garbage\r\n\r\n")
        await visit.writer.drain()

    async def test(node, client):
        await node.engine(
            "a",
            lab.chunks(lab.event("zebra-answer"), lab.DONE),
            lab.status("400 X", b"zebra-error"),
            lab.status("200 OK", b"zebra-whole"),
            garbage,
            lab.chunks(lab.event("zebra-answer"), b"data: zebra-half"),
        )
        asked = {"messages": [{"role": "user", "content": "zebra-question"}]}
        for stream in (True, False, False, False, True):
            await (await client.post(CHAT, json=lab.ask(stream, **asked))).read()
        await (await client.post(CHAT, json=lab.ask(model="zebra " * 99))).read()

    node = lab.run(tmp_path, test, breaker_failures=99)

    text = b"".join(map(encode, node.lines))
    assert len(node.told(RequestFinished)) + len(node.told(RequestFailed)) >= 5
    assert b"zebra" not in text


# ---- connections


def test_a_connection_that_an_engine_closes_after_a_stream_is_not_used_again(lab, tmp_path):
    """llama.cpp says keep-alive, and closes after every stream: reusing the connection would look like a death."""

    async def closing(visit) -> None:
        await lab.good()(visit)
        visit.cut()

    async def test(node, client):
        engine = await node.engine("a", *[closing] * 6, keeps_connections=False)
        for _ in range(6):
            await answered(lab, await client.post(CHAT, json=lab.ask(stream=True)))

        assert len(engine.visits) == 6
        assert all(b"connection: close" in visit.head.lower() for visit in engine.visits)
        assert node.told(RequestFailed) == []

    lab.run(tmp_path, test)


@pytest.mark.parametrize("stream", [False, True])
def test_the_policy_hears_whether_the_answer_is_streamed(lab, tmp_path, stream):
    async def test(node, client):
        await node.engine("a")
        await answered(lab, await client.post(CHAT, json=lab.ask(stream=stream)))
        assert [event.is_streamed for event in node.told(RequestArrived)] == [stream]

    lab.run(tmp_path, test)


@pytest.mark.parametrize("stream", [False, True])
def test_the_only_replica_that_dies_is_waited_for(lab, tmp_path, stream):
    """Its attempts are not used up before anybody has heard of its death, and at its next start it answers."""

    async def test(node, client):
        engine = await node.engine("only", lab.hang())
        asking = asyncio.create_task(client.post(CHAT, json=lab.ask(stream)))
        await wait_until(lambda: engine.visits)
        await engine.die()
        await asyncio.sleep(0.02)  # a supervisor takes a moment
        node.tell_down("only")
        await engine.start()
        node.attach(engine)
        await answered(lab, await asking)
        assert node.told(RequestFailed) == []

    lab.run(tmp_path, test)
