"""Where an engine is reached, as the gateway and the warm-up read it."""

import asyncio
from pathlib import Path

import pytest

from polypod.serve.ask import Asker
from polypod.serve.engines.spec import Endpoint
from polypod.serve.upstream import Patience, Upstream


def test_an_endpoint_has_a_socket_or_a_host_with_a_port_and_never_both() -> None:
    for wrong in (
        {},
        {"host": "::1"},
        {"port": 80},
        {"socket": Path("/a.sock"), "host": "a", "port": 1},
    ):
        with pytest.raises(AssertionError):
            Endpoint(**wrong)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        (Endpoint(socket=Path("/run/a.sock")), "http://engine/v1/chat/completions"),
        (Endpoint(host="127.0.0.1", port=81), "http://127.0.0.1:81/v1/chat/completions"),
        (Endpoint(host="::1", port=81), "http://[::1]:81/v1/chat/completions"),
        (
            Endpoint(host="api.example", port=443, tls=True, path_prefix="/paas/v4"),
            "https://api.example:443/paas/v4/chat/completions",
        ),
    ],
)
def test_chat_goes_to(endpoint: Endpoint, url: str) -> None:
    assert endpoint.chat_url == url


def test_an_engine_on_a_port_is_asked_with_its_prefix_and_its_secret() -> None:
    heads: list[bytes] = []
    events = (
        b'data: {"choices": [{"delta": {"content": "yes"}}]}\n\n'
        b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}\n\ndata: [DONE]\n\n'
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"
        writer.write(head + b"content-length: %d\r\n\r\n" % len(events) + events)
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        endpoint = Endpoint(host="127.0.0.1", port=port, path_prefix="/own/v2", secret="sesame")
        async with Asker(
            endpoint.origin, headers=endpoint.headers, path_prefix=endpoint.path_prefix
        ) as asker:
            assert (await asker.ask("m", "hi", max_tokens=1)).text == "yes"
        upstream = Upstream(endpoint, Patience())
        response = await upstream.post(b"{}", request_id="r", is_stream=True)
        assert (response.status, await response.read()) == (200, events)
        await upstream.close()
        server.close()

    asyncio.run(main())

    assert len(heads) == 2
    for head in heads:
        assert head.startswith(b"POST /own/v2/chat/completions HTTP/1.1\r\n")
        assert b"authorization: bearer sesame\r\n" in head.lower()
