"""A plan's replicas as failures find them: on which cards, how long they take to load, and how what broke comes back.

Shape key: R replicas in the order of their first ranks; F failures.
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from polypod.catalog.site import find_site
from polypod.errors import InputError
from polypod.plan.predict import service_model
from polypod.plan.spec import Plan, Pool, Service
from polypod.simulate.outages import Breaks, Help, Outages, Seats, Walk, reach
from polypod.simulate.placed import Placed, placement
from polypod.simulate.spots import Domains
from polypod.simulate.timeline import Timeline
from polypod.workload.memory import weight_bytes_per_rank

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DETECT_S: Final = 600.0
"""Until a hang is noticed: MegaScale detects and diagnoses in under 10 minutes (rel-megascale)."""

RESTART_S: Final = 30.0
"""Of a process on what is whole: Huawei's figure for process-level recovery (rel-ascend-10k)."""

_SHARE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*%\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """How what broke comes back. `spares` are cards beside those of the plan: a count, or a share of each part's cards."""

    detect_s: float = DETECT_S
    failover_s: float = 60.0  # until a spare has the place of what broke; assumed
    restart_s: float = RESTART_S  # of an engine, before it loads
    storage_bytes_per_s: float = 1e9  # into each card; assumed
    crews: int = 0  # 0: as many as are needed
    spares: int = 0
    spare_fraction: float = 0.0

    def __post_init__(self) -> None:
        if not self.storage_bytes_per_s > 0:
            msg = f"weights load from storage at {self.storage_bytes_per_s:g} bytes/s; it has to be above 0, as 10 GB/s"
            raise InputError(msg)
        if self.crews < 0:
            msg = f"{self.crews} repair crews; give 1 or more, or 0 for as many as are needed"
            raise InputError(msg)

    def spares_of(self, cards: int) -> int:
        """Spare cards of a part; a share is rounded up."""
        return self.spares + int(np.ceil(self.spare_fraction * cards - 1e-9))


def read_spares(text: str) -> tuple[int, float]:
    """A count and a share, one of them 0.

    >>> read_spares("16"), read_spares("2%")
    ((16, 0.0), (0, 0.02))
    """
    match = _SHARE.match(text.strip())
    if match is not None and float(match[1]) <= 100:
        return 0, float(match[1]) / 100
    if text.strip().isdecimal():
        return int(text), 0.0
    msg = f"--spares {text!r} is no number of cards and no share of them; write 16, or 2%"
    raise InputError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seated:
    """The plan's replicas on cards, in the order of their first ranks: `order_R` has their places in `placed.replicas`."""

    placed: Placed
    recovery: Recovery
    domains: Domains
    seats: Seats
    order_R: Ints
    pool_R: Ints  # counted through the plan's services
    names: tuple[str, ...]

    def help(self, part: int) -> Help:
        spares = self.recovery.spares_of(self.placed.parts[part].cards)
        return Help(spares=spares, crews=self.recovery.crews, failover_s=self.recovery.failover_s)

    def outages(self, found: Timeline, walk: Walk) -> Outages:
        """All outages of a timeline; `failure_N` counts through it."""
        kinds = [rate.kind for rate in found.rates]
        begin_F, end_F = reach(self.seats, found.first_card_F, found.end_card_F)
        hangs_F = found.flags_F([kind.what == "hang" for kind in kinds])
        breaks = Breaks(
            at_s_F=found.at_s_F,
            notice_s_F=np.where(hangs_F, self.recovery.detect_s, 0.0),
            repair_s_F=found.repair_s_F,
            begin_F=begin_F,
            end_F=end_F,
            first_card_F=found.first_card_F,
            end_card_F=found.end_card_F,
            needs_part_F=~found.flags_F([kind.restarts for kind in kinds]),
            is_link_F=found.flags_F([kind.of.startswith("link") for kind in kinds]),
            is_shared_F=np.zeros(len(found.at_s_F), dtype=np.bool_),
        )
        stops_F = found.flags_F([kind.what in ("crash", "hang") for kind in kinds])
        return self.walk_parts(breaks, stops_F, walk)

    def walk_parts(self, breaks: Breaks, stops_F: Bools, walk: Walk) -> Outages:
        """Outages by those failures that stop something, part by part: spares and crews are of a part. `failure_N` counts through all."""
        pieces = []
        repaired_s_F = np.full(len(stops_F), np.nan)
        for number, part in enumerate(self.placed.parts):
            first_F = breaks.first_card_F
            here_F = (first_F >= part.first_card) & (first_F < part.first_card + part.cards)
            chosen = np.flatnonzero(stops_F & here_F)
            walked = walk(breaks.chosen(chosen), self.seats, self.help(number))
            repaired_s_F[chosen] = walked.repaired_s_F
            pieces.append(walked._replace(failure_N=chosen[walked.failure_N]))
        return Outages(
            replica_N=np.concatenate([piece.replica_N for piece in pieces]),
            start_s_N=np.concatenate([piece.start_s_N for piece in pieces]),
            end_s_N=np.concatenate([piece.end_s_N for piece in pieces]),
            failure_N=np.concatenate([piece.failure_N for piece in pieces]),
            by_spare_N=np.concatenate([piece.by_spare_N for piece in pieces]),
            repaired_s_F=repaired_s_F,
        )


def seat(plan: Plan, recovery: Recovery, domains: Domains | None = None, sizes: tuple[int | None, int | None] = (None, None)) -> Seated:  # fmt: skip
    """Place a plan's replicas; `sizes` are the cards of a node and of a rack where the catalog's are not meant.

    Raises `InputError` as `placed.placement` does.
    """
    placed = placement(plan, node_cards=sizes[0], rack_cards=sizes[1])
    pools = [(service, pool) for service in plan.services for pool in service.pools]
    counts = [pool.replicas for _, pool in pools]
    pool_R = np.repeat(np.arange(len(pools)), counts)
    load_s = np.array([_load_s(service, pool, placed, recovery) for service, pool in pools])
    apart = np.array([pool.role != "both" for _, pool in pools])
    order = np.argsort(placed.first_rank_R, kind="stable")
    seats = Seats(
        first_card_R=placed.first_card_R[order],
        end_card_R=(placed.first_card_R + placed.cards_R)[order],
        is_apart_R=apart[pool_R][order],
        load_s_R=load_s[pool_R][order],
    )
    return Seated(
        placed=placed,
        recovery=recovery,
        domains=domains or Domains(),
        seats=seats,
        order_R=order.astype(np.int64),
        pool_R=pool_R[order].astype(np.int64),
        names=tuple(placed.replicas[row] for row in order.tolist()),
    )


def _load_s(service: Service, pool: Pool, placed: Placed, recovery: Recovery) -> float:
    """restart_s + weights of a card's ranks / storage_bytes_per_s: every card reads its own part, all at once."""
    per_card = next(part.ranks_per_card for part in placed.parts if part.name == pool.on)
    each = float(weight_bytes_per_rank(service_model(service), pool.layout, pool.precision))
    ranks = min(per_card, pool.layout.world)
    return recovery.restart_s + ranks * each / recovery.storage_bytes_per_s


def sources() -> dict[str, str]:
    """Where the times of a recovery are from, by the catalog's id."""
    return {name: find_site(name).sources[0].text for name in ("rel-megascale", "rel-ascend-10k")}
