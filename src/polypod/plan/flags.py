"""The flags that engines document, as far as a plan is written in them: `data/flags-*.toml`, read once."""

import tomllib
from functools import cache
from importlib import resources
from typing import Final, Literal

import msgspec

from polypod.catalog.schema import Strict

Target = Literal["vllm", "sglang", "lmdeploy", "mindie"]
TARGETS: Final[tuple[Target, ...]] = ("vllm", "sglang", "lmdeploy", "mindie")


class Flag(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """A flag of a command, a key of a configuration file (its path joined by dots), or an environment variable."""

    name: str
    takes: str  # "nothing": a switch
    since: str  # the oldest version it was seen in; with <= in front, it may be older
    source: str  # a key of `sources`
    deprecated: str | None = None


class EngineFlags(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """What one engine documents."""

    engine: Target
    program: str
    checked: str  # the date on which the sources were read
    sources: dict[str, str]
    flags: tuple[Flag, ...]
    router: tuple[Flag, ...] = ()
    environment: tuple[Flag, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Everything that may be written for this engine."""
        return frozenset(one.name for one in (*self.flags, *self.router, *self.environment))


@cache
def flags_of(engine: Target) -> EngineFlags:
    """The documented flags of one engine.

    >>> flag = next(one for one in flags_of("vllm").flags if one.name == "--max-num-seqs")
    >>> flag.takes
    'sequences of one data-parallel rank'
    """
    text = resources.files("polypod.plan").joinpath("data", f"flags-{engine}.toml").read_text("utf-8")  # fmt: skip
    found: EngineFlags = msgspec.convert(tomllib.loads(text), EngineFlags)
    return found
