"""`polypod up --continue` sets what holds for streams whose requests do not say."""

from pathlib import Path

import pytest

from polypod.cli.up import _with_continuation
from polypod.plan.predict import policy_settings
from polypod.plan.spec import read_plan
from polypod.serve.node import Prepared

PLAN = Path(__file__).parents[2] / "examples" / "three-chips.yaml"


@pytest.fixture
def prepared():
    plan = read_plan(PLAN)
    return Prepared(plan=plan, settings=policy_settings(plan), ups=(), calibrations={}, folder=PLAN)


def test_the_flag_goes_before_the_plan(prepared):
    assert _with_continuation(prepared, "exact").plan.policy.continuation == "exact"


def test_without_it_the_plan_holds(prepared):
    assert _with_continuation(prepared, None).plan.policy.continuation == "off"
