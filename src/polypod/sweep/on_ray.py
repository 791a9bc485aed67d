"""Points worked off as tasks of a Ray cluster.

Ray is the extra `ray`, imported here alone. Results are small and travel back with the task's end, so that a node that dies takes nothing
finished with it; what it was at Ray gives to another, `RETRIES` times. Nodes need Polypod, and the same catalog: they are asked which they have.
"""

import io
import os
import socket
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from polypod.catalog.load import FOLDERS_VARIABLE
from polypod.errors import InputError, RunError
from polypod.plan.sweep import Row
from polypod.sweep.pool import TICK_S
from polypod.sweep.work import PLANS, Kind, Result, gave_up, versions, work

RETRIES: Final = 3

_CARRIED: Final = (FOLDERS_VARIABLE, "XDG_CONFIG_HOME", "PYTHONPATH")
"""Of the environment, what says which code and catalog answer."""


_MOST_SAID: Final = 200

_CONNECT_S: Final = 5.0


def task(point: Any, version: str, kind: Kind = PLANS) -> Row | None:  # noqa: ANN401 (a point of any kind)
    """The answer; None on a node that would answer from other data."""
    return work(point, kind) if versions(kind, [point])[point] == version else None


class RayRunner:
    """A `Runner` on a cluster: `auto` for the one this machine belongs to, else its address."""

    def __init__(self, address: str, jobs: int | None = None, kind: Kind = PLANS) -> None:
        if find_spec("ray") is None:
            msg = "--ray needs Ray, which is not installed; pip install 'polypod[ray]', or leave --ray out"
            raise InputError(msg)
        self.address = address
        self.jobs = jobs
        self.kind = kind

    def __call__(self, points: Sequence[Any]) -> Generator[list[Result], None, None]:
        import ray

        with redirect_stdout(_Aside()):
            yield from self._results(ray, points)

    def _results(self, ray: Any, points: Sequence[Any]) -> Generator[list[Result], None, None]:  # noqa: ANN401 (a module that need not be there)
        self._connect(ray)
        head = ray.get_runtime_context().gcs_address
        remote = ray.remote(task).options(max_retries=RETRIES, num_cpus=1)
        found = versions(self.kind, points)
        waiting = iter(points)
        running: dict[Any, Any] = {}
        try:
            while True:
                wait_for_head(head)
                for point in _next(waiting, self._room(ray) - len(running)):
                    running[remote.remote(self.kind.sent(point), found[point], self.kind)] = point
                if not running:
                    return
                ready, _ = ray.wait(list(running), num_returns=len(running), timeout=TICK_S)
                yield [_result(ray, ref, running.pop(ref), self.kind) for ref in ready]
        finally:
            ray.shutdown()

    def _connect(self, ray: Any) -> None:  # noqa: ANN401
        if self.address.count(":") == 1 and not answers(self.address):
            msg = f"--ray {self.address}: nothing listens there; start a cluster with: ray start --head"  # fmt: skip
            raise RunError(msg)
        carried = {name: _absolute(os.environ[name]) for name in _CARRIED if name in os.environ}
        try:
            ray.init(
                self.address, runtime_env={"env_vars": carried}, log_to_driver=False, logging_level="error"
            )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError) as error:
            why = str(error).strip().splitlines()[0]
            msg = f"--ray {self.address}: no cluster answers there ({why}); start one with: ray start --head"
            raise RunError(msg) from error

    def _room(self, ray: Any) -> int:  # noqa: ANN401
        """How many tasks to have under way: as many as asked for, else two a core, as nodes come and go."""
        return self.jobs or max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))


def answers(address: str) -> bool:
    """Whether anything takes a connection at HOST:PORT. Ray by itself waits two minutes before it says no."""
    host, _, port = address.rpartition(":")
    with suppress(OSError, ValueError), socket.create_connection((host, int(port)), _CONNECT_S):
        return True
    return False


def wait_for_head(address: str, patience_s: float = 20.0) -> None:
    """Come back when the cluster's head answers. Raises `RunError` where it does not any more, before Ray ends the process over it."""
    until_s = time.monotonic() + patience_s
    while not answers(address):
        if time.monotonic() >= until_s:
            msg = f"the head of the Ray cluster, {address}, has not answered for {patience_s:g} s; what is finished is kept where there is -o FILE: start the cluster, and say the same command again"
            raise RunError(msg)
        time.sleep(TICK_S / 4)


class _Aside(io.TextIOBase):
    """Takes what Ray prints of nodes and workers that died, page after page on stdout; the first line goes to stderr."""

    def write(self, text: str) -> int:
        if text.strip():
            sys.stderr.write(f"{text.strip().splitlines()[0][:_MOST_SAID]}\n")
        return len(text)


def _absolute(paths: str) -> str:
    """Folders as a process that runs elsewhere finds them."""
    return os.pathsep.join(str(Path(path).absolute()) for path in paths.split(os.pathsep))


def _next(waiting: Iterator[Any], most: int) -> list[Any]:
    return [point for _, point in zip(range(most), waiting, strict=False)]


def _result(ray: Any, ref: Any, point: Any, kind: Kind) -> Result:  # noqa: ANN401
    try:
        row: Row | None = ray.get(ref)
    except ray.exceptions.RayTaskError as error:  # Polypod is not there, or another one
        why = str(error).strip().splitlines()[-1]
        msg = f"a node of the cluster cannot answer: {why}; install the same Polypod on every node"
        raise RunError(msg) from error
    except ray.exceptions.RayError as error:
        return point, gave_up(point, f"its worker died {RETRIES + 1} times ({type(error).__name__})", kind)  # fmt: skip
    if row is None:
        msg = f"a node of the cluster would answer {point} from another Polypod, catalog or file; give every node the same"
        raise RunError(msg)
    return point, row | kind.asked(point)
