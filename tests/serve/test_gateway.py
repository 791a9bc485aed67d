"""The gateway over real sockets: what comes in goes on unmodified, and what is wrong is said in OpenAI's words."""

import asyncio
import itertools
import json
import subprocess
import time

import aiohttp
import openai
import pytest

from polypod.policy.events import RequestArrived
from polypod.serve.door import Rules

CHAT = "/v1/chat/completions"


# ---- what passes


def test_an_answer_in_one_piece_is_handed_on_byte_for_byte(lab, tmp_path):
    async def test(node, client):
        await node.engine("a")
        response = await client.post(CHAT, json=lab.ask())

        assert response.status == 200
        assert await response.read() == lab.answer_body()
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-polypod-replica"] == "a"
        assert response.headers["x-polypod-attempts"] == "1"

    lab.run(tmp_path, test)


def test_a_stream_is_handed_on_byte_for_byte(lab, tmp_path):
    async def test(node, client):
        await node.engine("a", lab.good(tokens=3))
        response = await client.post(CHAT, json=lab.ask(stream=True))

        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-polypod-replica"] == "a"
        sent = b"".join(lab.event(f"t{number} ") for number in range(3)) + lab.DONE
        assert await response.read() == sent

    lab.run(tmp_path, test)


def test_the_engine_gets_the_bytes_the_client_sent(lab, tmp_path):
    body = (
        b' { "x_vendor" : {"b":1,"a":[ ]} ,\n\t"messages":[{"content":"\\u6c34 \xe6\xb0\xb4"}],"temperature": 1e0,'
        b'"model":"old", "seed":18446744073709551617, "model":"tiny" }\n'
    )

    async def test(node, client):
        engine = await node.engine("a")
        await client.post(
            CHAT, data=body, headers={"content-type": "application/x-www-form-urlencoded"}
        )

        assert lab.only(engine.visits).body == body
        assert b"content-type: application/json\r\n" in lab.only(engine.visits).head.lower()

    lab.run(tmp_path, test)


def test_the_engine_gets_our_secret_and_never_the_clients(lab, tmp_path):
    async def test(node, client):
        engine = await node.engine("a")
        node.attach(engine, secret="ours")
        headers = {"authorization": "Bearer theirs", "cookie": "a=b", "x-request-id": "r-1"}
        await client.post(CHAT, json=lab.ask(), headers=headers)

        head = lab.only(engine.visits).head.lower()
        assert b"authorization: bearer ours\r\n" in head
        assert b"x-request-id: r-1\r\n" in head
        assert b"theirs" not in head
        assert b"cookie" not in head

    lab.run(tmp_path, test)


def test_the_policy_is_told_what_routing_needs(lab, tmp_path):
    async def test(node, client):
        await node.engine("a")
        messages = [{"role": "user", "content": "x" * 400}]
        asked = lab.ask(messages=messages, max_tokens=9)
        await client.post(CHAT, json=asked, headers={"x-polypod-replica": "a"})

        arrived = lab.only(node.told(RequestArrived))
        assert (arrived.model, arrived.max_output_tokens) == ("tiny", 9)
        assert arrived.input_tokens == len(json.dumps(messages)) // 4
        assert not arrived.input_is_exact
        assert arrived.only_replica == "a"

    lab.run(tmp_path, test)


def test_a_character_split_over_chunks_arrives_whole(lab, tmp_path):
    event = b'data: {"choices":[{"delta":{"content":"' + "水".encode() + b'"}}]}\n\n'
    cuts = [event[:40], event[40:41], event[41:], lab.DONE]

    async def test(node, client):
        await node.engine("a", lab.chunks(*cuts, gap_s=0.01))
        response = await client.post(CHAT, json=lab.ask(stream=True))

        assert await lab.texts(response) == (["水"], [], True)

    lab.run(tmp_path, test)


def test_each_event_goes_out_when_it_comes_in(lab, tmp_path):
    async def test(node, client):
        await node.engine("a", lab.good(tokens=5, gap_s=0.1))
        response = await client.post(CHAT, json=lab.ask(stream=True))
        lines = response.content
        times_s = [time.monotonic() async for line in lines if line.startswith(b"data: {")]

        assert len(times_s) == 5
        assert times_s[-1] - times_s[0] > 0.3  # sent over 0.4 s

    lab.run(tmp_path, test)


