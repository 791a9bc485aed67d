"""A mixed-integer linear program, built row by row and solved by HiGHS (Huangfu and Hall 2018, https://highs.dev).

Maximises or minimises `cost . x` with every x between its bounds, whole where it is said to be, and every row between its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from polypod.errors import InputError

if TYPE_CHECKING:
    import highspy

INFINITY: Final = float("inf")
Status = Literal["optimal", "time limit", "infeasible", "unbounded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """What came of it. `bound` is what no solution can beat; `gap` is the distance to it over the value. Without a solution `x` is empty."""

    status: Status
    value: float
    bound: float
    x: NDArray[np.float64]

    @property
    def has_solution(self) -> bool:
        return self.x.size > 0

    @property
    def gap(self) -> float:
        """0 where the solution is proven best."""
        if self.value == self.bound or not self.has_solution:
            return 0.0
        return abs(self.bound - self.value) / max(abs(self.value), 1e-12)


@dataclass(slots=True, kw_only=True)
class Milp:
    """Built up by `variable` and `row`."""

    maximise: bool = False
    costs: list[float] = field(default_factory=list)
    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)
    wholes: list[bool] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def variable(
        self, *, cost: float = 0.0, low: float = 0.0, high: float = INFINITY, whole: bool = False
    ) -> int:
        """Add one; its number."""
        self.costs.append(cost)
        self.lows.append(low)
        self.highs.append(high)
        self.wholes.append(whole)
        return len(self.costs) - 1

    def row(
        self, terms: Mapping[int, float], *, low: float = -INFINITY, high: float = INFINITY
    ) -> int:
        """Add low <= terms . x <= high; its number."""
        self.rows.append(({n: value for n, value in terms.items() if value}, low, high))
        return len(self.rows) - 1

    def solve(self, *, time_limit_s: float = 60.0, gap: float = 1e-4) -> Solved:
        """The best solution there is time for. Raises `InputError` for a program without variables."""
        if not self.costs:
            msg = "nothing can be chosen: no deployment fits any part of the fleet"
            raise InputError(msg)
        solver = _quiet()
        solver.setOptionValue("time_limit", time_limit_s)
        solver.setOptionValue("mip_rel_gap", gap)
        solver.passModel(self._lp(relaxed=False))
        solver.run()
        return _solved(solver, whole=any(self.wholes))

    def duals(self, row_numbers: list[int]) -> list[float]:
        """What one unit more on the right of each row would bring, of the relaxation without whole numbers."""
        solver = _quiet()
        solver.passModel(self._lp(relaxed=True))
        solver.run()
        found = solver.getSolution().row_dual
        return [float(found[number]) for number in row_numbers]

    def relaxed(self) -> Solved:
        """The best without whole numbers."""
        solver = _quiet()
        solver.passModel(self._lp(relaxed=True))
        solver.run()
        return _solved(solver, whole=False)

    def copied(self) -> "Milp":
        """One of its own, to be changed and solved again."""
        return replace(
            self, costs=[*self.costs], lows=[*self.lows], highs=[*self.highs], wholes=[*self.wholes], rows=[*self.rows]
        )  # fmt: skip

    def _lp(self, *, relaxed: bool) -> "highspy.HighsLp":
        import highspy

        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self.costs), len(self.rows)
        lp.col_cost_ = np.array(self.costs)
        lp.col_lower_, lp.col_upper_ = np.array(self.lows), np.array(self.highs)
        lp.row_lower_ = np.array([low for _, low, _ in self.rows], dtype=float)
        lp.row_upper_ = np.array([high for *_, high in self.rows], dtype=float)
        lp.sense_ = highspy.ObjSense.kMaximize if self.maximise else highspy.ObjSense.kMinimize
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        starts = np.cumsum([0, *(len(terms) for terms, *_ in self.rows)])
        lp.a_matrix_.start_ = starts.astype(np.int32)
        lp.a_matrix_.index_ = np.array([n for terms, *_ in self.rows for n in terms], dtype=np.int32)  # fmt: skip
        lp.a_matrix_.value_ = np.array([value for terms, *_ in self.rows for value in terms.values()], dtype=float)  # fmt: skip
        if not relaxed:
            kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
            lp.integrality_ = [kinds[whole] for whole in self.wholes]
        return lp


def _quiet() -> "highspy.Highs":
    import highspy

    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.silent()
    for name in ("threads", "random_seed"):
        solver.setOptionValue(name, 1)
    return solver


_ENDS: Final[dict[str, Status]] = {
    "kOptimal": "optimal",
    "kTimeLimit": "time limit",
    "kInfeasible": "infeasible",
    "kUnbounded": "unbounded",
    "kUnboundedOrInfeasible": "infeasible",
}
_FEASIBLE: Final = 2
"""HiGHS's kSolutionStatusFeasible."""


def _solved(solver: Any, *, whole: bool) -> Solved:  # noqa: ANN401 (highspy's own class has no types)
    status = _ENDS.get(solver.getModelStatus().name, "infeasible")
    info = solver.getInfo()
    found = np.array(solver.getSolution().col_value, dtype=float)
    value = float(info.objective_function_value)
    return Solved(
        status=status,
        value=value,
        bound=float(info.mip_dual_bound) if whole else value,
        x=found if info.primal_solution_status == _FEASIBLE else np.array([]),
    )
