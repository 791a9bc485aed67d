"""Who may come in, as whom, and how much: everything about one request that is decided before the policy hears of it.

    admit      from the headers: the names it came by, and its key -> a `Principal`, or the `Problem` to answer with
    begin      once the body is read: the key's models and limits -> a `Lease`, or the `Problem`
    sweep      a few times a second: keys that changed, requests that run too long

A node on loopback needs no key: it guards against web pages by the names in Host and Origin (a page that rebinds its own name cannot
have a loopback one). One that others can reach always needs a key. No CORS header is ever sent. Reads no clock but the one it is given.
"""

import hashlib
import hmac
import ipaddress
import logging
import secrets
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from polypod.errors import PolypodError
from polypod.serve.keys import Grant, Key, KeyStore, key_id
from polypod.serve.limits import Meter
from polypod.serve.wire import ChatRequest, Problem

Headers = Mapping[bytes, bytes]

LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})
UNSAID_OUTPUT_TOKENS: Final = 1024
"""Set aside in a key's tokens a minute for an answer whose request names no limit; what is not used comes back."""

_LOG: Final = logging.getLogger("polypod.serve")
_NOBODY: Final = b"\0" * 32  # compared with where no such key is, so that it takes as long
_COMPLAIN_EVERY_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks. Without a key: nobody in particular, with no limits."""

    key: str = ""
    grant: Grant = field(default_factory=Grant)
    is_known: bool = True  # False: only whether the node is well may be told

    @property
    def tenant(self) -> str:
        """A key without one is a tenant of its own."""
        return self.grant.tenant or self.key

    def may_use(self, model: str) -> bool:
        return not self.grant.models or model in self.grant.models


ANYBODY: Final = Principal()
_STRANGER: Final = Principal(is_known=False)


@dataclass(slots=True, eq=False)
class Lease:
    """One chat request inside. `stop` is set by whoever answers it, and ends it in words."""

    principal: Principal
    began_s: float
    door: "Door"
    reserved_tokens: int = 0
    used_tokens: int | None = None
    stop: Callable[[Problem], None] = lambda _: None

    def used(self, input_tokens: int | None, output_tokens: int) -> None:
        """It finished, and this is what the engine counted."""
        if input_tokens is not None:
            self.used_tokens = input_tokens + output_tokens

    def refused(self) -> None:
        """It ended without an answer, which costs nothing."""
        self.used_tokens = 0

    def end(self) -> None:
        """It is answered or gone. What the engine did not count is paid as it was set aside."""
        self.door.end(self)
        self.stop = _nobody


def _nobody(problem: Problem) -> None:
    """Stops what has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What may come in."""

    hosts: frozenset[str] = LOOPBACK_HOSTS  # lower case, without port or brackets
    any_address: bool = False  # a Host that is an IP address may: no page can have that as its name
    needs_key: bool = False
    largest_body_bytes: int = 8 << 20
    most_body_bytes: int = 1 << 30  # of all requests under way
    most_connections: int = 16_384
    request_s: float = 3600.0  # from its body to the last byte of its answer


class Door:
    """One for each node. `own_token` opens it to the node itself."""

    def __init__(
        self,
        rules: Rules | None = None,
        keys: "Keyring | None" = None,
        *,
        own_token: str | None = None,
        now_s: Callable[[], float] = time.monotonic,
        log_prompt: Callable[[Principal, str, bytes], None] | None = None,
    ) -> None:
        self.rules = rules or Rules()
        self.log_prompt = log_prompt
        self._keys = keys
        self._own = None if own_token is None else own_token.encode()
        self._now_s = now_s
        self._leases: dict[Lease, None] = {}  # oldest first
        self._meters: dict[str, Meter] = {}
        self._complained_s: dict[str, float] = {}
        self._may = lru_cache(maxsize=256)(self._is_allowed)

    # ---- one request

    def admit(self, headers: Headers, peer: str, path: str) -> Principal | Problem:
        """Who this is, from the headers alone; 403 for a foreign name, 401 for a key that opens nothing."""
        host = b"//" + headers.get(b"host", b"")
        if not self._may(host):
            return self._forbidden("Host", host)
        origin = headers.get(b"origin")
        if origin is not None and not self._may(origin):
            return self._forbidden("Origin", origin)
        found = self._principal(headers.get(b"authorization"))
        if isinstance(found, Principal):
            return found
        if path == "/healthz":
            return _STRANGER
        self._complain(peer, found)
        return found

    def begin(self, principal: Principal, chat: ChatRequest) -> Lease | Problem:
        """Take a chat request in: 403 for a model the key may not use, 429 for too many requests or tokens."""
        now_s = self._now_s()
        lease = Lease(principal, now_s, self)
        if principal.key:
            if not principal.may_use(chat.model):
                return _no_model(principal, chat.model)
            meter = self._meter(principal, now_s)
            if meter is not None:
                tokens = chat.input_tokens + (chat.max_output_tokens or UNSAID_OUTPUT_TOKENS)
                problem = meter.take(tokens, now_s)
                if problem is not None:
                    return problem
                lease.reserved_tokens = tokens
        self._leases[lease] = None
        return lease

    def end(self, lease: Lease) -> None:
        """Forget it, and settle its tokens."""
        self._leases.pop(lease, None)
        meter = self._meters.get(lease.principal.key)
        if meter is not None and lease.used_tokens is not None:
            meter.settle(lease.reserved_tokens - lease.used_tokens)

    # ---- a few times a second

    def sweep(self) -> None:
        """See keys made and revoked since; end what came with a key that opens nothing any more, and what runs too long."""
        active: Container[str] = ()
        if self._keys is not None:
            self._keys.refresh()
            active = self._keys.active()
        oldest_s = self._now_s() - self.rules.request_s
        for lease in tuple(self._leases):
            if lease.principal.key and lease.principal.key not in active:
                lease.stop(_key_problem(self._keys, lease.principal.key))
            elif lease.began_s < oldest_s:
                lease.stop(_too_long(self.rules.request_s))

    # ---- names

    def _is_allowed(self, url: bytes) -> bool:
        name = _hostname(url)
        if name is None:
            return False
        return name in self.rules.hosts or (self.rules.any_address and _is_address(name))

    def _forbidden(self, header: str, url: bytes) -> Problem:
        value = url.decode("latin-1").removeprefix("//")
        if self.rules.hosts == LOOPBACK_HOSTS:
            names = "loopback names only (127.0.0.1, localhost, [::1])"
        else:
            names = f"to {', '.join(sorted(self.rules.hosts))}"
        message = (
            f"the {header} header is {value!r}, and this node answers {names}; call it by one of those, or start it "
            "with --allow-host NAME"
        )
        return Problem(status=403, code="forbidden_host", message=message)

    # ---- keys

    def _principal(self, authorization: bytes | None) -> Principal | Problem:
        token = _bearer(authorization)
        if token is None:
            return _no_key(authorization) if self.rules.needs_key else ANYBODY
        if self._own is not None and hmac.compare_digest(token, self._own):
            return ANYBODY
        if self._keys is None:
            return _WRONG_KEY if self.rules.needs_key else ANYBODY
        text = token.decode("latin-1")
        if not self.rules.needs_key and key_id(text) is None:
            return ANYBODY  # clients have to be given some key; on loopback any word will do
        return self._keys.principal(text)

    def _meter(self, principal: Principal, now_s: float) -> Meter | None:
        grant = principal.grant
        if grant.requests_per_minute is None and grant.tokens_per_minute is None:
            return None
        meter = self._meters.get(principal.key)
        if meter is None:
            meter = self._meters[principal.key] = Meter(grant, now_s)
        return meter

    def _complain(self, peer: str, problem: Problem) -> None:
        """Tell the log who was refused, once a minute and address: it must not be filled from outside."""
        now_s = self._now_s()
        if now_s - self._complained_s.get(peer, -_COMPLAIN_EVERY_S) < _COMPLAIN_EVERY_S:
            return
        if len(self._complained_s) >= 1024:
            self._complained_s.clear()
        self._complained_s[peer] = now_s
        _LOG.warning("refused %s: %s", peer, problem.message)


class Keyring:
    """The keys of a store as a running node knows them, in memory."""

    def __init__(self, store: KeyStore, *, now_unix_s: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now_unix_s = now_unix_s
        self._version: tuple[int, int] | None = None
        self._keys: dict[str, Key] = {}
        self._principals: dict[str, Principal] = {}
        self._secret = secrets.token_bytes(16)
        self._opened: dict[bytes, str] = {}  # tokens that were right, as marks under that secret
        self._is_lost = False
        self._load()

    def refresh(self) -> None:
        """Take over what changed on disk. Where it cannot be read, the keys last seen stay, and the log says so once."""
        try:
            if self._store.version() != self._version:
                self._load()
            self._is_lost = False
        except PolypodError as error:
            if not self._is_lost:
                _LOG.error("%s; the keys last read stay as they were", error)
            self._is_lost = True

    def principal(self, token: str) -> Principal | Problem:
        """Whose token this is. Takes as long for a wrong secret as for no such key; one that was right is known again by a cheaper mark, of which nobody outside can make another."""
        mark = hashlib.blake2b(token.encode(), digest_size=16, key=self._secret).digest()
        key = self._keys.get(self._opened.get(mark) or key_id(token) or "")
        if mark not in self._opened:
            given = self._store.digest(token)
            right = _NOBODY if key is None else key.digest
            if not hmac.compare_digest(given, right) or key is None:
                return _WRONG_KEY
            self._opened[mark] = key.id
        assert key is not None, "marks are of keys"
        if key.state(self._now_unix_s()) != "active":
            return _key_problem(self, key.id)
        return self._principals[key.id]

    def state(self, id_: str) -> str:
        key = self._keys.get(id_)
        return "removed" if key is None else key.state(self._now_unix_s())

    def active(self) -> set[str]:
        """The keys that open something."""
        now_s = self._now_unix_s()
        return {id_ for id_, key in self._keys.items() if key.state(now_s) == "active"}

    def _load(self) -> None:
        version = self._store.version()
        keys = {key.id: key for key in self._store.all()}
        self._principals = {id_: Principal(key=id_, grant=key.grant) for id_, key in keys.items()}
        self._keys, self._version = keys, version
        self._opened.clear()


def _bearer(authorization: bytes | None) -> bytes | None:
    """The token of an Authorization header, where it is a bearer's.

    >>> _bearer(b"bearer  x"), _bearer(b"Basic x"), _bearer(None)
    (b'x', None, None)
    """
    if authorization is None or authorization[:7].lower() != b"bearer ":
        return None
    return authorization[7:].strip()


def _hostname(url: bytes) -> str | None:
    """The lower-case name in a URL, without port or brackets; None where there is none."""
    try:
        return urlsplit(url.decode("latin-1")).hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


_WRONG_KEY: Final = Problem(
    status=401,
    code="invalid_api_key",
    message="this API key is not one of this node's; `polypod keys list` shows them, `polypod keys create` makes one",
)


def _no_key(authorization: bytes | None) -> Problem:
    what = "no API key was given" if authorization is None else "the Authorization is no bearer's"
    message = f"{what}; send it as the header `Authorization: Bearer KEY`"
    return Problem(status=401, code="missing_api_key", message=message)


def _key_problem(keys: Keyring | None, id_: str) -> Problem:
    state = "revoked" if keys is None else keys.state(id_)
    code = "key_expired" if state == "expired" else "key_revoked"
    message = f"the API key {id_} is {state}; ask whoever runs this node for another one"
    return Problem(status=401, code=code, message=message)


def _no_model(principal: Principal, model: str) -> Problem:
    allowed = ", ".join(principal.grant.models)
    message = f"the API key {principal.key} may not use the model {model!r}; it may use {allowed}"
    return Problem(status=403, code="model_not_allowed", message=message, param="model")


def _too_long(limit_s: float) -> Problem:
    message = f"the request ran longer than {limit_s:g} s, the limit of this node"
    return Problem(status=504, code="request_timeout", message=message)
