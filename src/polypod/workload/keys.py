"""A config.json's fields, checked one by one as they are asked for, with an error that says what is accepted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from polypod.errors import FileError

MOST: Final = 10_000_000  # no published shape comes near; larger is a slip of the pen
LONGEST: Final = 10**9  # tokens of context


@dataclass(frozen=True, slots=True)
class Keys:
    """A config's fields, checked as they are asked for."""

    config: Mapping[str, Any]
    path: Path | str
    within: str = "$"  # where the fields lie in the file
    spelling: Mapping[str, str] = field(default_factory=dict)  # what the file calls a field

    def wrong(self, *, key: str, accepted: str) -> FileError:
        """The error for one key: what it has, what is accepted."""
        key = self._named(key)
        has = f"is {self.config[key]!r}" if key in self.config else "is missing"
        return FileError(self.path, f"{key} {has}; accepted: {accepted} - at `{self.within}.{key}`")

    def get(self, key: str) -> object:
        """The value as it stands, by the name most families give the field; None where absent."""
        return self.config.get(self._named(key))

    def _named(self, key: str) -> str:
        return key if key in self.config else self.spelling.get(key, key)

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise self.wrong(key=key, accepted="a text")
        return value

    def count(
        self, key: str, *, default: int | None = None, least: int = 1, most: int = MOST
    ) -> int:
        """A whole number from `least` up; null and absent both mean the default, where there is one."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.wrong(key=key, accepted=f"a whole number from {least} to {most:,}")
        return value

    def optional(self, key: str, *, most: int = MOST) -> int | None:
        return None if self.get(key) is None else self.count(key, most=most)

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key=key, accepted="true or false")
        return value

    def texts(self, key: str, length: int) -> list[str]:
        """A list of as many texts as there are layers."""
        value = self.get(key)
        if (
            not isinstance(value, list)
            or len(value) != length
            or not all(isinstance(one, str) for one in value)
        ):
            raise self.wrong(key=key, accepted=f"a list of {length} texts, one for each layer")
        return value

    def flags(self, key: str, length: int) -> list[bool]:
        """A list of as many zeros and ones as there are layers."""
        value = self.get(key)
        if (
            not isinstance(value, list)
            or len(value) != length
            or not all(one in (0, 1) for one in value)
        ):
            raise self.wrong(
                key=key, accepted=f"a list of {length} zeros and ones, one for each layer"
            )
        return [bool(one) for one in value]

    def has(self, key: str) -> bool:
        return self.get(key) is not None
