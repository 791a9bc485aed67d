"""The seam between Polypod and an inference engine: what a process is told, and what an adapter must say.

An engine runs as a child process that is reachable only through a unix socket in a directory of mode 0700, with a secret
on top where the engine can check one. One that knows only TCP listens on a loopback port, and then the secret is all that
keeps others out. The secret travels in the environment, never on a command line.
"""

import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal, Protocol

SECRET_VARIABLE: Final = "POLYPOD_ENGINE_SECRET"  # noqa: S105 - a name, not the secret
PARENT_VARIABLE: Final = "POLYPOD_PARENT_PID"
SOCKET_PATH_LIMIT_BYTES: Final = 107  # sun_path of sockaddr_un, less its closing zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What a request gets where it does not say: the same on every engine, so that replicas of one model agree."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05


DEFAULT_SAMPLING: Final = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """One stage of a replica that is a pipeline over unlike parts of the machine."""

    cores: tuple[int, ...]
    layers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine process to start."""

    replica: str  # "llama.cpp-0"
    model: str  # the name it is served under
    weights: Path  # a GGUF file, or a folder with safetensors and config.json
    cores: tuple[int, ...]  # the only ones it may run on
    context_tokens: int  # prompt and answer together, per sequence
    max_sequences: int  # running at once
    socket: Path
    secret: str | None = None
    log: Path
    handover: Path | None = (
        None  # where caches are left for another replica, and found; None: it serves whole requests
    )
    port: int | None = (
        None  # on loopback, for an engine that knows no unix socket; 0: a free one at each start
    )
    stages: tuple[StageSpec, ...] = ()  # in the pipeline's order; none: the replica is in one piece
    cache_bytes: int | None = None  # of its KV cache; None: as the engine takes it
    platform: str = "cpu"  # a row of the engine's platforms
    devices: tuple[str, ...] = ()  # as the platform's variable names them; none: all that are there
    arguments: tuple[str, ...] = ()  # flags that the plan asks for, as the engine documents them
    variables: tuple[tuple[str, str], ...] = ()  # of the environment, the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a running engine is reached: a unix socket, or a host and a port."""

    socket: Path | None = None
    host: str | None = None  # a name or an address, where there is no socket
    port: int | None = None
    tls: bool = False  # with the certificate checked against `host`
    path_prefix: str = "/v1"  # what stands before "/chat/completions"
    secret: str | None = None
    keeps_connections: bool = True  # False: a connection may serve one request only
    build: str = ""  # the engine, its version, and its weights: equal builds compute alike
    handover: Literal["slots", "made_up"] = "slots"  # how a cache leaves it for another replica

    def __post_init__(self) -> None:
        assert (self.socket is None) == (self.host is not None and self.port is not None)

    @property
    def origin(self) -> str:
        """What stands before a path in a URL; the host means nothing where there is a socket.

        >>> Endpoint(socket=Path("/run/a.sock")).origin, Endpoint(host="::1", port=8000).origin
        ('http://engine', 'http://[::1]:8000')
        """
        if self.host is None:
            return "http://engine"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    @property
    def chat_url(self) -> str:
        """Where chat requests are posted."""
        return f"{self.origin}{self.path_prefix}/chat/completions"

    @property
    def headers(self) -> dict[str, str]:
        """What every request to the engine must carry."""
        return {"Authorization": f"Bearer {self.secret}"} if self.secret else {}


class Engine(Protocol):
    """What Polypod must know of an engine in order to start it, watch it and plan with it."""

    @property
    def name(self) -> str:
        """The name a person types: `--engine llama.cpp`."""

    @property
    def distribution(self) -> str:
        """The package to install."""

    @property
    def health_path(self) -> str:
        """Answers 200 only while the part that computes is alive."""

    @property
    def metrics_path(self) -> str:
        """Counters in Prometheus text."""

    @property
    def keeps_connections(self) -> bool:
        """Whether a connection can be used again after an answer."""

    @property
    def kv_bytes_per_element(self) -> float:
        """Of its KV cache, scales and zero points included."""

    @property
    def max_step_tokens(self) -> int:
        """The most tokens it computes in one step; a longer prompt takes several (chunked prefill)."""

    def version(self) -> str | None:
        """The installed version; None where it is not installed. Imports nothing heavy."""

    def command(self, spec: EngineSpec) -> list[str]:
        """The child's command line, free of secrets."""

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """What the child's environment has besides ours."""


def installed_version(distribution: str) -> str | None:
    """The version of an installed package, without importing it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def child_command(module: str, spec: EngineSpec) -> list[str]:
    """Run one of our own server modules in this Python."""
    return [
        *(sys.executable, "-m", module),
        *("--model", spec.model),
        *("--weights", str(spec.weights)),
        *("--cores", ",".join(map(str, spec.cores))),
        *("--context-tokens", str(spec.context_tokens)),
        *("--max-sequences", str(spec.max_sequences)),
        *("--socket", str(spec.socket)),
        *(() if spec.handover is None else ("--handover", str(spec.handover))),
    ]


def child_environment(spec: EngineSpec) -> dict[str, str]:
    """The secret, and as many threads as cores for every thread pool that asks."""
    threads = str(len(spec.cores))
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    secret = {SECRET_VARIABLE: spec.secret} if spec.secret else {}
    return {"PYTHONUNBUFFERED": "1"} | dict.fromkeys(pools, threads) | secret
