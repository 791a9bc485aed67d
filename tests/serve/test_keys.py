"""Keys on disk: what was acknowledged is there after any kill, and what is there opens nothing by itself."""

import json
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from polypod.errors import FileError, InputError
from polypod.serve.keys import Grant, KeyStore, key_id


def test_a_token_is_shown_once_and_kept_nowhere(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    key, token = store.create(Grant(tenant="a"))
    store.close()

    secret = token.rpartition(key.id)[2].removeprefix("-")
    assert len(secret) == 43  # 256 bits in base64
    for file in (tmp_path / "keys").iterdir():
        assert secret.encode() not in file.read_bytes(), file


def test_what_was_granted_is_read_again(tmp_path: Path) -> None:
    grant = Grant(tenant="a", priority=3, models=("m", "n"), tokens_per_minute=5)
    key, token = KeyStore(tmp_path).create(grant, life_s=60)

    again = KeyStore(tmp_path)
    (found,) = again.all()
    assert found == key
    assert found.grant == grant
    assert found.digest == again.digest(token)
    assert key_id(token) == found.id
    assert again.digest(token[:-1]) != found.digest


def test_only_this_user_can_read_any_of_it(tmp_path: Path) -> None:
    KeyStore(tmp_path / "keys").create(Grant())
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    for name in ("pepper", "keys.db", "keys.db-wal"):
        path = tmp_path / "keys" / name
        assert not path.exists() or stat.S_IMODE(path.stat().st_mode) == 0o600, name


def test_a_pepper_others_can_read_is_refused(tmp_path: Path) -> None:
    KeyStore(tmp_path).create(Grant())
    (tmp_path / "pepper").chmod(0o640)
    with pytest.raises(FileError, match=r"pepper: has mode 0640.*chmod 600"):
        KeyStore(tmp_path)


def test_another_pepper_is_found_out_instead_of_refusing_every_key(tmp_path: Path) -> None:
    KeyStore(tmp_path).create(Grant())
    (tmp_path / "pepper").write_bytes(os.urandom(32))
    with pytest.raises(FileError, match="is not the pepper these keys were made with"):
        KeyStore(tmp_path)


def test_a_key_has_three_states(tmp_path: Path) -> None:
    now_s = 1000.0
    store = KeyStore(tmp_path, now_unix_s=lambda: now_s)
    short, _ = store.create(Grant(), life_s=10)
    long, _ = store.create(Grant())
    store.revoke(long.id)

    states = {key.id: (key.state(1009), key.state(1010)) for key in store.all()}
    assert states == {short.id: ("active", "expired"), long.id: ("revoked", "revoked")}
    with pytest.raises(InputError, match=r"no API key has the id 'x'.*polypod keys list"):
        store.revoke("x")


def test_a_rotated_key_hands_its_rights_on_and_ends_after_its_overlap(tmp_path: Path) -> None:
    store = KeyStore(tmp_path, now_unix_s=lambda: 1000.0)
    old, _ = store.create(Grant(tenant="a", priority=2), life_s=500)
    new, token = store.rotate(old.id, overlap_s=60)

    assert (new.grant, new.expires_unix_s) == (old.grant, 1500.0)
    assert new.digest == store.digest(token)
    (kept,) = [key for key in store.all() if key.id == old.id]
    assert (kept.state(1059), kept.state(1060)) == ("active", "revoked")

    assert store.revoke(old.id).state(1000) == "revoked", "a leak cannot wait for the overlap"
    with pytest.raises(InputError, match=f"key {old.id} is revoked"):
        store.rotate(old.id)


def test_a_reader_sees_that_somebody_else_changed_something(tmp_path: Path) -> None:
    reader, writer = KeyStore(tmp_path), KeyStore(tmp_path)
    before = reader.version()
    assert reader.version() == before
    key, _ = writer.create(Grant())
    created = reader.version()
    writer.revoke(key.id)
    assert len({before, created, reader.version()}) == 3


def test_a_file_put_in_the_place_of_the_old_one_is_read(tmp_path: Path) -> None:
    reader = KeyStore(tmp_path)
    before = reader.version()
    for file in tmp_path.glob("keys.db*"):
        file.unlink()
    with pytest.raises(FileError, match="No such file"):
        reader.version()
    key, _ = KeyStore(tmp_path).create(Grant())
    assert reader.version() != before
    assert [one.id for one in reader.all()] == [key.id]


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    KeyStore(tmp_path).create(Grant())
    for file in tmp_path.glob("keys.db*"):
        file.write_bytes(b"not a database, and long enough to be taken for one" * 100)
    with pytest.raises(FileError, match=r"keys\.db: cannot be read as a database of keys"):
        KeyStore(tmp_path)


def test_a_key_of_a_later_version_is_said_and_not_half_understood(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    store.create(Grant())
    with closing(sqlite3.connect(tmp_path / "keys.db")) as other, other:
        other.execute("""UPDATE keys SET grant_json = '{"may_fly": true}'""")
    with pytest.raises(FileError, match=r"does not understand .*may_fly"):
        store.all()


# One line for each acknowledged change, as a shell would see it.
MAKER = """
import sys
from pathlib import Path
from polypod.serve.keys import Grant, KeyStore
store = KeyStore(Path(sys.argv[1]))
while True:
    key, _ = store.create(Grant(tenant="t"))
    print("made", key.id, flush=True)
    store.revoke(key.id)
    print("revoked", key.id, flush=True)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_what_was_acknowledged_survives_kill_9_at_any_moment(tmp_path: Path, seed: int) -> None:
    """Two writers at once, killed at random moments; every acknowledged change is there, and the database is whole."""
    chance = random.Random(seed)
    acknowledged: list[list[str]] = []
    for _ in range(4):
        makers = [
            subprocess.Popen(
                [sys.executable, "-c", MAKER, str(tmp_path)], stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        assert makers[0].stdout is not None
        first = makers[0].stdout.readline()
        time.sleep(chance.uniform(0, 0.1))
        for maker in makers:
            maker.send_signal(signal.SIGKILL)
        said = [first + makers[0].communicate()[0], makers[1].communicate()[0]]
        acknowledged += [line.split() for text in said for line in text.splitlines(keepends=True) if line.endswith("\n")]  # fmt: skip

    states = {key.id: key.state(time.time()) for key in KeyStore(tmp_path).all()}
    assert len(acknowledged) > 8
    for word, id_ in acknowledged:
        assert id_ in states
        if word == "revoked":
            assert states[id_] == "revoked"
    with closing(sqlite3.connect(tmp_path / "keys.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


FULL = """
import resource, sys
from pathlib import Path
from polypod.errors import PolypodError
from polypod.serve.keys import Grant, KeyStore
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = KeyStore(Path(sys.argv[1]))
store.create(Grant())
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    for _ in range(100):
        store.create(Grant())
        print("made", flush=True)
except PolypodError as error:
    print(type(error).__name__, error, flush=True)
"""


def test_a_full_disk_is_said_and_what_was_there_before_stays(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    *made, said = done.stdout.splitlines()
    assert said.startswith("RunError")
    assert "nothing was changed" in said
    assert len(KeyStore(tmp_path).all()) == 1 + len(made)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="keys are kept there"):
        KeyStore(tmp_path / "file" / "keys")


def cli(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "polypod", "keys", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XDG_STATE_HOME": str(state)},
    )


def test_a_key_is_made_listed_and_revoked_from_the_shell(tmp_path: Path) -> None:
    made = json.loads(
        cli(
            tmp_path, "create", "--tenant", "a", "--models", "m,n", "--expires", "1h", "--json"
        ).stdout
    )
    assert made["key"].startswith(f"pp-{made['id']}-")
    assert (made["tenant"], made["models"], made["state"]) == ("a", ["m", "n"], "active")

    listed = cli(tmp_path, "list")
    assert made["id"] in listed.stdout
    assert made["key"] not in listed.stdout
    assert "revoked" in cli(tmp_path, "revoke", made["id"]).stdout
    (after,) = json.loads(cli(tmp_path, "list", "--json").stdout)["keys"]
    assert after["state"] == "revoked"
    assert "key" not in after


def test_a_limit_nobody_could_meet_is_refused(tmp_path: Path) -> None:
    done = cli(tmp_path, "create", "--requests-per-minute", "0")
    assert (done.returncode, "would refuse every request" in done.stderr) == (2, True)