def test_64_tiny_chunks_do_not_wait_for_a_delayed_acknowledgement(lab, tmp_path):
    async def test(node, client):
        await node.engine("a", *[lab.good(tokens=64)] * 40)

        async def took_s() -> float:
            began_s = time.monotonic()
            await (await client.post(CHAT, json=lab.ask(stream=True))).read()
            return time.monotonic() - began_s

        for _ in range(
            40
        ):  # with Nagle's algorithm none is faster than 40 ms; on a busy machine some are not
            if await took_s() < 0.035:
                return
        pytest.fail("not one stream in 40 was faster than a delayed acknowledgement")

    lab.run(tmp_path, test)


def test_200_streams_at_once_all_complete(lab, tmp_path):
    async def test(node, client):
        slow = lab.good(tokens=5, gap_s=0.05)
        await node.engine("a", *[slow] * 200)
        await node.engine("b", *[slow] * 200)

        async def one() -> tuple[list[str], list, bool]:
            return await lab.texts(await client.post(CHAT, json=lab.ask(stream=True)))

        answers = await asyncio.gather(*(one() for _ in range(200)))
        whole = ([f"t{number} " for number in range(5)], [], True)
        assert answers == [whole] * 200

    lab.run(tmp_path, test)


def test_a_slow_client_slows_the_engine_instead_of_filling_memory(lab, tmp_path):
    piece = lab.event("x" * 50_000)
    sent = []

    async def flood(visit):
        await visit.begin_stream()
        for _ in range(1000):
            await visit.chunk(piece)
            sent.append(len(piece))
        await visit.chunk(lab.DONE)
        await visit.end_stream()

    async def test(node, client):
        await node.engine("a", flood)
        response = await client.post(CHAT, json=lab.ask(stream=True))
        await asyncio.sleep(0.5)

        assert sum(sent) < 20e6  # of 50 MB
        assert len(await response.read()) == 1000 * len(piece) + len(lab.DONE)

    lab.run(tmp_path, test)


# ---- who may come in, and with what


async def error_of(response: aiohttp.ClientResponse) -> dict[str, object]:
    error = (await response.json())["error"]
    assert list(error) == ["message", "type", "param", "code"]
    return error


LOOPBACK = ["127.0.0.1", "localhost", "LOCALHOST:80", "[::1]", "[::1]:9", "127.0.0.1:1"]
FOREIGN = [
    "evil.example",
    "127.0.0.1.evil.example",
    "evil@example",
    "",
    "127.0.0.2",
    "[::1",
    "localhost.:80",
]
PATHS = [CHAT, "/v1/models", "/metrics", "/healthz", "/nowhere"]


def test_loopback_names_may_come_in(lab, tmp_path):
    async def test(node, client):
        for host in LOOPBACK:
            assert (await client.get("/v1/models", headers={"host": host})).status == 200, host

    lab.run(tmp_path, test)


def test_other_host_names_may_not(lab, tmp_path):
    async def test(node, client):
        for host, path in itertools.product(FOREIGN, PATHS):
            response = await client.get(path, headers={"host": host})
            assert response.status == 403, (host, path)
            error = await error_of(response)
            assert error["code"] == "forbidden_host"
            assert "127.0.0.1, localhost, [::1]" in error["message"]

    lab.run(tmp_path, test)


def test_a_web_page_from_elsewhere_may_not_post(lab, tmp_path):
    async def test(node, client):
        await node.engine("a")
        foreign = await client.post(
            CHAT, json=lab.ask(), headers={"origin": "https://evil.example"}
        )
        null = await client.post(CHAT, json=lab.ask(), headers={"origin": "null"})
        local = await client.post(CHAT, json=lab.ask(), headers={"origin": "http://localhost:3000"})

        assert (foreign.status, null.status, local.status) == (403, 403, 200)
        assert not any(name.lower().startswith("access-control") for name in local.headers)

    lab.run(tmp_path, test)


