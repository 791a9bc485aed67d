"""A fleet chosen as a whole: against every choice tried out, and the laws that no answer may break."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from polypod.cli.asking import model_of
from polypod.cost.deployment import native_precision
from polypod.errors import InfeasibleError
from polypod.plan.compose_fleet import fleet_answer
from polypod.plan.fleet import Chosen, Short, choose
from polypod.plan.fleet_offers import Aim
from polypod.plan.fleet_program import domain_ranks
from polypod.plan.milp import Milp, Solved
from polypod.plan.money import site
from polypod.plan.place import islands, parse_fleet
from polypod.plan.search import Question, search
from polypod.plan.shapes import together
from polypod.plan.spec import Slo
from polypod.plan.workers_apart import apart, cache_bytes, exchanging_fraction
from polypod.report.fleet import fleet_text


def ask(name: str = "qwen3-32b", rate: float | None = None, ttft_s: float = 2.0, tpot_s: float = 0.05) -> Question:  # fmt: skip
    return Question(
        model=model_of(name), input_tokens=2048, output_tokens=512, ttft_s=ttft_s, tpot_s=tpot_s, percentile=99, rate_per_s=rate
    )  # fmt: skip


FOUND: dict[str, Chosen | Short] = {}
PLAIN = Aim()


def chosen(fleet: str, questions: tuple[tuple[str, float | None], ...], aim: Aim = PLAIN) -> Chosen | Short:  # fmt: skip
    """The answer, worked out once."""
    key = f"{fleet} {questions} {aim}"
    if key not in FOUND:
        asked = [ask(name, rate) for name, rate in questions]
        FOUND[key] = choose(asked, islands(parse_fleet(fleet)), aim)
    return FOUND[key]


def best(fleet: str, aim: Aim = PLAIN, model: str = "qwen3-32b") -> float:
    found = chosen(fleet, ((model, None),), aim)
    assert isinstance(found, Chosen)
    return found.served_per_s[0]


def test_together_alone_is_what_trying_every_number_of_replicas_finds() -> None:
    question = ask()
    (island,) = islands(parse_fleet("nvidia-h100-sxm:8"))
    shapes = together(question, search(question, island, native_precision(question.model, island.rank)))  # fmt: skip
    found = choose([question], [island], Aim(apart=False))
    assert isinstance(found, Chosen)
    assert all(one.shape.confirmed for one in found.used)
    rates = {one.shape.deployment.layout.world: one.shape.rate_per_s for one in found.used}
    # no other numbers of the shapes that were emulated would serve more
    numbers = itertools.product(range(9), repeat=len(rates))
    tried = max(sum(n * rate for n, rate in zip(choice, rates.values(), strict=True)) for choice in numbers if sum(n * world for n, world in zip(choice, rates, strict=True)) <= 8)  # fmt: skip
    assert found.served_per_s[0] == pytest.approx(tried)
    assert len(shapes) > 1


def test_more_cards_never_serve_less() -> None:
    served = [best(f"nvidia-h100-sxm:{cards}") for cards in (4, 8, 12, 16)]
    assert served == sorted(served)


def test_a_fleet_of_two_kinds_is_never_worse_than_its_better_half() -> None:
    both = best("nvidia-h100-sxm:8+amd-mi300x:8")
    halves = best("nvidia-h100-sxm:8"), best("amd-mi300x:8")
    assert both >= max(halves) * 0.999
    assert both == pytest.approx(sum(halves), rel=0.02)  # nothing crosses: no link is on record


def test_workers_apart_are_used_only_where_they_serve_more() -> None:
    assert best("nvidia-h100-sxm:16") >= best("nvidia-h100-sxm:16", Aim(apart=False)) * 0.999


def test_a_faster_fabric_never_hurts() -> None:
    slow, fast = (
        best("nvidia-h100-sxm:8+hygon-bw1000:8", Aim(fabric_bytes_per_s=width, unproven=True))
        for width in (1e9, 100e9)
    )
    assert slow <= fast * 1.0001


def test_a_slow_fabric_is_no_worse_than_none() -> None:
    alone = best("nvidia-h100-sxm:8+hygon-bw1000:8")
    slow = best("nvidia-h100-sxm:8+hygon-bw1000:8", Aim(fabric_bytes_per_s=1e9, unproven=True))
    assert slow >= alone * 0.999


def test_a_prompts_cache_is_at_its_decode_worker_inside_the_limit_and_its_links_are_not_overrun() -> None:  # fmt: skip
    question = ask(tpot_s=0.03)
    width = 2e9
    found = choose([question], islands(parse_fleet("nvidia-h100-sxm:8+nvidia-h20:8")), Aim(fabric_bytes_per_s=width, unproven=True))  # fmt: skip
    assert isinstance(found, Chosen)
    crossing = {key: rate for key, rate in found.flows_per_s.items() if key[1] != key[2]}
    assert crossing
    assert all(np.mean(seconds <= 2.0) >= 0.99 for seconds in found.flows_ttft_s.values())
    sent = sum(rate * cache_bytes(question, one.shape) for (_, start, _), rate in crossing.items() for one in found.used[:1])  # fmt: skip
    for role, end in (("prefill", 1), ("decode", 2)):
        names = {key[end] for key in crossing}
        ranks = sum(one.replicas * one.shape.ranks for one in found.used if one.shape.role == role and one.shape.island.name in names)  # fmt: skip
        assert sent <= 0.9 * width * ranks * 1.0001


def test_a_cache_crosses_only_where_a_source_says_so_or_it_is_asked_for() -> None:
    fleet = "nvidia-h20:8+huawei-ascend-910c:8"
    proven = chosen(fleet, (("qwen3-32b", None),), Aim(fabric_bytes_per_s=50e9))
    assert isinstance(proven, Chosen)
    assert any("cache from a (nvidia-h20) to b" in reason for reason in proven.refused_pairs)
    assert {(start, end) for _, start, end in proven.flows_per_s} <= {("a", "a"), ("b", "b")}
    unproven = chosen(fleet, (("qwen3-32b", None),), Aim(fabric_bytes_per_s=50e9, unproven=True))
    assert isinstance(unproven, Chosen)
    assert unproven.refused_pairs == ()
    assert unproven.served_per_s[0] >= proven.served_per_s[0] * 0.999


def test_the_fewest_cards_that_meet_two_demands_meet_them_and_one_less_does_not() -> None:
    asked = (("qwen3-32b", 3.0), ("llama-3.1-8b", 6.0))
    found = chosen("nvidia-h100-sxm:16", asked, Aim(objective="cards"))
    assert isinstance(found, Chosen)
    assert all(served >= rate for served, (_, rate) in zip(found.served_per_s, asked, strict=True) if rate)  # fmt: skip
    cards = sum(one.accelerators for one in found.used)
    assert found.value == pytest.approx(cards)
    fewer = chosen(f"nvidia-h100-sxm:{math.ceil(cards) - 1}", asked, Aim(objective="cards"))
    assert isinstance(fewer, Short) or fewer.value >= found.value


def test_a_spare_card_or_node_costs_cards_and_what_is_left_still_meets_the_demand() -> None:
    asked = (("qwen3-32b", 3.0),)
    plain, card, node = (
        chosen("nvidia-h100-sxm:32", asked, Aim(objective="cards", spare=spare))
        for spare in (None, "card", "node")
    )
    assert isinstance(plain, Chosen)
    assert isinstance(card, Chosen)
    assert isinstance(node, Chosen)
    assert plain.value < card.value <= node.value
    together_rates = [one for one in card.used if one.shape.role == "both"]
    rest = sum(one.replicas * one.shape.rate_per_s for one in together_rates)
    for one in together_rates:
        flows = sum(card.flows_per_s.values())
        assert rest + flows - one.shape.rate_per_s >= 3.0 - 1e-6


def test_what_is_left_of_any_pool_after_its_worst_loss_meets_the_demand() -> None:
    """Worked by hand from the answer: min(k, x) replicas of each shape in turn, where k of them share a node or a rack."""
    for spare, fleet in (
        ("node", "nvidia-h100-sxm:64"),
        ("rack", "nvidia-gb200-nvl72+nvidia-gb200-nvl72"),
    ):
        aim = Aim(objective="cards", spare=spare, apart=False)  # type: ignore[arg-type]
        found = chosen(fleet, (("qwen3-32b", 30.0),), aim)
        assert isinstance(found, Chosen)
        total = sum(one.replicas * one.shape.rate_per_s for one in found.used)
        for one in found.used:
            lost = min(one.replicas, math.ceil(domain_ranks(one.shape.island, spare) / one.shape.ranks))  # type: ignore[arg-type]  # fmt: skip
            left_per_s = total - lost * one.shape.rate_per_s
            assert 30.0 - 1e-6 <= left_per_s < 30.0 + one.shape.rate_per_s, "no more, no fewer"


@pytest.mark.parametrize(("cards", "rate_per_s"), [(8, 5.0), (16, 5.0), (24, 9.0)])
def test_a_node_takes_replicas_of_several_shapes_with_it(cards: int, rate_per_s: float) -> None:
    """Every choice of replicas that fit on one node of 8 is tried out."""
    aim = Aim(objective="cards", spare="node", apart=False)
    found = chosen(f"nvidia-h100-sxm:{cards}", (("qwen3-32b", rate_per_s),), aim)
    if cards == 8:
        assert isinstance(found, Short)
        return
    assert isinstance(found, Chosen)
    used = [(one.replicas, one.shape.ranks, one.shape.rate_per_s) for one in found.used]
    total = sum(count * rate for count, _, rate in used)
    gone = (
        sum(n * rate for n, (_, _, rate) in zip(lost, used, strict=True))
        for lost in itertools.product(*(range(count + 1) for count, _, _ in used))
        if sum(n * ranks for n, (_, ranks, _) in zip(lost, used, strict=True)) <= 8
    )

    assert total - max(gone) >= rate_per_s - 1e-6


def test_a_vendors_share_is_kept() -> None:
    aim = Aim(objective="cards", most_shares={"nvidia": 0.25})
    found = chosen("nvidia-h100-sxm:32+amd-mi300x:32", (("qwen3-32b", 8.0),), aim)
    assert isinstance(found, Chosen)
    cards = {one.shape.island.rank.chip: 0.0 for one in found.used}
    for one in found.used:
        cards[one.shape.island.rank.chip] += one.accelerators
    assert cards.get("nvidia-h100-sxm", 0.0) <= 0.25 * sum(cards.values()) + 1e-9


def test_a_demand_too_high_says_how_much_of_it_can_be_served() -> None:
    found = chosen("nvidia-h100-sxm:8", (("qwen3-32b", 100.0),), Aim(objective="cards"))
    assert isinstance(found, Short)
    assert 0 < found.fraction < 1
    assert found.served_per_s[0] == pytest.approx(100 * found.fraction, rel=0.05)


def test_a_model_that_fits_nowhere_says_why() -> None:
    found = chosen("nvidia-l20:1", (("deepseek-v3", 1.0),))
    assert isinstance(found, Short)
    assert found.without_shape == (0,)
    assert "do not fit in memory" in found.reasons[0]


def test_limits_that_nothing_keeps_name_the_nearest_layout_of_all_islands_and_by_how_much() -> None:
    question = ask(ttft_s=0.02, tpot_s=0.004)
    places = islands(parse_fleet("hygon-bw1000:8+nvidia-h100-sxm:8"))
    found = choose([question], places, Aim())
    assert isinstance(found, Short)
    chip, miss = found.nearest[0]
    assert chip == "nvidia-h100-sxm"
    assert miss.factor == pytest.approx(max(miss.ttft_s / 0.02, miss.tpot_s / 0.004))
    alone = [search(question, one, native_precision(question.model, one.rank)) for one in places]
    assert miss.factor == min(one.factor for each in alone for one in each.misses)


def test_prefill_is_slower_the_more_it_waits_and_decode_fuller_the_more_it_may_take() -> None:
    (island,) = islands(parse_fleet("nvidia-h100-sxm:8"))
    precision = native_precision(ask().model, island.rank)
    tight, loose = (
        apart(ask(ttft_s=limit, tpot_s=limit / 40), island, precision) for limit in (1.0, 4.0)
    )
    for role in ("prefill", "decode"):
        each = [max(one.rate_per_s / one.ranks for one in shapes if one.role == role) for shapes in (tight, loose)]  # fmt: skip
        assert each[0] <= each[1]
    assert all(one.ttft_s <= 1.0 and one.tpot_s <= 1.0 / 40 for one in tight)


def test_ten_times_the_cards_serve_no_more_each() -> None:
    """Wider groups and rounding are done with at a thousand cards; past that a card's share does not rise for free."""
    question = replace(ask("deepseek-v3"), input_tokens=4000, output_tokens=1000)
    served = []
    for cards in (1024, 10240):
        found = choose([question], islands(parse_fleet(f"nvidia-h200-sxm:{cards}")), Aim())
        assert isinstance(found, Chosen)
        served.append(found.served_per_s[0] / cards)
    assert served[1] == pytest.approx(served[0], rel=0.02)


