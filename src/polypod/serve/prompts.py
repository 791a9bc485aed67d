"""What clients asked, word for word: written only where the person who started the node wants it.

One JSON object a line: when, the request's id, the key it came with, and its body. The file can be read by this user only.
"""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from polypod.serve.door import Principal

_LOG: Final = logging.getLogger("polypod.serve")
_ENCODER: Final = msgspec.json.Encoder()


class PromptLog:
    """An open file; once it cannot be written, that is said once, and serving goes on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file: int | None = os.open(path, flags, 0o600)
        self._whole_bytes = 0  # the file up to here is whole lines

    def write(self, principal: Principal, request_id: str, body: bytes) -> None:
        """Add one line. `body` is JSON, as it came."""
        if self._file is None:
            return
        line = {
            "at_unix_s": time.time(),
            "request_id": request_id,
            "key": principal.key,
            "body": msgspec.Raw(body),
        }
        data = _ENCODER.encode(line).replace(b"\n", b" ") + b"\n"
        try:
            written_bytes = os.write(self._file, data)
        except OSError as error:
            self._give_up(self._file, error.strerror or str(error))
            return
        if written_bytes < len(data):
            self._give_up(self._file, "the disk is full")
        else:
            self._whole_bytes += written_bytes

    def _give_up(self, file: int, reason: str) -> None:
        """A line written in part is taken off again."""
        _LOG.error("%s: %s; prompts are not logged any more", self._path, reason)
        with suppress(OSError):
            os.ftruncate(file, self._whole_bytes)
        self.close()

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
