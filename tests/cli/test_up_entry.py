"""Who may come in, as the flags of `up` say it."""

import argparse
from pathlib import Path

import pytest

from polypod.cli.up_entry import add_entry, entry, within_descriptors
from polypod.errors import InputError
from polypod.serve.door import LOOPBACK_HOSTS
from polypod.serve.keys import Grant, KeyStore, keys_folder


def given(*words: str):
    parser = argparse.ArgumentParser()
    add_entry(parser)
    return parser.parse_args(words)


def asked(state: Path, *words: str):
    return entry(given(*words), state)


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


def test_all_bodies_together_may_have_no_less_than_one(tmp_path) -> None:
    assert asked(tmp_path, "--max-bodies", "64 MiB").rules.most_body_bytes == 64 << 20
    with pytest.raises(
        InputError, match=r"--max-bodies 1 MiB .* raise it to 8 MiB or lower --max-body"
    ):
        asked(tmp_path, "--max-bodies", "1 MiB")


def test_as_many_connections_come_in_as_there_are_descriptors_for(tmp_path, capsys) -> None:
    who = asked(tmp_path)
    within = within_descriptors(given(), who, engines=2, sequences=1 << 22)
    assert 0 < within.rules.most_connections < 1 << 22
    assert "the plan has room for 4,194,304" in capsys.readouterr().err

    within = within_descriptors(given("--max-connections", "7"), who, engines=2, sequences=1 << 22)
    assert within.rules.most_connections == 7
    assert capsys.readouterr().err == ""
