"""The solver's answers, against every choice tried out and against duality."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.errors import InputError
from polypod.plan.milp import Milp

small = st.integers(1, 9)


@given(
    values=st.lists(small, min_size=1, max_size=4),
    weights=st.lists(st.lists(small, min_size=4, max_size=4), min_size=1, max_size=3),
    limits=st.lists(st.integers(1, 25), min_size=3, max_size=3),
)
@settings(deadline=None, max_examples=60)
def test_the_best_of_a_small_program_is_what_trying_everything_finds(
    values: list[int], weights: list[list[int]], limits: list[int]
) -> None:
    program = Milp(maximise=True)
    numbers = [program.variable(cost=value, high=3, whole=True) for value in values]
    for row, limit in zip(weights, limits, strict=False):
        program.row(dict(zip(numbers, row, strict=False)), high=limit)
    solved = program.solve()

    tried = itertools.product(range(4), repeat=len(values))
    best = max(
        sum(value * n for value, n in zip(values, choice, strict=True))
        for choice in tried
        if all(sum(w * n for w, n in zip(row, choice, strict=False)) <= limit for row, limit in zip(weights, limits, strict=False))
    )  # fmt: skip
    assert solved.status == "optimal"
    assert solved.value == pytest.approx(best)
    assert solved.gap < 1e-4


def test_what_cannot_be_has_no_solution() -> None:
    program = Milp()
    number = program.variable(cost=1.0, high=1.0, whole=True)
    program.row({number: 1.0}, low=2.0)
    solved = program.solve()
    assert (solved.status, solved.has_solution) == ("infeasible", False)


def test_a_program_of_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing can be chosen"):
        Milp().solve()


def test_a_dual_is_what_one_unit_more_brings_where_nothing_is_whole() -> None:
    program = Milp(maximise=True)
    first, second = program.variable(cost=3.0), program.variable(cost=2.0)
    row = program.row({first: 1.0, second: 1.0}, high=4.0)
    program.row({first: 1.0}, high=3.0)
    before = program.solve().value
    (dual,) = program.duals([row])
    wider = program.copied()
    wider.rows[row] = (wider.rows[row][0], wider.rows[row][1], 5.0)
    assert wider.solve().value - before == pytest.approx(dual)
    assert program.rows[row][2] == 4.0
