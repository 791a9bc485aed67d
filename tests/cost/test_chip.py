"""What a chip must have on record before anything can be timed on it."""

import pytest

from polypod.catalog.load import listing, load_accelerator, load_model
from polypod.cost.calibration import for_chip
from polypod.cost.chip import rank_of
from polypod.cost.deployment import Deployment, native_precision
from polypod.errors import InputError, LayoutError
from polypod.plan.place import island, parse_fleet
from polypod.workload.config import read_model
from polypod.workload.layout import Layout


@pytest.mark.parametrize(
    ("chip", "says"),
    [
        ("hygon-k100", r"no memory bandwidth on record, so it cannot be planned on; what is known: memory 64 GB, .*int8 peak 200 TFLOPS"),
        ("biren-br106", "no memory and no memory bandwidth on record"),
        ("enflame-l600", r"no peak on record, so it cannot be planned on; what is known: memory 144 GB, memory bandwidth 3\.6 TB/s"),
        ("kunlun-m100", "no memory .* what is known: nothing that a plan needs; polypod catalog show kunlun-m100"),
    ],
)  # fmt: skip
def test_a_chip_of_which_too_little_is_known_says_what_is_missing(chip: str, says: str):
    with pytest.raises(InputError, match=rf"{chip} has {says}"):
        rank_of(load_accelerator(chip), (), for_chip(chip))


def test_every_chip_is_a_rank_or_says_why_not():
    made, refused = 0, 0
    for entry in listing():
        if entry.kind != "accelerator":
            continue
        try:
            rank_of(load_accelerator(entry.id), (), for_chip(entry.id))
            made += 1
        except InputError:
            refused += 1
    assert made > 50
    assert refused > 5


def test_a_chip_with_fp16_alone_does_its_bf16_work_in_it():
    z100 = rank_of(load_accelerator("hygon-z100"), (), for_chip("hygon-z100"))

    assert z100.peak("bf16") == z100.peak("fp16") == 40e12


def test_a_layout_past_the_links_on_record_is_refused():
    # how fast four instances of a Trn2 UltraServer are joined is not published
    entry = load_model("llama-3.1-8b")
    llama = read_model(entry.config, name=entry.name, path=entry.path)
    rank = island("a", parse_fleet("aws-trn2-ultra")["a"]).rank
    precision = native_precision(llama, rank)

    assert Deployment(model=llama, layout=Layout(tp=8, pp=2), precision=precision, rank=rank)
    with pytest.raises(
        LayoutError, match=r"32 ranks of aws-trainium2 are more .* use at most 16 together"
    ):
        Deployment(model=llama, layout=Layout(tp=8, pp=4), precision=precision, rank=rank)
