"""From the replicas that run to those that a new plan wants: which stay, and in which order the others come and go.

A replica stays where the new plan has one just like it. Of the others, a new one starts before an old one goes wherever cores and memory allow it, so that
nobody waits for a model to load. Where they do not, an old one goes first, as long as others serve its model; else the new one starts beside it on the
same cores if memory allows that, and only if that is not so either, the model is without a replica for a while, which the step says.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from polypod import units
from polypod.errors import InputError
from polypod.plan.spec import Plan, Pool, Service
from polypod.policy.events import ReplicaUp
from polypod.policy.settings import PolicySettings
from polypod.serve.engines.spec import EngineSpec
from polypod.serve.memory import need_bytes

Does = Literal["start", "retire", "add", "remove", "set"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One replica, as far as a change needs to know it."""

    name: str
    model: str
    role: str = "both"
    cores: frozenset[int]
    devices: frozenset[str] = frozenset()  # whose memory one replica takes whole
    need_bytes: float  # of the host's memory; 0 where nothing is predicted
    identity: bytes  # equal for replicas that differ in their name only


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One step of a change: a replica that comes or goes, or what the policy is told of a model or of its limits."""

    does: Does
    name: str
    note: str = ""
    settings: PolicySettings | None = None  # that it is told

    @property
    def is_of_replica(self) -> bool:
        return self.settings is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What to do, in order; `renamed` says under which name a replica of the new plan runs, where that is not its own."""

    moves: tuple[Move, ...]
    renamed: dict[str, str]


def member(plan: Plan, service: Service, pool: Pool, up: ReplicaUp, spec: EngineSpec) -> Member:
    """A replica of a pool, as its engine is told."""
    return Member(
        name=spec.replica,
        model=service.model,
        role=up.role,
        cores=frozenset(spec.cores),
        devices=frozenset(spec.devices),
        need_bytes=0.0 if spec.devices else need_bytes(pool) or 0.0,
        identity=identity(plan, service, pool) + handing_on(up) + " ".join(spec.devices).encode(),
    )


def ghost_member(up: ReplicaUp, mean_output_tokens: float) -> Member:
    """A ghost, which is what is predicted of it."""
    alike = msgspec.structs.replace(up, replica="", pool="", kv_pools=())
    told = msgspec.json.encode([alike, mean_output_tokens], order="sorted")
    return Member(
        name=up.replica,
        model=up.model,
        role=up.role,
        cores=frozenset(),
        need_bytes=0.0,
        identity=told + handing_on(up),
    )


def remote_member(up: ReplicaUp) -> Member:
    """An engine elsewhere, which is asked for one model."""
    told = msgspec.json.encode(["elsewhere", up.replica, up.model, up.context_tokens])
    return Member(name=up.replica, model=up.model, cores=frozenset(), need_bytes=0.0, identity=told)


def handing_on(up: ReplicaUp) -> bytes:
    """What others call the replica's pool by, and how it hands caches on; nothing of one that has no need to."""
    if up.role == "both":
        return b""
    pool = up.pool if up.role == "decode" else ""
    ways = (up.kv_token_bytes, up.kv_link_bytes_per_s, up.kv_link_latency_s)
    return msgspec.json.encode([pool, up.kv_pools, ways])


def identity(plan: Plan, service: Service, pool: Pool) -> bytes:
    """Everything about a replica but its name, its number and what is predicted of it."""
    told: dict[str, Any] = msgspec.to_builtins(pool)
    for name in ("name", "replicas", "predicted", "on"):
        told.pop(name, None)
    parts = (pool.on, *(stage.on for stage in pool.stages))
    sources = [msgspec.structs.replace(plan.fleet[part], measured=None) for part in parts]
    weights = None if service.weights is None else str(Path(service.weights).resolve())
    return msgspec.json.encode(
        [service.model, weights, service.context, told, sources], order="sorted"
    )


