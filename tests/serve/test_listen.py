"""The port is taken early, on loopback only, and a port in use is said with the way out."""

import asyncio
import os
import socket
from contextlib import suppress

import aiohttp
import pytest
import uvloop

from polypod.errors import InputError, PortInUseError, RunError
from polypod.serve.listen import bind, serve


def test_a_free_port_is_taken_and_connections_wait_in_it() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            pass


def test_localhost_is_the_loopback_address() -> None:
    with bind("localhost", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_port_in_use_is_named_with_the_way_out() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            PortInUseError,
            match=rf"process {os.getpid()} \(.*\) listens on 127.0.0.1:{port}; .* --port",
        ):
            bind("127.0.0.1", port)


def test_a_port_just_left_can_be_taken_again() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            listener.settimeout(2)
            accepted, _ = listener.accept()
            accepted.close()  # our side closes first, and waits out TIME_WAIT
    bind("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com", ""])
def test_other_addresses_are_refused_with_the_reason(host: str) -> None:
    with pytest.raises(InputError, match=r"without an API key.*polypod keys create.*loopback only"):
        bind(host, 0)


def test_a_port_that_may_not_be_taken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Guarded(socket.socket):
        def bind(self, address: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Guarded)
    with pytest.raises(RunError, match=r"cannot listen on 127.0.0.1:80: Permission denied"):
        bind("127.0.0.1", 80)


def test_serving_that_is_cancelled_leaves_no_connection_and_no_exchange(lab, tmp_path) -> None:
    async def main() -> None:
        node = lab.Node(tmp_path)
        engine = await node.engine("a", lab.hang())
        serving = asyncio.create_task(serve(node.gateway, node.listener, node.stop))
        async with aiohttp.ClientSession(node.url) as client:
            asking = asyncio.create_task(client.post("/v1/chat/completions", json=lab.ask()))
            while not engine.visits:
                await asyncio.sleep(0.01)
            node.stop.set()
            await asyncio.sleep(0.05)
            assert not serving.done()  # it waits for the answer
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            with suppress(aiohttp.ClientError):  # the last words may still reach it
                assert (await asking).status == 503
            async with asyncio.timeout(5):
                await engine.visits[0].was_left.wait()
        assert node.driver._takers == {}
        await node.upstreams.close()
        await node.close()

    uvloop.run(main())
