"""Plans with other replicas than they say."""

import msgspec
import pytest

from polypod.errors import InputError
from polypod.plan.spec import Plan
from polypod.plan.what_if import with_replicas

POOL = {
    "role": "both",
    "on": "a",
    "layout": {},
    "replicas": 2,
    "precision": {"weights": "bf16", "kv": "bf16"},
    "state": "modelled",
}


def plan(*names: str | None) -> Plan:
    pools = [POOL | ({} if name is None else {"name": name}) for name in names]
    raw = {
        "polypod": 1, "fleet": {"a": {"accelerator": "nvidia-h100-sxm", "count": 8}},
        "services": [{"model": "m", "pools": pools}], "predicted": {"goodput": "9 /s"},
    }  # fmt: skip
    return msgspec.convert(raw, Plan)


def counts(found: Plan) -> list[int]:
    return [pool.replicas for service in found.services for pool in service.pools]


def test_pools_that_are_named_get_their_replicas_and_others_keep_theirs():
    found = with_replicas(plan("x", None), ["pool0.1=5"])

    assert counts(found) == [2, 5]
    assert found.predicted is None
    assert counts(with_replicas(plan("x", None), ["x=3", "pool0.1=5"])) == [3, 5]


def test_a_number_alone_is_of_the_only_pool():
    assert counts(with_replicas(plan(None), ["7"])) == [7]


def test_nothing_asked_is_the_plan_itself():
    known = plan("x")
    assert with_replicas(known, []) is known


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4", r"--replicas 4 does not say of which pool, and the plan has x, y; give x=4"),
        ("z=4", r"the plan has no pool 'z'; nearest: x, y"),
        ("x=0", r"--replicas x=0: '0' is no number of replicas; give POOL=N"),
        ("x=many", r"'many' is no number of replicas"),
    ],
)
def test_what_names_no_pool_or_no_number_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        with_replicas(plan("x", "y"), [text])
