"""Where something breaks, in words."""

import pytest

from polypod.errors import InputError
from polypod.plan.spec import Layout, Plan, Pool, Precision, Service, Source
from polypod.simulate.placed import placement
from polypod.simulate.spots import Domains, read_spot

PRECISION = Precision(weights="bf16", kv="bf16")
FLEET = {
    "a": Source(accelerator="nvidia-h100-sxm", count=64),
    "west": Source(accelerator="nvidia-h100-sxm", count=8),
}
POOLS = tuple(
    Pool(role="both", on=on, layout=Layout(tp=8), replicas=1, precision=PRECISION, state="modelled", name=name)
    for on, name in (("a", "first"), ("west", "second"))
)  # fmt: skip
PLACED = placement(Plan(polypod=1, fleet=FLEET, services=(Service(model="meta-llama/Llama-3.1-8B", pools=POOLS),)))  # fmt: skip


@pytest.mark.parametrize(
    ("text", "first", "end"),
    [
        ("card a/17", 17, 18),
        ("node a/2", 16, 24),
        ("rack a/1", 32, 64),
        ("link card a/5", 5, 6),
        ("link  node west/0", 64, 72),
        ("link rack a/0", 0, 32),
        ("cooling a/0", 0, 64),
        ("power a/1", 32, 64),
        ("rack west", 64, 72),
        ("replica second-0", 64, 72),
    ],
)
def test_a_place_is_its_cards(text, first, end):
    found = read_spot(text, PLACED, Domains(cooling_racks=2))

    assert (found.first_card, found.end_card) == (first, end)


def test_a_place_says_its_own_name():
    assert read_spot("link  card a / 5", PLACED, Domains()).name == "link card a/5"
    assert read_spot("link card a/5", PLACED, Domains()).is_link


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("card a/64", r"'card a/64': 'a' has 64 of these, numbered from 0; nearest: 'card a/63'"),
        ("rack a/2", r"'a' has 2 of these, numbered from 0; nearest: 'rack a/1'"),
        ("card b/1", r"no part of the fleet is called 'b'; nearest: a"),
        ("card wst/1", r"nearest: west"),
        ("crad a/1", r"nothing here is a 'crad'; nearest: card"),
        ("link cooling a/1", r"nothing here is a 'link cooling'"),
        ("node a", r"'a' has 8 of these; say which, 'node a/0' to 'node a/7'"),
        ("17", r"'17' is no place; write 'card a/17'"),
        ("replica first-1", r"no replica of this plan is called 'first-1'; nearest: first-0"),
    ],
)
def test_what_is_not_there_is_said_with_the_nearest(text, problem):
    with pytest.raises(InputError, match=problem):
        read_spot(text, PLACED, Domains())
