"""The hub over HTTPS, with the standard library: JSON, and files that can be gone on with.

`HF_ENDPOINT` names a mirror, `HF_TOKEN` (or the file `HF_HOME/token`) opens what is gated, `HF_HUB_OFFLINE=1` asks nobody; all as for huggingface_hub.
"""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Final, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from polypod.errors import InputError, RunError

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
_BLOCK_BYTES: Final = 1 << 20
_SILENCE_S: Final = 30.0
_LARGEST_LISTING_BYTES: Final = 64 << 20
_SAFE: Final = "/?=&:@-._~"
Read = TypeVar("Read")


class Stopped(Exception):
    """A transfer that broke off."""


@dataclass(frozen=True, slots=True)
class Body:
    """What comes of a file, from `start` on; 0 where the hub begins anew."""

    start: int
    response: HTTPResponse

    def read(self) -> bytes:
        """The next block; empty at the end. Raises `Stopped`."""
        try:
            data = self.response.read(_BLOCK_BYTES)
        except (OSError, HTTPException) as error:
            msg = f"broke off ({error or type(error).__name__})"
            raise Stopped(msg) from error
        if not data and self.response.length:
            msg = f"broke off with {self.response.length:,} bytes to come"
            raise Stopped(msg)
        return data


class _StaysSafe(urllib.request.HTTPRedirectHandler):
    """Goes on to other hosts, and never from TLS to none."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:  # fmt: skip
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            problem = f"sends on to {newurl!r}, which has no TLS"
            raise urllib.error.URLError(problem)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Hub:
    """One endpoint."""

    def __init__(
        self,
        endpoint: str,
        token: str | None = None,
        *,
        is_offline: bool = False,
        tries: int = 5,
        pause_s: float = 1.0,
    ) -> None:
        """Raises `InputError` for an endpoint without TLS that is not on this machine."""
        url = urlsplit(endpoint)
        if url.scheme != "https" and url.hostname not in ("127.0.0.1", "localhost", "::1"):
            msg = f"HF_ENDPOINT {endpoint!r} has no TLS, and models and tokens would go over the network in the open; give one with https://"
            raise InputError(msg)
        self.endpoint = endpoint.rstrip("/")
        self.tries = tries
        self.pause_s = pause_s
        self._token = token
        self._is_offline = is_offline
        self._opener = urllib.request.build_opener(_StaysSafe())

    @classmethod
    def from_environment(cls) -> "Hub":
        home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
        kept = home / "token"
        token = os.environ.get("HF_TOKEN") or (kept.read_text().strip() if kept.is_file() else None)
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        return cls(os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT, token, is_offline=offline)

    def json(self, path: str, kind: type[Read], *, what: str) -> Read:
        """An answer of the hub's API. Raises `RunError`."""
        try:
            with self.open(path, what=what) as body:
                data = body.response.read(_LARGEST_LISTING_BYTES)
            return msgspec.json.decode(data, type=kind)
        except (Stopped, OSError, HTTPException, msgspec.DecodeError) as error:
            msg = f"{what}: {self.endpoint} did not answer as a hub does: {error}"
            raise RunError(msg) from error

    @contextmanager
    def open(self, path: str, *, start: int = 0, what: str = "") -> Iterator[Body]:
        """A file's bytes from `start` on. Raises `RunError`, with the way out, and `Stopped` for what may work a second time."""
        what = what or path.rpartition("/")[2]
        if self._is_offline:
            msg = f"{what} is not in the cache, and HF_HUB_OFFLINE says not to ask the hub; unset it, or give the path of a file"
            raise RunError(msg)
        request = urllib.request.Request(self.endpoint + quote(path, safe=_SAFE))  # noqa: S310 - checked
        request.add_header("User-Agent", "polypod")
        if self._token:  # unredirected: whoever the hub sends us on to does not get it
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        if start:
            request.add_header("Range", f"bytes={start}-")
        try:
            response: HTTPResponse = self._opener.open(request, timeout=_SILENCE_S)
        except urllib.error.HTTPError as error:
            raise self._refused(error, what) from error
        except (OSError, HTTPException) as error:
            raise self._unreachable(error, what) from error
        with response:
            yield Body(start if response.status == 206 else 0, response)

    def _refused(self, error: urllib.error.HTTPError, what: str) -> Exception:
        error.close()
        if error.code >= 500 or error.code == 429:
            return Stopped(f"the hub answered {error.code}")
        if error.code in (401, 403):
            why = "is gated or private, or is not there; accept its terms on its page" + (
                ", with an account whose token may read it" if self._token else ", and set HF_TOKEN"
            )
        elif error.code == 404:
            why = "is not there; look at the spelling, as org/name or org/name:file.gguf"
        else:
            why = f"was answered with {error.code} {error.reason}"
        return RunError(f"{what}: {why} ({self.endpoint})")

    def _unreachable(self, error: Exception, what: str) -> RunError:
        reason = getattr(error, "reason", None) or error
        return RunError(
            f"{what} is not in the cache, and {self.endpoint} cannot be reached ({reason}); set HF_ENDPOINT to a mirror, or fetch the "
            "file elsewhere and give its path"
        )
