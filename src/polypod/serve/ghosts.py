"""The ghosts of a node: which processes they live in, and what the policy hears of their starts and deaths.

A plan for accelerators that are not here is served by ghosts (`engines.ghost`), each timed by its plan's step time. They share a few processes, which
are supervised as engines are; one that dies alone, of a fault, is told by its process over `/news`. One more moves into the process that has the fewest,
and one that goes moves out; the process stays. Nothing is warmed up: a ghost takes as long
as predicted by construction, and what an HTTP request and a timer add is there to be measured.
"""

import asyncio
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from polypod.errors import EngineError
from polypod.plan.predict import policy_settings, pool_replicas
from polypod.plan.spec import Plan
from polypod.policy.events import ReplicaDown, ReplicaUp
from polypod.serve.engines.ghost import GHOST, GhostFile, ghost_endpoint, write_ghosts
from polypod.serve.engines.ghost_server import NewGhost, News
from polypod.serve.engines.spec import Endpoint, EngineSpec
from polypod.serve.loop import Driver
from polypod.serve.supervise import Down, Replica, Up

MOVE_IN_S: Final = 60.0
"""That the process may take, which may be starting again just then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GhostPlan:
    """What a node needs of its ghosts: who they are, in which process each lives, how long their models answer."""

    ups: tuple[ReplicaUp, ...]
    mean_output_tokens: dict[str, float]
    processes: int = 1
    speed_ratio: float = 1.0  # over what is planned

    def houses(self) -> dict[str, tuple[ReplicaUp, ...]]:
        """The ghosts of each process, dealt out in turn."""
        count = max(min(self.processes, len(self.ups)), 1)
        return {f"ghosts-{n}": self.ups[n::count] for n in range(count)}


def ghost_plan(plan: Plan, *, speed_ratio: float = 1.0, processes: int = 1) -> GhostPlan:
    """Every replica of a plan as a ghost, `speed_ratio` times as fast as planned.

    Raises whatever `pool_replicas` raises.
    """
    ups = pool_replicas(plan, linked=True)
    if speed_ratio != 1.0:
        ups = [
            msgspec.structs.replace(
                up,
                step_time=up.step_time.scaled(1 / speed_ratio),
                kv_link_bytes_per_s=up.kv_link_bytes_per_s * speed_ratio,
                kv_link_latency_s=up.kv_link_latency_s / speed_ratio,
            )
            for up in ups
        ]
    means = {one.model: one.mean_output_tokens for one in policy_settings(plan).services}
    return GhostPlan(
        ups=tuple(ups), mean_output_tokens=means, processes=processes, speed_ratio=speed_ratio
    )


class Ghosts:
    """Tells a driver of its ghosts. `hear` takes the supervisor's words about their processes."""

    def __init__(
        self,
        plan: GhostPlan | None,
        driver: Driver,
        on_down: Callable[[Down], None] = lambda _: None,
    ) -> None:
        self._means = dict(plan.mean_output_tokens) if plan is not None else {}
        houses = plan.houses() if plan is not None else {}
        self._houses = {name: list(ups) for name, ups in houses.items()}
        self._files: dict[str, Path] = {}
        self._processes: dict[str, Endpoint] = {}  # that answer
        self._moving: set[str] = set()  # ghosts in or out, of which nothing is told meanwhile
        self._driver = driver
        self._on_down = on_down
        self._ups = {up.replica: up for ups in self._houses.values() for up in ups}
        self._epochs = dict.fromkeys(self._ups, 0)
        self._living: set[str] = set()
        self._readers: dict[str, asyncio.Task[None]] = {}

    def __contains__(self, process: str) -> bool:
        return process in self._houses

    def replicas(self, sockets: Path, folder: Path) -> list[Replica]:
        """The processes, for a supervisor; what their ghosts are is written into `folder`."""
        found = []
        for name, ups in self._houses.items():
            path = self._files[name] = folder / f"{name}.json"
            self._write(name)
            spec = EngineSpec(
                replica=name,
                model=", ".join(dict.fromkeys(up.model for up in ups)),
                weights=path,
                cores=tuple(sorted(os.sched_getaffinity(0))),
                context_tokens=0,
                max_sequences=0,
                socket=sockets / f"{name}.sock",
                secret=secrets.token_urlsafe(24),
                log=folder / f"{name}.log",
            )
            found.append(Replica(engine=GHOST, spec=spec))
        return found

    def epoch(self, name: str) -> int:
        """Of its latest life."""
        return self._epochs[name]

    async def add(self, up: ReplicaUp, mean_output_tokens: float) -> None:
        """Let one more ghost live, in the process that has the fewest. Raises `EngineError` where that does not take it in."""
        name = up.replica
        house = min(self._houses, key=lambda one: len(self._houses[one]))
        self._moving.add(name)
        self._ups[name] = up
        self._epochs.setdefault(name, 0)
        self._means[up.model] = mean_output_tokens
        self._houses[house].append(up)
        self._write(house)
        told = msgspec.json.encode(NewGhost(up=up, mean_output_tokens=mean_output_tokens))
        try:
            async with asyncio.timeout(MOVE_IN_S):
                while not await self._post(house, "/ghosts", told):
                    await asyncio.sleep(0.1)
            self._up(name, self._processes[house])
        except TimeoutError as error:
            await self.remove(name)
            msg = f"ghost {name} found no room in {MOVE_IN_S:g} s: its process {house} does not answer"
            raise EngineError(msg) from error
        except BaseException:
            await self.remove(name)
            raise
        self._moving.discard(name)

    def let_end(self, name: str) -> None:
        """If it dies, it does not live again: it is to go soon."""
        self._moving.add(name)

    async def remove(self, name: str) -> None:
        """Let it live no more. Says no `ReplicaDown`. It may be added again, in a later epoch."""
        house = next(one for one, ups in self._houses.items() if self._ups[name] in ups)
        self._houses[house].remove(self._ups.pop(name))
        self._write(house)
        self._living.discard(name)
        await self._post(house, f"/r/{name}/leave", b"")
        self._moving.discard(name)

    async def _post(self, house: str, path: str, body: bytes) -> bool:
        """Whether the process did it."""
        process = self._processes.get(house)
        if process is None:
            return False
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with (
                _client(process, timeout_s=5) as session,
                session.post(f"{process.origin}{path}", data=body) as response,
            ):
                return response.status == 200
        return False

    def _write(self, house: str) -> None:
        ghosts = GhostFile(ghosts=tuple(self._houses[house]), mean_output_tokens=self._means)
        write_ghosts(self._files[house], ghosts)

    async def hear(self, news: Up | Down) -> None:
        """A process of ghosts is up, and so are they; or it is down."""
        names = [up.replica for up in self._houses[news.replica]]
        reader = self._readers.pop(news.replica, None)
        if reader is not None:
            reader.cancel()
        if isinstance(news, Down):
            self._processes.pop(news.replica, None)
            died = tuple((name, self._epochs[name]) for name in names if name in self._living)
            for name in names:
                self._down(name, news.reason, news.back_in_s, also=died)
            self._on_down(news)
            return
        self._processes[news.replica] = news.endpoint
        for name in names:
            if name not in self._moving:
                self._up(name, news.endpoint)
        reading = self._read(news.endpoint)
        self._readers[news.replica] = asyncio.create_task(reading)

    async def close(self) -> None:
        """Listen to nobody any more."""
        readers = list(self._readers.values())
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

    def _up(self, name: str, process: Endpoint) -> None:
        self._epochs[name] += 1
        self._living.add(name)
        at_s, epoch = self._driver.now_s(), self._epochs[name]
        up = msgspec.structs.replace(self._ups[name], at_s=at_s, epoch=epoch)
        self._driver.attach(up, ghost_endpoint(process, name))

    def _down(
        self,
        name: str,
        reason: str,
        back_in_s: float | None = None,
        *,
        also: Sequence[tuple[str, int]] = (),
    ) -> None:
        """`also` are those that died with it, itself among them: who was with one of them is not sent to the next."""
        if name in self._living:
            self._living.discard(name)
            down = ReplicaDown(
                at_s=self._driver.now_s(),
                replica=name,
                epoch=self._epochs[name],
                reason=reason,
                back_in_s=None if name in self._moving else back_in_s,
                also=tuple(one for one in also if one[0] != name),
            )
            self._driver.tell(down)

    async def _read(self, process: Endpoint) -> None:
        """Hear of single ghosts; that the process ends is the supervisor's news."""
        with suppress(aiohttp.ClientError, OSError):
            async with (
                _client(process, timeout_s=None) as session,
                session.get(f"{process.origin}/news") as response,
            ):
                async for line in response.content:
                    if line.strip():
                        self._take(msgspec.json.decode(line, type=News), process)

    def _take(self, news: News, process: Endpoint) -> None:
        if news.state == "down":
            self._down(news.replica, news.reason)
        elif news.replica in self._ups.keys() - self._living - self._moving:
            self._up(news.replica, process)


def _client(process: Endpoint, *, timeout_s: float | None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(path=str(process.socket)),
        headers=process.headers,
        timeout=aiohttp.ClientTimeout(total=timeout_s),
    )
