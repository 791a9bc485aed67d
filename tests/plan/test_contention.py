"""Links that block: what all send at once gets less of, and nothing else does."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from polypod.catalog.load import load_pod
from polypod.cli.asking import model_of
from polypod.cli.main import main
from polypod.cost.deployment import Deployment, native_precision
from polypod.errors import FileError, InputError
from polypod.plan.compose import plan_model
from polypod.plan.contention import blocking_notes
from polypod.plan.fleet import Chosen, choose
from polypod.plan.fleet_file import fleet_of
from polypod.plan.fleet_offers import Aim
from polypod.plan.place import Island, island
from polypod.plan.search import Question
from polypod.plan.spec import Source, check_source
from polypod.workload.layout import Layout


def h200(count: int, blocking: float | None = None) -> Island:
    return island("a", Source(accelerator="nvidia-h200-sxm", count=count, blocking_ratio=blocking))


def deepseek() -> Question:
    return Question(model=model_of("deepseek-v3"), input_tokens=4000, output_tokens=1000, ttft_s=2.0, tpot_s=0.05)  # fmt: skip


def served(place: Island, question: Question) -> float:
    found = choose([question], [place], Aim())
    assert isinstance(found, Chosen)
    return found.served_per_s[0]


def test_a_group_that_crosses_the_network_sends_slower_and_one_within_a_node_does_not() -> None:
    model = deepseek().model

    def exchange_s(layout: Layout, blocking: float) -> float:
        rank = h200(64, blocking).rank
        deployment = Deployment.make(model, layout, native_precision(model, rank), rank)
        cost = deployment.cost(deployment.ops(sequences=64.0, kv_tokens=64 * 4000.0))
        return sum(float(part.total_s) for part in cost.parts if part.name in ("dispatch", "combine"))  # fmt: skip

    wide, near = Layout(dp=32, ep=32), Layout(dp=8, ep=8)
    assert exchange_s(near, 4.0) == exchange_s(near, 1.0)
    times = [exchange_s(wide, blocking) for blocking in (1.0, 2.0, 4.0)]
    # what is sent takes twice as long each time; what it takes to begin does not
    assert times[2] - times[1] == pytest.approx(2 * (times[1] - times[0]))
    assert times[0] < times[1]


def test_a_higher_blocking_ratio_never_helps_and_costs_a_fleet_whose_groups_cross_nodes() -> None:
    rates = [served(h200(64, blocking), deepseek()) for blocking in (None, 1.0, 2.0, 4.0)]
    assert rates[0] == rates[1]
    # a prefill worker's step is the closed form's best, and emulation may like another one better: two parts of a hundred
    assert all(more >= less * 0.98 for more, less in itertools.pairwise(rates))
    assert rates[3] < 0.97 * rates[0]


def test_ten_thousand_cards_serve_less_each_where_their_groups_cross_links_that_block() -> None:
    free, blocked = (served(h200(10240, blocking), deepseek()) / 10240 for blocking in (1.0, 4.0))
    assert blocked < 0.97 * free
    # a model that stays within a node does not notice
    small = Question(model=model_of("llama-3.1-8b"), input_tokens=2048, output_tokens=512, ttft_s=2.0, tpot_s=0.05)  # fmt: skip
    together = Aim(apart=False)
    free_small, blocked_small = (choose([small], [h200(1024, ratio)], together) for ratio in (1.0, 4.0))  # fmt: skip
    assert isinstance(free_small, Chosen)
    assert isinstance(blocked_small, Chosen)
    assert free_small.served_per_s == blocked_small.served_per_s


def test_what_blocks_is_said_with_its_source_and_what_nobody_published_once() -> None:
    rank = h200(64).rank
    (note,) = blocking_notes([(rank, 32), (rank, 64)])
    assert note == "no blocking ratio is on record of 'scale-out, 400 Gb/s per GPU' of nvidia-h200-sxm: assumed 1:1"  # fmt: skip
    assert blocking_notes([(rank, 8)]) == []
    (said,) = blocking_notes([(h200(64, 2.0).rank, 32)])
    assert said.startswith("'scale-out, 400 Gb/s per GPU' of nvidia-h200-sxm blocks 2:1 (the fleet's file)")  # fmt: skip
    known = island("a", Source(accelerator="nvidia-h100-sxm", count=64))
    assert blocking_notes([(known.rank, 64)]) == []  # 1:1 in NVIDIA's own reference fabric
    question = replace(deepseek(), ttft_s=None, tpot_s=None)
    answer = plan_model(question, {"a": Source(accelerator="nvidia-h200-sxm", count=16)})
    crosses = answer.choices[0].confirmed.candidate.deployment.layout.world > 8
    assert crosses == any("assumed 1:1" in one for one in answer.assumptions)


def test_ratios_on_record_are_of_fabrics_whose_makers_told() -> None:
    for name, tier in (("huawei-cm384", 2), ("nvidia-hgx-h100", 1), ("nvidia-gb200-nvl72", 0)):
        ratio = load_pod(name).tiers[tier].blocking_ratio
        assert ratio is not None
        assert ratio.value == 1
    assert load_pod("sugon-scalex640").tiers[0].blocking_ratio is None


def test_a_fleets_file_says_what_blocks(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(
        "fleet:\n  a: {accelerator: nvidia-h200-sxm, count: 64, blocking: 2}\n  b: {accelerator: nvidia-h100-sxm, count: 64}\n"
        "fabrics:\n  - {joins: [a, b], bandwidth: 100 GB/s, blocking: 4}\n"
    )
    fleet = fleet_of(str(path))
    assert fleet.sources["a"].blocking_ratio == 2
    assert fleet.widths_bytes_per_s == {frozenset({"a", "b"}): 25e9}
    tiers = island("a", fleet.sources["a"]).rank.tiers
    assert [tier.bytes_per_s.value for tier in tiers if tier.bytes_per_s] == [450e9, 25e9]


@pytest.mark.parametrize(
    ("said", "says"),
    [("blocking: 0.5", r"Expected `float` >= 1.*blocking"), ("blocking: two", r"Expected `float")],
)
def test_a_ratio_that_cannot_be_is_named(tmp_path: Path, said: str, says: str) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(f"fleet:\n  a: {{accelerator: nvidia-h200-sxm, count: 64, {said}}}\n")
    with pytest.raises(FileError, match=says):
        fleet_of(str(path))


def test_a_hosts_cores_have_no_links() -> None:
    with pytest.raises(InputError, match=r"host 'me' has no links that block; .*a.blocking"):
        check_source("$.fleet.a", Source(host="me", cores=(0,), blocking_ratio=2.0))


def test_the_catalog_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "show", "nvidia-hgx-h100"]) == 0
    line = next(one for one in capsys.readouterr().out.splitlines() if "blocking" in one)
    assert line.split()[-3:-1] == ["1", "datasheet"]
