"""The port is taken early, on loopback only, and a port in use is said with the way out."""

import os
import socket

import pytest

from polypod.errors import InputError, PortInUseError, RunError
from polypod.serve.listen import bind


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
