"""The measurements that ship, predicted, and the accuracy page made of them."""

from collections.abc import Sequence
from functools import cache
from importlib import resources

from polypod.engine.settings import NOTHING, EngineArgs
from polypod.errors import PolypodError
from polypod.validate.beside import by_kind, paired
from polypod.validate.held_out import held_out
from polypod.validate.names import system_name
from polypod.validate.page import kinds, page
from polypod.validate.point_bands import PredictedPoint, predict_point
from polypod.validate.points import Point, read_points
from polypod.validate.predict import predict, reason_of
from polypod.validate.rows import Refused, Row, read_rows, unique
from polypod.validate.scores import Scored

_LEFT_OUT = ("b200_sxm", "h100_sxm")


@cache
def shipped_rows() -> tuple[list[Row], list[Refused]]:
    """The published set as it is read; not to be changed."""
    shipped = resources.files("polypod.validate").joinpath("data", "serving.csv")
    with resources.as_file(shipped) as path:
        return read_rows(path)


def read_shipped_points() -> list[Point]:
    """The single published figures that ship."""
    shipped = resources.files("polypod.validate").joinpath("data", "points.csv")
    with resources.as_file(shipped) as path:
        return read_points(path)


def shipped_points() -> list[PredictedPoint]:
    """The same, each predicted."""
    return [predict_point(point) for point in read_shipped_points()]


def scored(
    row: Row,
    without: frozenset[str] = frozenset(),
    *,
    own: bool = False,
    said: EngineArgs = NOTHING,
) -> Scored:
    """A row and its prediction, or why there is none; `own` lets a person's calibrations correct it."""
    try:
        return Scored(row=row, prediction=predict(row, without=without, own=own, said=said))
    except PolypodError as error:
        return Scored(row=row, prediction=None, reason=reason_of(error))


def shipped_scored(without: frozenset[str] = frozenset()) -> list[Scored]:
    """The set that ships, each measurement once."""
    rows, _ = shipped_rows()
    return [scored(row, without) for row in unique(rows)]


def shipped_page() -> str:
    """What `docs/accuracy.md` should say."""
    left_out: dict[str, Sequence[Scored]] = {}
    for system in _LEFT_OUT:
        rows = shipped_scored(frozenset({system_name(system)}))
        mine = [one for one in rows if one.row.system == system]
        left_out |= {f"{system}, {name}": found for name, found in kinds(mine).items()}
    _, refused = shipped_rows()
    every = shipped_scored()
    pairs, _ = paired(every)
    return page(every, refused, left_out, held_out(every), shipped_points(), by_kind(pairs))
