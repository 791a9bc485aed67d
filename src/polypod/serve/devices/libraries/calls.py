"""Calling a C library by name, where a code of 0 means that all went well."""

import ctypes
from collections.abc import Callable
from typing import Any


class LibraryError(Exception):
    """A call that failed: its name, its code, and the library's own words where it has any."""


class Calls:
    """One library; `words` says what a code means."""

    def __init__(self, library: ctypes.CDLL, words: Callable[[int], str] | None = None) -> None:
        self.library = library
        self._words = words

    def code(self, name: str, *arguments: Any) -> int:  # noqa: ANN401 - as ctypes takes them
        """Call and return the code. Raises AttributeError where the library has no such function."""
        return int(getattr(self.library, name)(*arguments))

    def call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401
        """Call; raises `LibraryError` for any code but 0."""
        code = self.code(name, *arguments)
        if code != 0:
            msg = f"{name} returned {code}{self.words(code)}"
            raise LibraryError(msg)

    def words(self, code: int) -> str:
        """The library's own words for a code, after a colon; nothing where it has none."""
        return f": {self._words(code)}" if self._words is not None else ""

    def has(self, name: str) -> bool:
        """Whether this version of the library has a function."""
        return hasattr(self.library, name)

    def number(self, name: str, *arguments: Any) -> int | None:  # noqa: ANN401
        """The unsigned number that a function writes through its last pointer; None where it fails."""
        value = ctypes.c_uint()
        return value.value if self.code(name, *arguments, ctypes.byref(value)) == 0 else None

    def text(self, name: str, handle: Any, size: int) -> str | None:  # noqa: ANN401
        """The text that a function writes into a buffer of `size`; None where it fails."""
        buffer = ctypes.create_string_buffer(size)
        if self.code(name, handle, buffer, ctypes.c_uint(size)) != 0:
            return None
        return buffer.value.decode(errors="replace") or None