def test_an_allowed_host_may_come_in(lab, tmp_path):
    door = lab.Door(Rules(hosts=frozenset({"pod.lan"})))

    async def test(node, client):
        assert (await client.get("/v1/models", headers={"host": "pod.lan:8000"})).status == 200
        assert (await client.get("/v1/models", headers={"host": "localhost"})).status == 403

    lab.run(tmp_path, test, door=door)


def test_a_bad_body_is_a_400_that_names_the_place(lab, tmp_path):
    bad = [
        (b"hello", "invalid_json", None),
        (b"", "invalid_json", None),
        (b"[]", "invalid_type", None),
        (b'{"messages": []}', "missing_required_parameter", "model"),
        (b'{"model": 1, "messages": []}', "invalid_type", "model"),
    ]

    async def test(node, client):
        engine = await node.engine("a")
        for body, code, param in bad:
            response = await client.post(CHAT, data=body)
            error = await error_of(response)
            assert (response.status, error["code"], error["param"]) == (400, code, param)
        assert engine.visits == []

    lab.run(tmp_path, test)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_above_the_limit_is_a_413_and_one_at_the_limit_passes(lab, tmp_path, is_chunked):
    small = json.dumps(lab.ask()).encode()
    limit = len(small) + 300_000

    async def sent(client, size: int) -> int:
        body = small + b" " * (size - len(small))

        async def parts():
            for start in range(0, len(body), 50_000):
                yield body[start : start + 50_000]

        response = await client.post(CHAT, data=parts() if is_chunked else body)
        await response.read()
        return response.status

    async def test(node, client):
        await node.engine("a")

        assert await sent(client, limit) == 200
        assert await sent(client, limit + 1) == 413
        assert await sent(client, limit) == 200

    lab.run(tmp_path, test, door=lab.Door(Rules(largest_body_bytes=limit)))


def test_a_body_announced_too_large_is_refused_before_it_is_sent(lab, tmp_path):
    async def test(node, client):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(
            b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n"
            % CHAT.encode()
        )
        async with asyncio.timeout(2):
            head = await reader.readuntil(b"\r\n\r\n")
        writer.close()

        assert head.startswith(b"HTTP/1.1 413 ")

    lab.run(tmp_path, test)


