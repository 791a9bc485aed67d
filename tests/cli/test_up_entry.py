"""Who may come in, as the flags of `up` say it."""

import argparse
from pathlib import Path

import pytest

from polypod.cli.up_entry import add_entry, entry
from polypod.errors import InputError
from polypod.serve.door import LOOPBACK_HOSTS
from polypod.serve.keys import Grant, KeyStore, keys_folder


def asked(state: Path, *words: str):
    parser = argparse.ArgumentParser()
    add_entry(parser)
    return entry(parser.parse_args(words), state)


def test_loopback_is_the_default_and_needs_nothing(tmp_path: Path) -> None:
    who = asked(tmp_path)
    assert (who.keys, who.rules.needs_key, who.rules.any_address) == (None, False, False)
    assert who.rules.hosts == LOOPBACK_HOSTS
    assert list(tmp_path.iterdir()) == [], "asking leaves nothing behind"


@pytest.mark.parametrize(
    "words", [("--host", "0.0.0.0"), ("--host", "10.0.0.7"), ("--require-key",)]
)
def test_without_an_active_key_others_cannot_be_let_in(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    with pytest.raises(InputError, match=r"needs an API key.*polypod keys create"):
        asked(tmp_path, *words)
    store = KeyStore(keys_folder(tmp_path))
    key, _ = store.create(Grant())
    assert asked(tmp_path, *words).rules.needs_key
    store.revoke(key.id)
    with pytest.raises(InputError, match="none that is active"):
        asked(tmp_path, *words)


def test_names_clients_may_call_it_by(tmp_path: Path) -> None:
    KeyStore(keys_folder(tmp_path)).create(Grant())
    rules = asked(
        tmp_path, "--host", "10.0.0.7", "--allow-host", "Pod.LAN", "--allow-host", "[fd00::1]"
    ).rules
    assert {"10.0.0.7", "pod.lan", "fd00::1"} <= rules.hosts
    assert rules.any_address
    for wrong in ("https://pod.lan", "pod.lan:80", ""):
        with pytest.raises(InputError, match="without scheme and port"):
            asked(tmp_path, "--allow-host", wrong)


def test_limits_wear_units(tmp_path: Path) -> None:
    rules = asked(tmp_path, "--max-body", "1 MiB", "--max-time", "5min").rules
    assert (rules.largest_body_bytes, rules.request_s) == (1 << 20, 300.0)
