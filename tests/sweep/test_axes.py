"""The points of a sweep of simulations."""

import pytest

from polypod.errors import InputError
from polypod.sweep.axes import RunPoint, run_points

KNOWN = {"seed", "rate", "faults", "draw_faults"}


def points(**raw):
    return run_points({"kind": "simulate", **raw}, KNOWN, 1000)


def test_points_are_the_product_in_the_order_of_the_file():
    found = points(plan="p", rate=["1/s", 2], seed="0..2")

    assert [point.asked for point in found] == [
        {"plan": "p", "rate": rate, "seed": seed} for rate in ("1/s", "2") for seed in ("0", "1", "2")
    ]  # fmt: skip


def test_null_leaves_a_flag_out_and_true_and_false_are_words():
    found = points(plan=["p", "q"], faults=[None, "f.yaml"], draw_faults=[True, False])

    assert len(found) == 8
    assert found[0] == RunPoint(plan="p", said=(("faults", None), ("draw_faults", "true")))
    assert found[-1] == RunPoint(plan="q", said=(("faults", "f.yaml"), ("draw_faults", "false")))


def test_skip_leaves_out_and_also_adds_and_equal_points_stand_once():
    found = points(
        plan="p", rate=[1, 2, 1], seed=[0, 1], skip=[{"rate": 2, "seed": [0, 7]}],
        also=[{"rate": 3, "seed": 9}, {"rate": 1, "seed": 0}],
    )  # fmt: skip

    assert [(point.asked["rate"], point.asked["seed"]) for point in found] == [("1", "0"), ("1", "1"), ("2", "1"), ("3", "9")]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"rate": 1}, r"names no `plan`; give the plan file that is played, or several - at `\$`"),
        ({"plan": "p", "rat": 1}, r"'rat' is no key of it; nearest: rate.* - at `\$.rat`"),
        ({"plan": "p", "rate": []}, r"is an empty list.* - at `\$.rate`"),
        ({"plan": "p", "rate": {"x": 1}}, r"\{'x': 1\} is no value of a flag.* - at `\$.rate`"),
        ({"plan": "p", "seed": "5..3"}, r"5..3 is no range of seeds; give the lower one first"),
        ({"plan": "p", "seed": "0..600", "rate": [1, 2]}, r"601 seed x 2 rate = 1,202 points, over the limit of 1,000"),
        ({"plan": "p", "rate": 1, "skip": [{"rate": 2}]}, r"matches no point of the product.* - at `\$.skip\[0\]`"),
        ({"plan": "p", "rate": 1, "skip": [{}]}, r"says nothing, and would leave every point out.* - at `\$.skip\[0\]`"),
        ({"plan": "p", "rate": 1, "skip": [{"rate": 1}]}, r"`skip` leaves no point of the product"),
        ({"plan": "p", "rate": [1, 2], "also": [{}]}, r"does not say, and the file lists 2 of, `rate`; give one - at `\$.also\[0\]`"),
        ({"plan": "p", "rate": 1, "also": [{"rate": [1, 2]}]}, r"lists 2 of `rate`; give one"),
        ({"plan": "p", "also": 3}, r"is no list of entries.* - at `\$.also`"),
    ],
)  # fmt: skip
def test_what_is_no_sweep_is_refused_with_its_place(raw, message):
    with pytest.raises(InputError, match=message):
        points(**raw)
