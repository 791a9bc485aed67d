"""Where the wire's C cannot be compiled a node says so once, and serves in Python."""

import logging

import pytest

from polypod.errors import RunError
from polypod.serve.http import native


@pytest.fixture
def without_headers(monkeypatch):
    def missing(*_: object) -> None:
        msg = "Python's headers are not in /usr/include/python3.11; install them (Debian: python3-dev)"
        raise RunError(msg)

    monkeypatch.setattr(native, "extension", missing)
    native._loaded.cache_clear()
    yield
    native._loaded.cache_clear()


def test_it_is_said_once_why_and_what_to_install(without_headers, caplog):
    caplog.set_level(logging.WARNING, "polypod.serve")
    native.prepare()
    native.prepare()

    assert native.module("heads") is None
    assert native.module("relay") is None
    assert caplog.text.count("python3-dev") == 2  # once for each time that a node starts


@pytest.mark.usefixtures("without_headers")
def test_a_node_serves_the_same_in_python(lab, tmp_path):
    async def test(node, client):
        await node.engine("a", lab.good(tokens=5, gap_s=0.01), lab.good())
        streamed = await client.post("/v1/chat/completions", json=lab.ask(stream=True))
        assert await lab.texts(streamed) == ([f"t{n} " for n in range(5)], [], True)
        whole = await client.post("/v1/chat/completions", json=lab.ask())
        assert await whole.read() == lab.answer_body()

    lab.run(tmp_path, test)
