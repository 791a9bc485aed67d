"""Engines on a loopback port: a free one at each start, a secret that only our own process hears."""

import asyncio
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from polypod.serve.engines import EngineSpec
from polypod.serve.engines.ports import free_port, is_ours, listening_user, with_own_port
from polypod.serve.engines.spec import SECRET_VARIABLE, Endpoint
from polypod.serve.supervise import Down, Patience, Replica, Supervisor, Up, make_socket_directory

SERVER = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        right = self.headers.get("authorization") == "Bearer " + os.environ["POLYPOD_ENGINE_SECRET"]
        self.send_response(200 if right else 401)
        self.end_headers()

    def log_message(self, *_):
        pass

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@dataclass(frozen=True)
class PortEngine:
    """An engine that knows TCP alone."""

    name: str = "port engine"
    distribution: str = "none"
    health_path: str = "/health"
    metrics_path: str = "/metrics"
    keeps_connections: bool = True
    kv_bytes_per_element: float = 2.0
    max_step_tokens: int = 1

    def version(self) -> str | None:
        return "1"

    def command(self, spec: EngineSpec) -> list[str]:
        return [sys.executable, "-c", SERVER, str(spec.port)]

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        return {SECRET_VARIABLE: str(spec.secret)}


def spec_in(folder: Path, directory: Path) -> EngineSpec:
    return EngineSpec(
        replica="p-0", model="m", weights=folder / "w", cores=(), context_tokens=1, max_sequences=1, socket=directory / "p-0.sock",
        secret="sesame", log=folder / "p-0.log", port=0,
    )  # fmt: skip


def test_an_engine_on_a_port_is_started_asked_killed_and_started_on_another(tmp_path: Path) -> None:
    told: asyncio.Queue[Up | Down] = asyncio.Queue()
    directory = make_socket_directory()

    async def status(endpoint: Endpoint, headers: dict[str, str]) -> int:
        async with (
            aiohttp.ClientSession() as client,
            client.get(endpoint.origin, headers=headers) as response,
        ):
            return response.status

    async def main() -> tuple[Endpoint, Endpoint]:
        replica = Replica(engine=PortEngine(), spec=spec_in(tmp_path, directory))
        async with Supervisor([replica], told.put, Patience(first_restart_s=0.01)):
            first = await told.get()
            assert isinstance(first, Up)
            assert await status(first.endpoint, first.endpoint.headers) == 200
            assert await status(first.endpoint, {}) == 401
            os.kill(first.process, signal.SIGKILL)
            assert isinstance(await told.get(), Down)
            second = await told.get()
            assert isinstance(second, Up)
            return first.endpoint, second.endpoint

    first, second = asyncio.run(main())

    directory.rmdir()
    assert first.host == second.host == "127.0.0.1"
    assert listening_user(int(second.port or 0)) is None  # stopped with its supervisor


def test_a_spec_for_a_socket_keeps_it_and_one_for_a_port_gets_a_free_one(tmp_path: Path) -> None:
    spec = with_own_port(spec_in(tmp_path, tmp_path))
    assert spec.port not in (None, 0)
    assert listening_user(int(spec.port or 0)) is None


def test_only_a_listener_of_this_user_is_spoken_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        endpoint = Endpoint(host="127.0.0.1", port=port)
        assert not is_ours(endpoint)  # bound, and nobody listens
        listener.listen()
        assert is_ours(endpoint)
        assert listening_user(port) == os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        assert not is_ours(endpoint)
    assert is_ours(Endpoint(socket=Path("/run/a.sock")))


def test_a_free_port_leaves_the_two_above_it_free_too() -> None:
    port = free_port()
    for near in (port, port + 1, port + 2):
        with socket.socket() as one:
            one.bind(("127.0.0.1", near))