def test_a_wrong_method_is_a_405_that_says_which_are_right(lab, tmp_path):
    wrong = [
        ("GET", CHAT, "POST"),
        ("HEAD", CHAT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/tiny", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("PUT", "/metrics", "GET, HEAD"),
    ]

    async def test(node, client):
        for method, path, allow in wrong:
            response = await client.request(method, path)
            assert (response.status, response.headers["allow"]) == (405, allow), (method, path)
            if method != "HEAD":
                assert (await error_of(response))["code"] == "method_not_allowed"

    lab.run(tmp_path, test)


def test_an_unknown_path_is_a_404_that_says_where_to_go(lab, tmp_path):
    async def test(node, client):
        for path in ("/", "/v1", "/v1/completions", "/v1/chat/completions/", "/v1/modelsx", "/%00"):
            response = await client.post(path, json=lab.ask())
            assert response.status == 404, path
            error = await error_of(response)
            assert error["code"] == "unknown_url"
            assert CHAT in error["message"]

    lab.run(tmp_path, test)


def test_head_is_get_without_the_body(lab, tmp_path):
    async def test(node, client):
        for path in ("/v1/models", "/metrics"):
            head, get = await client.head(path), await client.get(path)
            assert (head.status, await head.read()) == (200, b"")
            assert head.headers["content-type"] == get.headers["content-type"]

    lab.run(tmp_path, test)


def test_a_given_request_id_comes_back_and_a_missing_or_odd_one_is_made(lab, tmp_path):
    async def test(node, client):
        await node.engine("a")

        async def request_id(given: str | None) -> str:
            headers = {} if given is None else {"x-request-id": given}
            return (await client.post(CHAT, json=lab.ask(), headers=headers)).headers[
                "x-request-id"
            ]

        assert await request_id("my id-1") == "my id-1"
        assert await request_id("x" * 128) == "x" * 128
        made = [await request_id(None), await request_id("x" * 129), await request_id("wässer")]
        assert len(set(made)) == 3
        assert all(len(one) < 40 and one.isascii() for one in made)
        assert (await client.get("/nowhere")).headers["x-request-id"]

    lab.run(tmp_path, test)


# ---- models, health, metrics


def test_the_models_of_the_node_are_listed_before_a_replica_is_up(lab, tmp_path):
    async def test(node, client):
        listed = await (await client.get("/v1/models")).json()
        one = await (await client.get("/v1/models/tiny")).json()
        unknown = await client.get("/v1/models/huge")

        assert [model["id"] for model in listed["data"]] == ["tiny"]
        assert one == listed["data"][0]
        assert unknown.status == 404
        assert (await error_of(unknown))["code"] == "model_not_found"

    lab.run(tmp_path, test)


def test_health_follows_the_replicas(lab, tmp_path):
    async def test(node, client):
        async def health() -> tuple[int, dict]:
            response = await client.get("/healthz")
            return response.status, await response.json()

        assert await health() == (503, {"status": "unserved", "unserved": ["tiny"], "replicas": []})

        await node.engine("a")
        replica = {
            "replica": "a",
            "epoch": 1,
            "model": "tiny",
            "pool": "main",
            "state": "up",
            "reason": "",
            "foresight": {"prefill_correction_ratio": 1.0, "decode_correction_ratio": 1.0},
        }
        assert await health() == (200, {"status": "ok", "unserved": [], "replicas": [replica]})

        node.tell_down("a")
        code, shown = await health()
        assert (code, shown["unserved"]) == (503, ["tiny"])
        gone = {"state": "down", "reason": "it died", "foresight": {}}
        assert shown["replicas"] == [replica | gone]
        assert (await samples(client))['polypod_replica_up{model="tiny",replica="a"}'] == 0

    lab.run(tmp_path, test)


async def samples(client: aiohttp.ClientSession) -> dict[str, float]:
    text = await (await client.get("/metrics")).text()
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in rows if "_created" not in name}


def test_the_metrics_count_what_happened(lab, tmp_path):
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":2}}\n\n'
    four = [lab.event(str(number)) for number in range(4)]

    async def test(node, client):
        await node.engine(
            "a",
            lab.good(),
            lab.chunks(*four, usage, lab.DONE, gap_s=0.03),
            lab.status("400 Bad Request"),
        )
        await (await client.post(CHAT, json=lab.ask())).read()
        await (await client.post(CHAT, json=lab.ask(stream=True))).read()
        await (await client.post(CHAT, json=lab.ask())).read()
        await (await client.post(CHAT, json=lab.ask(model="/etc/passwd"))).read()
        seen = await samples(client)

        assert seen['polypod_requests_total{model="tiny",status="200"}'] == 2
        assert seen['polypod_requests_total{model="tiny",status="400"}'] == 1
        assert seen['polypod_requests_total{model="unknown",status="404"}'] == 1
        assert seen['polypod_requests_in_flight{model="tiny"}'] == 0
        assert seen['polypod_tokens_total{direction="input",model="tiny"}'] == 7 + 11
        assert seen['polypod_tokens_total{direction="output",model="tiny"}'] == 3 + 2
        streams = 'polypod_time_to_first_token_seconds_count{model="tiny",replica="a"}'
        assert seen[streams] == 1
        assert seen['polypod_time_per_output_token_seconds_count{model="tiny",replica="a"}'] == 1
        token_s = seen['polypod_time_per_output_token_seconds_sum{model="tiny",replica="a"}']
        assert 0.11 < token_s < 1  # 4 gaps of 30 ms between 5 events, over 2 - 1
        first_s = seen['polypod_time_to_first_token_seconds_sum{model="tiny",replica="a"}']
        assert 0 < first_s < 10
        assert seen['polypod_replica_up{model="tiny",replica="a"}'] == 1
        for phase in ("prefill", "decode"):
            name = f'polypod_step_time_correction{{phase="{phase}",replica="a"}}'
            assert seen[name] == node.policy.corrections()["a", phase]
        known = node.policy.foresight()["a"]
        for until in ("first_token", "finish"):
            for what in ("predicted", "measured"):
                name = f'polypod_foresight_seconds{{replica="a",until="{until}",what="{what}"}}'
                assert seen[name] == pytest.approx(known[f"{what}_{until}_s"])
        page = await (await client.get("/healthz")).json()
        assert page["replicas"][0]["foresight"] == pytest.approx(known)
        assert not any("passwd" in name for name in seen)

        await (await client.post(CHAT, data=b"{")).read()
        assert (await samples(client))['polypod_requests_total{model="unknown",status="400"}'] == 1

    lab.run(tmp_path, test)


