"""The frontier, against every pair compared."""

import numpy as np
import pytest

from polypod.cli.asking import model_of
from polypod.cost.bands import Band
from polypod.plan.energy import serving_at
from polypod.plan.frontier import Point, _unbeaten, frontier, thinned
from polypod.plan.money import Output, running, site
from polypod.plan.place import islands, parse_fleet
from polypod.plan.search import Question, steady


@pytest.fixture(scope="module")
def points() -> list[Point]:
    question = Question(model=model_of("qwen3-32b"), input_tokens=2048, output_tokens=512)
    return frontier(question, islands(parse_fleet("nvidia-h100-sxm:2+amd-mi300x:1")), site())


def test_no_deployment_on_it_is_beaten_by_another(points: list[Point]) -> None:
    assert all(None not in one.figures for one in points)
    rows = np.array([one.figures for one in points], dtype=float)
    for row in rows:
        at_least = (rows <= row).all(axis=1) & (rows < row).any(axis=1)
        assert not at_least.any()


def test_every_deployment_off_it_is_beaten(points: list[Point]) -> None:
    # a grid of one layout's batches: each is on the frontier or beaten by what is
    one = points[len(points) // 2]
    question = Question(model=model_of("qwen3-32b"), input_tokens=2048, output_tokens=512)
    for batch in (1.0, 7.0, 24.0):
        load = steady(question, one.deployment, np.array([batch]), np.array([512.0]))
        mine = (float(load.ttft_s[0]), float(load.tpot_s[0]), float(load.tokens_per_s[0]) / one.deployment.accelerators)  # fmt: skip
        assert any(
            other.ttft_s <= mine[0] * 1.0001 and other.tpot_s <= mine[1] * 1.0001 and other.tokens_per_s_per_accelerator >= mine[2] * 0.9999
            for other in points
        )  # fmt: skip


def test_money_and_energy_are_those_of_the_deployment_at_work(points: list[Point]) -> None:
    question = Question(model=model_of("qwen3-32b"), input_tokens=2048, output_tokens=512)
    for one in points[:: max(len(points) // 7, 1)]:
        chunk = float(one.max_step_tokens - one.sequences_per_rank)
        run = serving_at(question, one.deployment, sequences=float(one.sequences_per_rank), chunk_tokens=chunk)  # fmt: skip
        output = Output(accelerators=one.deployment.accelerators, tokens_per_s=one.tokens_per_s_per_accelerator, band=Band(low=1.0, high=1.0))  # fmt: skip
        told = running(one.island, run, output, site())
        assert told.usd_per_million_tokens is not None
        assert told.joules_per_million_tokens is not None
        assert one.usd_per_million_tokens == pytest.approx(told.usd_per_million_tokens.likely)
        assert one.joules_per_million_tokens == pytest.approx(told.joules_per_million_tokens.likely)


def test_what_has_no_price_is_beaten_in_it_by_nothing_and_beats_nothing() -> None:
    question = Question(model=model_of("qwen3-32b"), input_tokens=2048, output_tokens=512)
    found = frontier(question, islands(parse_fleet("nvidia-h100-sxm:1+hygon-bw1000:2")), site())
    assert {one.island.rank.chip for one in found} == {"nvidia-h100-sxm", "hygon-bw1000"}
    assert all((one.usd_per_million_tokens is None) == (one.island.rank.chip == "hygon-bw1000") for one in found)  # fmt: skip


def test_it_is_ordered_by_tpot_and_thinned_evenly_with_its_ends(points: list[Point]) -> None:
    times = [one.tpot_s for one in points]
    assert times == sorted(times)
    few = thinned(points, 10)
    assert len(few) <= 10
    assert (few[0], few[-1]) == (points[0], points[-1])


@pytest.mark.parametrize("values", [4, 9, 1000])
def test_the_unbeaten_of_rows_are_those_that_comparing_all_pairs_leaves(values: int) -> None:
    """On few values many are equal in one column or in all; of those alike in all, one is kept."""
    generator = np.random.default_rng(values)
    for count in (1, 7, 300):
        rows = generator.integers(0, values, (count, 3)).astype(float)
        alone = [row for row in rows if not ((rows <= row).all(axis=1) & (rows < row).any(axis=1)).any()]  # fmt: skip
        kept = rows[_unbeaten(rows)]
        assert len(kept) == len({tuple(row) for row in kept})
        assert {tuple(row) for row in kept} == {tuple(row) for row in alone}
        assert (np.diff(kept[:, 1]) >= 0).all()
