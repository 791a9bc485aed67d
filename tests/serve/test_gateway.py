"""The gateway over real sockets: what comes in goes on unmodified, and what is wrong is said in OpenAI's words."""

import json


def test_an_answer_in_one_piece_is_handed_on_byte_for_byte(lab, tmp_path):
    async def test(node, client):
        engine = await node.engine("a")
        response = await client.post("/v1/chat/completions", json=lab.ask())

        assert response.status == 200
        assert await response.read() == lab.answer_body()
        assert response.headers["x-polypod-replica"] == "a"
        assert response.headers["x-polypod-attempts"] == "1"
        assert response.headers["x-request-id"]
        assert len(engine.visits) == 1

    lab.run(tmp_path, test)


def test_a_stream_is_handed_on_byte_for_byte(lab, tmp_path):
    async def test(node, client):
        await node.engine("a", lab.good(tokens=3))
        response = await client.post("/v1/chat/completions", json=lab.ask(stream=True))

        assert response.headers["content-type"].startswith("text/event-stream")
        sent = b"".join(lab.event(f"t{number} ") for number in range(3)) + lab.DONE
        assert await response.read() == sent

    lab.run(tmp_path, test)
