"""A plan ready to run here, and each of its replicas as this node would run it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from polypod.cost.cpu import CpuCalibration
from polypod.plan.spec import Plan
from polypod.policy.events import ReplicaUp
from polypod.policy.settings import PolicySettings
from polypod.serve.change import Member, ghost_member, member, remote_member
from polypod.serve.devices.cpu import find_cpu
from polypod.serve.engines import Engine
from polypod.serve.engines.openai_url import Remote
from polypod.serve.ghosts import GhostPlan
from polypod.serve.launching import Places, engine_spec, remote_replica
from polypod.serve.memory import limits_bytes
from polypod.serve.on_devices import OnDevices
from polypod.serve.supervise import Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A plan ready to run here: what each replica is predicted to do, and the folder for its logs and its record."""

    plan: Plan
    settings: PolicySettings
    ups: tuple[ReplicaUp, ...]
    calibrations: dict[str, CpuCalibration]  # by replica
    folder: Path
    ghosts: GhostPlan | None = None  # in place of engines
    engine_memory_bytes: int | None = None  # that each engine may take; None: a share of the host's
    on_devices: dict[str, OnDevices] = field(default_factory=dict)  # by pool
    remotes: tuple[Remote, ...] = ()  # engines elsewhere, that have the plan's first model too

    @property
    def processes(self) -> int:
        """Engines that are started or asked elsewhere."""
        here = len(self.ups) if self.ghosts is None else len(self.ghosts.houses())
        return here + len(self.remotes)

    @property
    def max_sequences(self) -> int:
        """That all replicas work on at a time."""
        return sum(up.max_sequences for up in self.ups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A replica of a plan, as this node runs it."""

    replica: Replica | None  # None: it is a ghost, which lives with others, or elsewhere
    up: ReplicaUp
    calibration: CpuCalibration | None
    member: Member
    mean_output_tokens: float = 0.0  # of a ghost's answers that nothing cuts
    remote: Remote | None = None  # where it is, if it is elsewhere

    @property
    def name(self) -> str:
        return self.up.replica


def seats_of(prepared: Prepared, places: Places, engines: Mapping[str, Engine]) -> list[Seat]:
    """The replicas of a plan with engines, as they would run in these places; nothing is started."""
    plan, ups = prepared.plan, {up.replica: up for up in prepared.ups}
    limits = limits_bytes(plan, find_cpu())
    seats = []
    for service in plan.services:
        for pool in service.pools:
            engine = engines[str(pool.engine)]
            limit_bytes = prepared.engine_memory_bytes or limits.get(str(pool.name))
            for index in range(pool.replicas):
                up = ups[f"{pool.name}-{index}"]
                spec = engine_spec(plan, service, pool, up, engine, places)
                if pool.name in prepared.on_devices:
                    spec = replace(spec, **prepared.on_devices[pool.name].told(index))
                seats.append(
                    Seat(
                        replica=Replica(engine=engine, spec=spec, memory_limit_bytes=limit_bytes),
                        up=up,
                        calibration=prepared.calibrations.get(up.replica),
                        member=member(plan, service, pool, up, spec),
                    )
                )
    return seats


def remote_seats(prepared: Prepared) -> list[Seat]:
    """The engines elsewhere, which have the plan's first model."""
    ups = [(remote, remote_replica(remote, prepared.plan)) for remote in prepared.remotes]
    return [
        Seat(replica=None, up=up, calibration=None, member=remote_member(up), remote=remote)
        for remote, up in ups
    ]


def ghost_seats(ghosts: GhostPlan) -> list[Seat]:
    """The ghosts of a plan."""
    means = ghosts.mean_output_tokens
    return [
        Seat(
            replica=None,
            up=up,
            calibration=None,
            member=ghost_member(up, means[up.model]),
            mean_output_tokens=means[up.model],
        )
        for up in ghosts.ups
    ]
