"""Means over seeds and their intervals."""

import math

import numpy as np
import pytest

from polypod.sweep.seeds import mean_and_half, over_seeds, seed_columns, student_t


@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622), (10, 2.2281), (30, 2.0423), (120, 1.9799)],
)  # fmt: skip
def test_students_t_is_that_of_printed_tables(freedom, t):
    # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2, column 0.975: https://www.itl.nist.gov/div898/handbook/eda/section3/eda3672.htm
    assert student_t(freedom) == pytest.approx(t, abs=6e-4)


def test_students_t_has_its_closed_forms_and_its_limit():
    assert student_t(1, 0.9) == pytest.approx(math.tan(0.45 * math.pi), rel=1e-9)
    p = 0.8
    assert student_t(2, p) == pytest.approx(p * math.sqrt(2 / (1 - p * p)), rel=1e-9)
    assert student_t(100_000) == pytest.approx(1.959964, abs=1e-4)


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    drawn = np.random.default_rng(3).normal(5.0, 2.0, (4000, 6))
    held = 0
    for values in drawn.tolist():
        mean, half = mean_and_half(values)
        held += abs(mean - 5.0) <= half

    assert abs(held / 4000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_rows_that_differ_in_their_seed_are_one_and_errors_are_left_out():
    rows = [
        {"plan": "p", "rate": rate, "seed": seed, "status": "ok", "x": float(seed + len(rate)), "n": 3}
        for rate in ("1", "22")
        for seed in range(3)
    ]  # fmt: skip
    rows[5] |= {"status": "error", "x": None, "n": None}

    first, second = over_seeds(rows, ["plan", "rate", "seed"], ["x", "n"])

    assert (first["plan"], first["rate"], first["seeds"], first["x"]) == ("p", "1", 3, 2.0)
    assert first["x high"] == pytest.approx(2.0 + 4.3027 / math.sqrt(3), abs=1e-3)
    assert first["x low"] + first["x high"] == pytest.approx(4.0)
    assert (second["seeds"], second["x"]) == (2, 2.5)
    assert (first["n"], first["n low"]) == (3.0, 3.0)
    assert list(seed_columns(["plan", "rate", "seed"], ["x", "n"])) == list(first)


def test_one_seed_has_no_interval_and_none_no_mean():
    ok = {"plan": "p", "seed": 0, "status": "ok", "x": 4.0}
    (one,) = over_seeds([ok], ["plan", "seed"], ["x"])
    (none,) = over_seeds([ok | {"status": "error"}], ["plan", "seed"], ["x"])

    assert (one["x"], one["x low"], one["x high"]) == (4.0, None, None)
    assert (none["seeds"], none["x"]) == (0, None)
