"""Real engines, each started once for the whole run."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from polypod.serve.engines import ENGINES, USUAL, Endpoint, EngineSpec
from polypod.serve.engines.embedded import embedded_weights
from polypod.serve.supervise import make_socket_directory

CONTEXT_TOKENS = 1024


@dataclass(frozen=True)
class RunningEngine:
    """An engine under test."""

    name: str
    endpoint: Endpoint
    process: int
    cores: tuple[int, ...]

    @property
    def client(self) -> httpx2.Client:
        """A client of its own for each use; to be closed."""
        transport = httpx2.HTTPTransport(uds=str(self.endpoint.socket))
        return httpx2.Client(transport=transport, base_url="http://engine", timeout=60)

    def request(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> httpx2.Response:
        """Send one request: a POST where it has a body."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = self.endpoint.headers if headers is None else headers
        with self.client as client:
            return client.request(
                "GET" if body is None else "POST", path, content=data, headers=named
            )

    def chat(self, content: str, **parameters: Any) -> dict[str, Any]:
        """A whole greedy answer."""
        response = self.request("/v1/chat/completions", ask(content, **parameters))
        assert response.status_code == 200, response.text
        return response.json()

    def text(self, content: str, **parameters: Any) -> str:
        return self.chat(content, **parameters)["choices"][0]["message"]["content"]

    def stream(self, content: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """The events of a greedy answer, as they come; ends after [DONE]."""
        body = ask(content, stream=True, stream_options={"include_usage": True}, **parameters)
        path, headers = "/v1/chat/completions", self.endpoint.headers
        with (
            self.client as client,
            client.stream("POST", path, json=body, headers=headers) as response,
        ):
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line.startswith("data: [DONE]"):
                    return
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))
        pytest.fail("the stream ended without [DONE]")

    def metric(self, name: str) -> float:
        """One counter or gauge, by the name that all engines share."""
        text = self.request("/metrics").text
        lines = (line for line in text.splitlines() if not line.startswith("#"))
        (line,) = (line for line in lines if line.partition(":")[2].startswith(f"{name} "))
        return float(line.split()[-1])


def ask(content: str, **parameters: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "smol", "messages": messages, "temperature": 0} | parameters


@pytest.fixture(scope="session")
def weights() -> Path:
    return embedded_weights()


@pytest.fixture(scope="session")
def started(weights: Path) -> Iterator[dict[str, RunningEngine]]:
    """All engines, loading side by side, each on a core of its own where there are enough."""
    directory = make_socket_directory()
    cores = sorted(os.sched_getaffinity(0))
    engines, processes = {}, []
    for number, engine in enumerate(ENGINES[name] for name in USUAL["gguf"]):
        spec = EngineSpec(
            replica=f"{engine.name}-0",
            model="smol",
            weights=weights,
            cores=(cores[number % len(cores)],),
            context_tokens=CONTEXT_TOKENS,
            max_sequences=4,
            socket=directory / f"{number}.sock",
            secret="open sesame",
            log=directory / f"{number}.log",
        )
        with spec.log.open("wb") as log:
            process = subprocess.Popen(
                engine.command(spec),
                env=os.environ | engine.environment(spec),
                stdout=log,
                stderr=log,
            )
        processes.append(process)
        endpoint = Endpoint(socket=spec.socket, secret=spec.secret)
        engines[engine.name] = RunningEngine(engine.name, endpoint, process.pid, spec.cores)
    for process, engine in zip(processes, engines.values(), strict=True):
        _wait(process, engine, engine.endpoint.socket.with_suffix(".log"))
    yield engines
    for process in processes:
        process.terminate()
        began_s = time.monotonic()
        process.wait(timeout=10)
        assert time.monotonic() - began_s < 2, "SIGTERM must end an engine promptly"
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def _wait(process: subprocess.Popen[bytes], engine: RunningEngine, log: Path) -> None:
    path = ENGINES[engine.name].health_path
    for _ in range(1200):
        if _listens(engine.endpoint.socket) and engine.request(path).status_code == 200:
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    pytest.fail(f"{engine.name} is not ready: {log.read_text()}")


@pytest.fixture(params=USUAL["gguf"])
def engine(request: pytest.FixtureRequest, started: dict[str, RunningEngine]) -> RunningEngine:
    return started[request.param]


@pytest.fixture
def openvino(started: dict[str, RunningEngine]) -> RunningEngine:
    return started["openvino"]


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
