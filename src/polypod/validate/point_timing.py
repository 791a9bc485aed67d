"""A point on its rank: what a metric is timed with."""

from dataclasses import dataclass, replace
from functools import cached_property

from polypod.catalog.schema import Fact, Tier
from polypod.cost.calibration import Case
from polypod.cost.chip import Rank
from polypod.cost.deployment import Deployment, native_precision
from polypod.cost.step import exchange_time, fit_of, kernel_time
from polypod.errors import InputError
from polypod.validate.names import model_name
from polypod.validate.points import Point
from polypod.validate.predict import model_of
from polypod.workload.layout import check_layout
from polypod.workload.ops import Op
from polypod.workload.precision import Precision


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A point under one case of its rank's calibration."""

    point: Point
    rank: Rank
    case: Case

    @cached_property
    def deployment(self) -> Deployment:
        """The point's model on the rank. Raises `InputError` where the catalog or the layout does not allow it."""
        point = self.point
        model = model_of(model_name(point.model))
        check_layout(model, point.layout)
        native = native_precision(model, self.rank)
        weights = point.weights or native.weights
        compute = native.compute if weights == native.weights else None
        precision = Precision(weights=weights, kv=point.kv, compute=compute)
        return Deployment(
            model=model,
            layout=point.layout,
            precision=precision,
            rank=self.rank,
            two_batches=point.two_batches,
        )

    @property
    def share(self) -> float:
        """Data-parallel ranks' worth of tokens that one accelerator gives: a fraction where several hold one."""
        layout = self.point.layout
        return layout.dp * self.rank.ranks_per_accelerator / layout.world

    def kernel_s(self, op: Op) -> float:
        """One operator under its curve."""
        fit = fit_of(op, self.rank.calibration, self.point.layout)
        return float(kernel_time(op, fit, self.rank, self.case).total_s)

    def exchange_s(self, op: Op) -> float:
        """One exchange. Raises `InputError` where no link of known speed joins its ranks."""
        reach = self.rank.reach
        if reach is not None and self.point.layout.world > reach:
            msg = f"{self.point.layout.world} ranks of {self.rank.chip} are more than its links of known bandwidth join, {reach}"
            raise InputError(msg)
        return float(exchange_time(op, self.rank, self.point.layout, self.case).total_s)


def with_links(rank: Rank, point: Point) -> Rank:
    """The rank under the fabric and the network that the point's conditions name, beside those on record."""
    tiers = rank.tiers
    if "link_bytes_per_s" in point.numbers:
        tiers = (_tier("link", int(point.number("link_ranks")), "link_bytes_per_s", point),)
    if "network_bytes_per_s" in point.numbers:
        known = tuple(tier for tier in tiers if tier.bytes_per_s is not None and tier.ranks)
        tiers = (*known, _tier("network", None, "network_bytes_per_s", point))
    return replace(rank, tiers=tiers)


def _tier(name: str, ranks: int | None, column: str, point: Point) -> Tier:
    fact = Fact(value=point.number(column), source=point.source, kind="estimated")
    return Tier(name=name, ranks=ranks, bytes_per_s=fact)
