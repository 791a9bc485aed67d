"""API keys on disk: made, listed, revoked and replaced by an administrator, read by the nodes of this user.

    <folder>/pepper     32 random bytes, mode 0600, made once
    <folder>/keys.db    SQLite: of each key its name, rights, times and HMAC-SHA256(pepper, token); never the token

A token is `pp-ID-SECRET`; the secret has 256 bits. Whoever reads the database alone can neither use a key nor test a guess. Writes
are in WAL with `synchronous=FULL`: a change that was acknowledged is on the disk, and a reader sees it whole or not at all.
"""

import fcntl
import hmac
import os
import secrets
import sqlite3
import stat
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from polypod.errors import FileError, InputError, RunError, nearest_names

_PREFIX: Final = "pp"
_PEPPER_BYTES: Final = 32
_WRITER_BUSY_S: Final = 10.0  # that a writer waits for another one
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS install (pepper_digest BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, digest BLOB NOT NULL, grant_json BLOB NOT NULL,
  created_unix_s REAL NOT NULL, expires_unix_s REAL, revoked_unix_s REAL) WITHOUT ROWID;
"""


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the bearer of a key may do. `None` is no limit; no models are all models."""

    tenant: str = ""
    priority: int = 0
    models: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # prompt and answer together


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as it is kept."""

    id: str
    digest: bytes
    grant: Grant
    created_unix_s: float
    expires_unix_s: float | None = None
    revoked_unix_s: float | None = None

    def state(self, now_unix_s: float) -> Literal["active", "expired", "revoked"]:
        """Whether it opens anything at this time."""
        if self.revoked_unix_s is not None and self.revoked_unix_s <= now_unix_s:
            return "revoked"
        if self.expires_unix_s is not None and self.expires_unix_s <= now_unix_s:
            return "expired"
        return "active"


def key_id(token: str) -> str | None:
    """The public part of a token; None for a text that is no token of ours.

    >>> key_id("pp-0a1b-c-d"), key_id("sk-0a1b-c")
    ('0a1b', None)
    """
    prefix, _, rest = token.partition("-")
    found, dash, _ = rest.partition("-")
    return found if prefix == _PREFIX and found and dash else None


def keys_folder(state: Path) -> Path:
    """Where the keys of a state folder are."""
    return state / "keys"


class KeyStore:
    """The keys in one folder. Every method raises `FileError` or `RunError` for files that cannot be used."""

    def __init__(
        self,
        folder: Path,
        *,
        busy_s: float = _WRITER_BUSY_S,
        now_unix_s: Callable[[], float] = time.time,
    ) -> None:
        """Makes folder, pepper and database where they are not there yet. `busy_s` is how long to wait for another process."""
        self._folder = folder
        self._busy_s = busy_s
        self._now_unix_s = now_unix_s
        self._path = folder / "keys.db"
        with self._said():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _only_one(folder / ".lock"):
                self._pepper = _pepper(folder / "pepper")
                self._open()

    def create(self, grant: Grant, *, life_s: float | None = None) -> tuple[Key, str]:
        """A new key, and its token, which is kept nowhere."""
        now_s = self._now_unix_s()
        expires_s = None if life_s is None else now_s + life_s
        with self._writing():
            return self._insert(grant, now_s, expires_s)

    def revoke(self, id_: str) -> Key:
        """From now on it opens nothing. Revoking twice changes nothing. Raises `InputError` for no such key."""
        with self._writing():
            key = self._one(id_)
            if (
                key.state(self._now_unix_s()) != "revoked"
            ):  # a rotated one may still have its overlap
                self._revoke_at(id_, self._now_unix_s())
            return self._one(id_)

    def rotate(self, id_: str, *, overlap_s: float = 0.0) -> tuple[Key, str]:
        """A new key with the same rights and the same end, in one step; the old one is revoked after `overlap_s`.

        Raises `InputError` for a key that is not active, or not there.
        """
        now_s = self._now_unix_s()
        with self._writing():
            old = self._one(id_)
            if (state := old.state(now_s)) != "active":
                msg = (
                    f"key {id_} is {state}, so nothing can take its place; make a new one with "
                    "`polypod keys create`"
                )
                raise InputError(msg)
            new = self._insert(old.grant, now_s, old.expires_unix_s)
            self._revoke_at(id_, now_s + overlap_s)
            return new

    def all(self) -> list[Key]:
        """Every key there ever was, oldest first."""
        with self._said():
            return self._select("ORDER BY created_unix_s, id")

    def version(self) -> tuple[int, int]:
        """Changes when somebody else changed the keys, or put another file in their place; takes microseconds."""
        with self._said():
            inode = self._path.stat().st_ino
            if inode != self._inode:
                self._db.close()
                self._open()
            return inode, int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def digest(self, token: str) -> bytes:
        """What is kept of a token."""
        return hmac.digest(self._pepper, token.encode(), "sha256")

    def close(self) -> None:
        self._db.close()

    def _open(self) -> None:
        old = os.umask(0o077)  # nobody else reads who the tenants are
        try:
            self._db = sqlite3.connect(self._path, timeout=self._busy_s, isolation_level=None)
            weakref.finalize(self, self._db.close)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_TABLES)
        finally:
            os.umask(old)
        self._check_pepper()
        self._inode = self._path.stat().st_ino

    def _check_pepper(self) -> None:
        """Keys made with another pepper would all be refused, and nobody would know why."""
        ours = hmac.digest(self._pepper, b"install", "sha256")
        kept = self._db.execute("SELECT pepper_digest FROM install").fetchone()
        if kept is None:
            self._db.execute("INSERT INTO install VALUES (?)", (ours,))
        elif kept[0] != ours:
            problem = (
                "is not the pepper these keys were made with, so none of them can be checked; put the right file back, "
                "or move the folder away and make new keys"
            )
            raise FileError(self._folder / "pepper", problem)

    def _insert(self, grant: Grant, now_s: float, expires_s: float | None) -> tuple[Key, str]:
        id_ = secrets.token_hex(5)
        token = f"{_PREFIX}-{id_}-{secrets.token_urlsafe(32)}"
        self._db.execute(
            "INSERT INTO keys VALUES (?, ?, ?, ?, ?, NULL)",
            (id_, self.digest(token), msgspec.json.encode(grant), now_s, expires_s),
        )
        return self._one(id_), token

    def _revoke_at(self, id_: str, at_unix_s: float) -> None:
        self._db.execute("UPDATE keys SET revoked_unix_s = ? WHERE id = ?", (at_unix_s, id_))

    def _one(self, id_: str) -> Key:
        found = self._select("WHERE id = ?", id_)
        if not found:
            near = nearest_names(id_, [key.id for key in self._select("")])
            msg = f"no API key has the id {id_!r}; nearest: {', '.join(near) or 'none'}. All of them: polypod keys list"
            raise InputError(msg)
        return found[0]

    def _select(self, where: str, *values: str) -> list[Key]:
        rows = self._db.execute(
            f"SELECT id, digest, grant_json, created_unix_s, expires_unix_s, revoked_unix_s FROM keys {where}",  # noqa: S608 - ours
            values,
        )
        return [
            Key(
                id=row[0],
                digest=row[1],
                grant=msgspec.json.decode(row[2], type=Grant),
                created_unix_s=row[3],
                expires_unix_s=row[4],
                revoked_unix_s=row[5],
            )
            for row in rows
        ]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One change, on the disk when this ends without an error."""
        with self._said():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # a full disk, a folder that cannot be written
            msg = f"{self._path}: {error}; nothing was changed"
            raise RunError(msg) from error
        except sqlite3.DatabaseError as error:
            problem = (
                f"cannot be read as a database of keys ({error}); move it away and make new keys"
            )
            raise FileError(self._path, problem) from error
        except msgspec.ValidationError as error:
            problem = f"has a key that this version does not understand ({error}); use the version that made it"
            raise FileError(self._path, problem) from error
        except OSError as error:
            problem = f"{error.strerror or error}; keys are kept there, so nothing was changed"
            raise FileError(error.filename or self._folder, problem) from error


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Of several processes that make a store at once, the others wait."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pepper(path: Path) -> bytes:
    """Read it, or make it. Raises `FileError`."""
    if not path.exists():
        _make_pepper(path)
    status = path.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        problem = (
            f"has mode {stat.S_IMODE(status.st_mode):04o}, and others could test guesses of keys with it; chmod 600 it "
            "where nobody read it, else move the folder away and make new keys"
        )
        raise FileError(path, problem)
    pepper = path.read_bytes()
    if len(pepper) != _PEPPER_BYTES:
        raise FileError(path, f"has {len(pepper)} bytes, and a pepper has {_PEPPER_BYTES}")
    return pepper


def _make_pepper(path: Path) -> None:
    """On the disk before the first key is: without it no key could be checked."""
    descriptor, name = tempfile.mkstemp(prefix=".pepper.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_PEPPER_BYTES))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
