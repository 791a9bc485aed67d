"""Ghosts: engines that nobody owns, emulated in real time, many in one process behind one socket.

A ghost answers over HTTP as an engine does, at the moments when its plan's step time says that tokens would come. What it says is made up
(`ghost_text`). `ghost_server` is the process; a ghost is told from the others by its path, `/r/NAME/v1/chat/completions`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from polypod import __version__
from polypod.policy.events import ReplicaUp
from polypod.serve.engines.spec import SECRET_VARIABLE, Endpoint, EngineSpec

ENGINE_NAME: Final = "ghost"


class GhostFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ghosts of one process, written as JSON where `EngineSpec.weights` points: what a ghost has in their place."""

    ghosts: tuple[ReplicaUp, ...]
    mean_output_tokens: dict[str, float]  # by model, of answers that nothing cuts


@dataclass(frozen=True, slots=True, kw_only=True)
class Ghost:
    """The adapter."""

    name: str = ENGINE_NAME
    distribution: str = "polypod"
    health_path: str = "/health"
    metrics_path: str = "/metrics"
    keeps_connections: bool = True
    kv_bytes_per_element: float = 2.0
    max_step_tokens: int = 8192

    def version(self) -> str | None:
        """Polypod's own."""
        return __version__

    def command(self, spec: EngineSpec) -> list[str]:
        """One process for all ghosts of its file."""
        module = "polypod.serve.engines.ghost_server"
        paths = ["--ghosts", str(spec.weights), "--socket", str(spec.socket)]
        return [sys.executable, "-m", module, *paths]

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """The secret."""
        secret = {SECRET_VARIABLE: spec.secret} if spec.secret else {}
        return {"PYTHONUNBUFFERED": "1"} | secret


def ghost_endpoint(process: Endpoint, replica: str) -> Endpoint:
    """Where one ghost of a process is reached."""
    return Endpoint(
        socket=process.socket,
        secret=process.secret,
        path_prefix=f"/r/{replica}/v1",
        build=f"{ENGINE_NAME} {__version__}",
        handover="made_up",
    )


def write_ghosts(path: Path, ghosts: GhostFile) -> None:
    """Write what `ghost_server` reads."""
    path.write_bytes(msgspec.json.encode(ghosts))


GHOST: Final = Ghost()
