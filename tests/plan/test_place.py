"""What cannot be planned on is bad input that names what is missing, never a crash."""

import pytest

from polypod.catalog.load import listing, load_model
from polypod.cost.deployment import native_precision
from polypod.errors import InputError
from polypod.plan.place import island, parse_fleet
from polypod.plan.search import Question, search
from polypod.workload.config import read_model

ENTRY = load_model("llama-3.1-8b")
LLAMA = read_model(ENTRY.config, name=ENTRY.name, path=ENTRY.path)
QUESTION = Question(model=LLAMA, input_tokens=512, output_tokens=128)
FLEETS = [
    entry.id if entry.kind == "pod" else f"{entry.id}:8"
    for entry in listing()
    if entry.kind in {"pod", "accelerator"}
]


@pytest.mark.parametrize("fleet", FLEETS)
def test_every_fleet_is_searched_or_refused_in_words(fleet: str):
    try:
        where = island("a", parse_fleet(fleet)["a"])
        precision = native_precision(LLAMA, where.rank)
    except InputError:
        return
    found = search(QUESTION, where, precision)
    assert found.candidates or found.pruned


def test_a_pod_of_an_undisclosed_make_says_that_its_accelerator_is_missing():
    with pytest.raises(InputError, match=r"enflame-esl64 .*not disclosed.* missing: accelerator"):
        island("a", parse_fleet("enflame-esl64")["a"])


def test_chips_without_a_known_link_still_serve_one_by_one():
    # eight P800: how fast they are joined is not published, so only replicas of one card are asked
    where = island("a", parse_fleet("kunlun-p800:8")["a"])
    found = search(QUESTION, where, native_precision(LLAMA, where.rank))

    assert {one.deployment.layout.world for one in found.candidates} == {1}
    assert found.candidates[0].replicas == 8
    assert found.pruned["no bandwidth is on record for the links it would need"] > 0
