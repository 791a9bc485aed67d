"""MindIE's server, on a loopback port. Written from its documents; not run here.

It takes a JSON file, which `polypod.plan.emit_mindie` writes of a plan's pool; here it gets this start's port and folder of weights. It
checks no token, so that on loopback it is open to every user of the machine: its documents offer mutual TLS, which is not set up here.
"""

import json
import shutil
from dataclasses import dataclass
from typing import Any, Final

from polypod.errors import InputError
from polypod.plan.live_flags import MINDIE_CONFIG
from polypod.serve.engines.spec import EngineSpec
from polypod.serve.engines.vllm import device_variables

PROGRAM: Final = "mindie_llm_server"
CONFIG_VARIABLE: Final = MINDIE_CONFIG
"""Among `EngineSpec.variables`: the JSON that the plan's pool comes to."""

# The file is readable by its owner alone; it is written by the process that reads it, so that a start leaves nothing behind that is older.
_SCRIPT: Final = f'umask 077; printf %s "${CONFIG_VARIABLE}" > "$MIES_CONFIG_JSON_PATH" && exec {PROGRAM}'  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Mindie:
    """The adapter."""

    name: str = "mindie"
    distribution: str = "mindie_llm"
    health_path: str = "/v1/models"
    metrics_path: str = "/metrics"  # on a port of its own, two above
    keeps_connections: bool = True
    kv_bytes_per_element: float = 2.0
    max_step_tokens: int = 8192

    def version(self) -> str | None:
        """That its program is on the path is all that can be told without starting it."""
        return "installed" if shutil.which(PROGRAM) else None

    def command(self, spec: EngineSpec) -> list[str]:
        """Its program, after its configuration is written."""
        return ["bash", "-c", _SCRIPT]

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """The configuration with this start's port, and where it is written."""
        said = dict(spec.variables)
        if CONFIG_VARIABLE not in said:
            msg = f"replica {spec.replica}: MindIE is configured by a plan's pool; serve it with --plan"
            raise InputError(msg)
        config = json.dumps(_placed(json.loads(said[CONFIG_VARIABLE]), spec))
        path = spec.log.with_name(f"{spec.replica}.mindie.json")
        own = {CONFIG_VARIABLE: config, "MIES_CONFIG_JSON_PATH": str(path)}
        return device_variables(self.name, spec) | said | own


def _placed(config: dict[str, Any], spec: EngineSpec) -> dict[str, Any]:
    """The same on loopback without TLS, at this start's ports, with this model."""
    assert spec.port is not None
    server = config["ServerConfig"] | {
        "ipAddress": "127.0.0.1", "managementIpAddress": "127.0.0.1", "httpsEnabled": False, "port": spec.port,
        "managementPort": spec.port + 1, "metricsPort": spec.port + 2,
    }  # fmt: skip
    for model in config["BackendConfig"]["ModelDeployConfig"]["ModelConfig"]:
        model |= {"modelName": spec.model, "modelWeightPath": str(spec.weights)}
    return config | {"ServerConfig": server}


MINDIE: Final = Mindie()