def change(
    running: Sequence[Member], wanted: Sequence[Member], *, free_bytes: float, taken: Iterable[str]
) -> Change:
    """The moves from those that run to those that are wanted. Names in `taken` were used before, and are not used again.

    Raises `InputError` where the machine has no memory for what is wanted, however it is begun.
    """
    staying, coming = _matched(running, wanted)
    renamed = {new: old for old, new in staying.items() if new != old}
    names = set(taken) | {one.name for one in running}
    arranging = _Arranging(running, set(staying), free_bytes)
    for one in sorted(coming, key=lambda new: arranging.is_in_the_way(new)):
        name = _free_name(one.name, names)
        names.add(name)
        if name != one.name:
            renamed[one.name] = name
        arranging.bring(one, name)
    arranging.finish()
    return Change(moves=tuple(arranging.moves), renamed=renamed)


class _Arranging:
    def __init__(self, running: Sequence[Member], staying: set[str], free_bytes: float) -> None:
        self.moves: list[Move] = []
        self._here = {one.name: one for one in running}
        self._leaving = [one for one in running if one.name not in staying]
        self._free_bytes = free_bytes

    def is_in_the_way(self, new: Member) -> bool:
        return bool(self._rivals(new))

    def bring(self, new: Member, name: str) -> None:
        rivals = self._rivals(new)
        may_share = new.need_bytes <= self._free_bytes and not new.devices
        if rivals and not (may_share and self._is_last(rivals)):
            self._retire_all(rivals)
        while new.need_bytes > self._free_bytes and self._leaving:
            self._retire_all(self._leaving[:1])
        if new.need_bytes > self._free_bytes:
            need, free = (units.show(one, "bytes") for one in (new.need_bytes, self._free_bytes))
            msg = (
                f"replica {name} needs {need} of memory, and {free} are free when all that leave have left; nothing was changed. "
                "Give its pool a shorter context or fewer sequences, or a smaller model"
            )
            raise InputError(msg)
        beside = [old.name for old in self._rivals(new)]
        note = f"beside {', '.join(beside)} on the same cores, until it is up" if beside else ""
        if not self._is_served(new.model):
            note = f"{new.model} has no replica until it is up"
        self.moves.append(Move(does="start", name=name, note=note))
        self._here[name] = new
        self._free_bytes -= new.need_bytes

    def _is_served(self, model: str) -> bool:
        """Whether a request for it can be answered, by one replica or by two."""
        roles = {one.role for one in self._here.values() if one.model == model}
        return "both" in roles or {"prefill", "decode"} <= roles

    def finish(self) -> None:
        self._retire_all(list(self._leaving))

    def _rivals(self, new: Member) -> list[Member]:
        """Of those that leave, the ones that are where the new one shall be."""
        return [old for old in self._leaving if old.cores & new.cores or old.devices & new.devices]

    def _is_last(self, members: Sequence[Member]) -> bool:
        """Whether a model would be without a replica, were these gone."""
        left = {(one.model, one.role) for one in self._here.values() if one not in members}
        return any((one.model, one.role) not in left for one in members)

    def _retire_all(self, members: Sequence[Member]) -> None:
        for one in sorted(members, key=lambda one: one.role == "decode"):  # last: prompts go there
            self.moves.append(Move(does="retire", name=one.name))
            self._leaving.remove(one)
            del self._here[one.name]
            self._free_bytes += one.need_bytes


def _matched(
    running: Sequence[Member], wanted: Sequence[Member]
) -> tuple[dict[str, str], list[Member]]:
    """By name, which running replica is which wanted one; and the wanted ones that do not run."""
    staying: dict[str, str] = {}
    coming = []
    for new in sorted(wanted, key=lambda one: one.name not in {old.name for old in running}):
        like = [old for old in running if old.identity == new.identity and old.name not in staying]
        like.sort(key=lambda old: old.name != new.name)
        if like:
            staying[like[0].name] = new.name
        else:
            coming.append(new)
    return staying, coming


def _free_name(name: str, names: set[str]) -> str:
    """The name itself, or with the number of its generation."""
    generation = 2
    free = name
    while free in names:
        free = f"{name}.{generation}"
        generation += 1
    return free