def test_exchanges_with_experts_take_of_the_links_only_where_they_leave_the_node() -> None:
    question = ask("deepseek-v3")
    (island,) = islands(parse_fleet("nvidia-h200-sxm:32"))
    shapes = apart(question, island, native_precision(question.model, island.rank), [50e9])
    fractions = {one.ranks: exchanging_fraction(question, one) for one in shapes if one.role == "prefill"}  # fmt: skip
    assert all(0.05 < share < 0.9 for ranks, share in fractions.items() if ranks > 8)
    assert all(share == 0 for ranks, share in fractions.items() if ranks <= 8)
    assert any(ranks > 8 for ranks in fractions)


def test_a_large_fleets_shorter_way_ends_within_the_gap_it_states(monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The same fleet chosen both ways: exactly, and as those of more than a thousand accelerators are."""
    questions = [ask("qwen3-32b", 12.0), ask("llama-3.1-8b", 20.0)]
    places = islands(parse_fleet("nvidia-h100-sxm:32+amd-mi300x:32"))
    exact = choose(questions, places, Aim(objective="cards"))
    monkeypatch.setattr("polypod.plan.fleet._is_large", lambda _: True)
    monkeypatch.setattr("polypod.plan.fleet._uses_many", lambda *_: True)
    monkeypatch.setattr("polypod.plan.fleet._MOST_GAP", 1.0)
    short = choose(questions, places, Aim(objective="cards"))
    assert isinstance(exact, Chosen)
    assert isinstance(short, Chosen)
    assert not exact.by_duals
    assert short.by_duals
    assert all(one.shape.confirmed for one in short.used if one.shape.candidate)
    assert exact.value * (1 - 1e-3) <= short.value <= exact.value * (1 + short.gap + 1e-3)
    assert all(more <= short.value + 1e-9 for more in short.one_more.values())


def test_goodput_counts_what_is_asked_and_inside_the_limits_and_is_no_less_than_all_alike() -> None:
    asked = (("qwen3-32b", 30.0), ("llama-3.1-8b", 30.0))
    most, alike = (chosen("nvidia-h100-sxm:4", asked, Aim(objective=what)) for what in ("goodput", "throughput"))  # type: ignore[arg-type]  # fmt: skip
    assert isinstance(most, Chosen)
    assert isinstance(alike, Chosen)

    def counted(found: Chosen) -> float:
        return sum(min(rate, served) for served, (_, rate) in zip(found.served_per_s, asked, strict=True) if rate)  # fmt: skip

    assert most.value == pytest.approx(counted(most), rel=1e-4)
    assert counted(most) > 1.2 * counted(alike)  # the small model's requests are cheaper
    assert counted(most) < 60
    few = (("qwen3-32b", 8.0), ("llama-3.1-8b", 8.0))
    enough = chosen("nvidia-h100-sxm:32", few, Aim(objective="goodput"))
    assert isinstance(enough, Chosen)
    assert enough.value == pytest.approx(16, rel=1e-4)


def test_goodput_without_a_rate_is_throughput() -> None:
    assert best("nvidia-h100-sxm:8", Aim(objective="goodput")) == pytest.approx(best("nvidia-h100-sxm:8"), rel=1e-4)  # fmt: skip


def test_throughput_with_a_spare_node_counts_what_is_left_when_one_is_lost() -> None:
    aim = Aim(spare="node", apart=False)
    found = chosen("nvidia-h100-sxm:32", (("qwen3-32b", None),), aim)
    assert isinstance(found, Chosen)
    total = sum(one.replicas * one.shape.rate_per_s for one in found.used)
    lost = max(min(one.replicas, math.ceil(8 / one.shape.ranks)) * one.shape.rate_per_s for one in found.used)  # fmt: skip
    assert found.value == pytest.approx(total - lost, rel=1e-3)
    assert found.value < best("nvidia-h100-sxm:32", Aim(apart=False))


def test_a_rule_that_the_demand_contradicts_is_named_and_others_are_not() -> None:
    fleet, asked = "nvidia-h100-sxm:16+amd-mi300x:4", (("qwen3-32b", 10.0),)
    aim = Aim(objective="cards", most_shares={"nvidia": 0.2, "amd": 0.9})
    found = chosen(fleet, asked, aim)
    assert isinstance(found, Short)
    assert found.against == ("--max-share nvidia=20%",)
    free = chosen(fleet, asked, Aim(objective="cards"))
    assert isinstance(free, Chosen)
    hopeless = chosen(fleet, (("qwen3-32b", 1000.0),), aim)
    assert isinstance(hopeless, Short)
    assert hopeless.against == ()
    spare = chosen(
        "nvidia-h100-sxm:8", (("qwen3-32b", 15.0),), Aim(objective="cards", spare="node")
    )
    assert isinstance(spare, Short)
    assert spare.against == ("--spare node",)


def test_a_solver_out_of_time_without_a_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Solved(status="time limit", value=0.0, bound=1.0, x=np.array([]))
    monkeypatch.setattr("polypod.plan.fleet._solve", lambda *_: nothing)
    with pytest.raises(InfeasibleError, match=r"no plan at all in 0.05 s; .*--time-limit 1s"):
        choose([ask()], islands(parse_fleet("nvidia-h100-sxm:2")), Aim(time_limit_s=0.05))


def test_a_solver_out_of_time_gives_the_best_so_far_and_its_gap(monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A plan that serves nine tenths of the bound, stopped there."""
    solve = Milp.solve

    def stopped(milp: Milp, *, time_limit_s: float = 60.0, gap: float = 1e-4) -> Solved:
        found = solve(milp, time_limit_s=time_limit_s, gap=gap)
        return replace(found, status="time limit", bound=found.value / 0.9)

    monkeypatch.setattr(Milp, "solve", stopped)
    question = ask()
    places = islands(parse_fleet("nvidia-h100-sxm:2"))
    found = choose([question], places, Aim())
    assert isinstance(found, Chosen)
    assert (found.status, found.gap) == ("time limit", pytest.approx(1 / 9))
    answer = fleet_answer([question], places, found, parse_fleet("nvidia-h100-sxm:2"), [Slo()], "throughput", site())  # fmt: skip
    assert "at most 11.11% from the best there can be (time limit)" in " ".join(fleet_text(answer).split())  # fmt: skip