def test_a_request_in_flight_is_counted_so(lab, tmp_path):
    async def test(node, client):
        go_on = asyncio.Event()

        async def wait(visit):
            await go_on.wait()
            await lab.good()(visit)

        engine = await node.engine("a", wait)
        asking = asyncio.create_task(client.post(CHAT, json=lab.ask()))
        while not engine.visits:
            await asyncio.sleep(0.005)
        assert (await samples(client))['polypod_requests_in_flight{model="tiny"}'] == 1

        go_on.set()
        await (await asking).read()
        assert (await samples(client))['polypod_requests_in_flight{model="tiny"}'] == 0

    lab.run(tmp_path, test)


# ---- referees


def test_the_openai_client_reads_answers_streams_models_and_errors(lab, tmp_path):
    async def test(node, _):
        await node.engine("a", lab.good(), lab.good(tokens=3), lab.status("400 Bad Request"))
        async with openai.AsyncOpenAI(
            base_url=f"{node.url}/v1", api_key="k", max_retries=0
        ) as client:
            asked = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
            answer = await client.chat.completions.create(**asked)
            stream = await client.chat.completions.create(**asked, stream=True)
            said = [chunk.choices[0].delta.content async for chunk in stream]
            models = [model.id async for model in client.models.list()]
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(**asked)
            with pytest.raises(openai.NotFoundError, match="huge"):
                await client.chat.completions.create(**asked | {"model": "huge"})

        assert answer.choices[0].message.content == "hello"
        assert said == ["t0 ", "t1 ", "t2 "]
        assert models == ["tiny"]

    lab.run(tmp_path, test)


def test_the_openai_client_is_told_when_a_stream_breaks(lab, tmp_path):
    async def test(node, _):
        await node.engine("a", lab.cut_after(2, cleanly=False))
        async with openai.AsyncOpenAI(
            base_url=f"{node.url}/v1", api_key="k", max_retries=0
        ) as client:
            stream = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            said = []

            async def read() -> None:
                async for chunk in stream:
                    said.append(chunk.choices[0].delta.content)  # noqa: PERF401 - kept when it breaks

            with pytest.raises(openai.APIError, match="broke off"):
                await read()

        assert said == ["t0 ", "t1 "]

    lab.run(tmp_path, test)


def curl(*arguments: str) -> str:
    command = ["curl", "--silent", "--show-error", "--max-time", "10", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_curl_needs_no_content_type_and_reads_a_stream(lab, tmp_path):
    async def test(node, _):
        await node.engine("a")
        url, body = node.url + CHAT, json.dumps(lab.ask(stream=True))
        text = await asyncio.to_thread(curl, "-N", "-d", body, url)

        assert (
            text
            == "".join(lab.event(f"t{number} ").decode() for number in range(3)) + lab.DONE.decode()
        )

    lab.run(tmp_path, test)


def test_curl_is_told_of_a_body_above_the_limit_without_sending_it(lab, tmp_path):
    big = tmp_path / "big.json"
    big.write_bytes(b" " * (9 << 20))

    async def test(node, _):
        shown = ["-w", "%{http_code} %{size_upload}", "-o", "/dev/null"]
        text = await asyncio.to_thread(curl, *shown, "--data-binary", f"@{big}", node.url + CHAT)
        code, uploaded = text.split()

        assert code == "413"
        assert int(uploaded) < 1 << 20

    lab.run(tmp_path, test)
