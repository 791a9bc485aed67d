"""Where a request would finish first, and how measurement corrects that."""

from collections import Counter

import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.policy.actions import Dispatch
from polypod.policy.events import LoadReported, StepObserved

FLAT = StepTime(tokens=(0, 1000), seconds=(0.010, 0.110), kv_token_s=0.0, pair_s=0.0)


def observe(node, replica="a", *, prompt_tokens=0, sequences=1, kv_tokens=0, step_s, epoch=1):
    return node.tell(
        StepObserved(
            at_s=node.at, replica=replica, epoch=epoch, prompt_tokens=prompt_tokens,
            sequences=sequences, kv_tokens=kv_tokens, step_s=step_s,
        )
    )  # fmt: skip


def report(node, gateway, *, running=0, prompt_tokens=0, replica="a", epoch=1):
    return node.tell(
        LoadReported(
            at_s=node.at, replica=replica, epoch=epoch, gateway=gateway,
            running=running, queued_prompt_tokens=prompt_tokens,
        )
    )  # fmt: skip


def prediction(node, request, **over):
    """What is predicted of a request on replica a, which leaves at once."""
    node.arrive(request, only_replica="a", **over)
    told = node.last[0]
    node.gone(request)
    return told.predicted_first_token_s, told.predicted_token_s


def test_the_faster_of_two_idle_replicas_is_taken(new_node):
    node = new_node()
    node.up("slow", step_time=FLAT.scaled(2))
    node.up("fast")

    assert node.arrive(1) == ["Dispatch fast"]


def test_a_slow_idle_replica_beats_a_fast_one_with_a_long_way_to_go(new_node):
    node = new_node()
    node.up("slow", step_time=FLAT.scaled(1.5))
    node.up("fast")
    for request in range(3):
        node.arrive(request, input_tokens=3000, max_output_tokens=1, only_replica="fast")

    assert node.arrive(9, input_tokens=100, max_output_tokens=10) == ["Dispatch slow"]


def test_long_answers_go_where_tokens_are_fast_and_long_prompts_where_prompts_are(new_node):
    node = new_node()
    node.up(
        "bandwidth",
        step_time=StepTime(tokens=(1, 1001), seconds=(0.01, 1.01), kv_token_s=0, pair_s=0),
    )
    node.up(
        "compute",
        step_time=StepTime(tokens=(1, 1001), seconds=(0.05, 0.15), kv_token_s=0, pair_s=0),
    )

    assert node.arrive(1, input_tokens=50, max_output_tokens=90) == ["Dispatch bandwidth"]
    assert node.arrive(2, input_tokens=2000, max_output_tokens=2) == ["Dispatch compute"]


def test_a_prompt_over_the_chunk_budget_takes_several_steps(new_node):
    node = new_node()
    node.up("a", max_step_tokens=500)

    first_s, _ = prediction(node, 1, input_tokens=1100)
    assert first_s == pytest.approx(2 * 0.060 + 0.020)  # 500, 500, 100


def test_replicas_alike_but_for_the_chunk_budget_are_told_apart(new_node):
    node = new_node()
    node.up("b", max_step_tokens=1000)
    node.up("a", max_step_tokens=500)

    assert prediction(node, 1, input_tokens=1000)[0] == pytest.approx(2 * 0.060)
    for index in range(9):
        node.up(f"c{index}", max_step_tokens=500)
    assert len(node.policy._health.tables["m", "both"]._kinds) == 2


def test_the_cache_is_read_at_its_mean_length_while_decoding(new_node):
    node = new_node()
    step = StepTime(
        tokens=(0, 1000), seconds=(0.01, 0.11), kv_token_s=1e-5, pair_s=0, sequence_s=1e-4
    )
    node.up("a", step_time=step)

    _, token_s = prediction(node, 1, input_tokens=200, max_output_tokens=50)
    assert token_s == pytest.approx(0.0101 + 1e-4 + 1e-5 * (200 + 25))
    node.arrive(2, input_tokens=200, max_output_tokens=50)
    node.first(2)
    node.at = 1000.0  # the share of prompts is forgotten
    first_s, token_s = prediction(node, 3, input_tokens=200, max_output_tokens=50)
    assert token_s == pytest.approx(0.0102 + 2e-4 + 1e-5 * 2 * (200 + 25))
    attend_s = 1e-4 + 1e-5 * (200 + 25)  # of the other one, in every step of the prompt
    assert first_s == pytest.approx(0.030 + attend_s)
    first_s, _ = prediction(node, 4, input_tokens=1001)
    assert first_s == pytest.approx(0.110 + 0.0101 + 2 * attend_s)


def test_attention_over_the_prompt_counts_every_pair(new_node):
    node = new_node()
    step = StepTime(tokens=(0, 1000), seconds=(0.01, 0.11), kv_token_s=0, pair_s=1e-6)
    node.up("a", step_time=step)

    first_s, _ = prediction(node, 1, input_tokens=100)
    assert first_s == pytest.approx(0.020 + 1e-6 * 100 * 101 / 2)


def test_sequences_are_spread_over_data_parallel_ranks(new_node):
    node = new_node()
    step = StepTime(tokens=(0, 1000), seconds=(0.01, 0.11), kv_token_s=0, pair_s=0, data_ranks=4)
    node.up("a", step_time=step, max_sequences=64)
    for request in range(8):
        node.arrive(request)
        node.first(request)
    node.at = 1000.0

    first_s, token_s = prediction(node, 9, input_tokens=400)
    assert token_s == pytest.approx(0.01 + 1e-4 * (8 / 4 + 1))
    assert first_s == pytest.approx(0.050)
    node.arrive(10, input_tokens=400)
    assert prediction(node, 11, input_tokens=400)[0] == pytest.approx(0.050 + 0.050 / 4)


def test_prompts_that_had_their_first_token_are_waited_for_no_more(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1, input_tokens=400)
    node.arrive(2, input_tokens=900)
    node.at = 0.02
    assert prediction(node, 3)[0] == pytest.approx(0.05 + 0.10 - 0.02 + 0.02)
    node.first(1)
    node.at = 0.05
    assert prediction(node, 5)[0] == pytest.approx(0.10 - 0.03 + 0.02)
    node.first(2)
    assert prediction(node, 6)[0] == pytest.approx(0.02)


def test_an_overdue_prompt_is_expected_to_take_as_long_again(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1, input_tokens=400)
    node.at = 3.05  # 3 s overdue

    assert prediction(node, 2)[0] == pytest.approx(3.0 + 0.02)
    node.arrive(3)
    assert prediction(node, 4)[0] == pytest.approx(3.0 + 0.02 + 0.02)


def test_an_answer_in_one_piece_is_never_overdue(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1, input_tokens=400, is_streamed=False)
    node.at = 0.02
    assert prediction(node, 2)[0] == pytest.approx(0.03 + 0.02)
    node.at = 3.05
    assert prediction(node, 3)[0] == pytest.approx(0.02)
    node.arrive(4)
    node.at = 3.06
    assert prediction(node, 5)[0] == pytest.approx(0.01 + 0.02)
    node.finish(1)
    assert prediction(node, 6)[0] == pytest.approx(0.01 + 0.02)


def test_a_replica_that_hangs_gets_nothing_more(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1)
    node.up("b", step_time=FLAT.scaled(3))
    node.at = 10.0

    for request in range(2, 10):
        assert node.arrive(request) == ["Dispatch b"]


def test_full_caches_are_waited_for(new_node):
    node = new_node()
    node.up("a", kv_capacity_tokens=1000, context_tokens=1000, max_sequences=64)
    node.up("b", step_time=FLAT.scaled(1.2), max_sequences=64)
    for request in range(3):
        node.arrive(request, input_tokens=300, max_output_tokens=2, only_replica="a")
        node.first(request)
    node.at = 1000.0

    assert node.arrive(8, input_tokens=98, max_output_tokens=2) == ["Dispatch a"]
    assert node.arrive(9, input_tokens=98, max_output_tokens=50) == ["Dispatch b"]


def test_the_expected_answer_is_the_mean_of_those_that_ended_cut_at_the_limit(new_node):
    node = new_node(mean_output_tokens=100.0)
    node.up("a")
    service = node.policy._placement.services["m"]
    for request in range(200):
        node.arrive(request, max_output_tokens=None)
        node.finish(request, output_tokens=20)

    assert service.mean_output_tokens == pytest.approx(20.0, abs=0.1)
    node.arrive(900, max_output_tokens=None)
    arrived = node.log[-1][0]
    assert service.ask(arrived, 4096).output_tokens == service.mean_output_tokens
    node.arrive(901, max_output_tokens=5)
    assert service.ask(node.log[-1][0], 4096).output_tokens == 5


def test_one_long_answer_moves_the_mean_by_a_twentieth(new_node):
    node = new_node(mean_output_tokens=100.0)
    node.up("a")
    node.arrive(1, max_output_tokens=None)
    node.finish(1, output_tokens=300)

    assert node.policy._placement.services["m"].mean_output_tokens == pytest.approx(110.0)


def test_the_first_timed_decode_step_replaces_the_model_and_the_next_ones_blend(new_node):
    node = new_node()
    node.up("a")
    observe(node, sequences=10, step_s=3 * 0.011)
    assert prediction(node, 1) == (pytest.approx(0.02), pytest.approx(3 * 0.0101, rel=2e-3))
    observe(node, sequences=10, step_s=1 * 0.011)
    node.at = 1000.0

    assert prediction(node, 2)[1] == pytest.approx((3 + 0.2 * (1 - 3)) * 0.0101)


def test_a_step_with_prompt_tokens_corrects_prompts_only(new_node):
    node = new_node()
    node.up("a")
    observe(node, prompt_tokens=90, sequences=10, step_s=5 * 0.020)
    node.at = 1000.0

    first_s, token_s = prediction(node, 1, input_tokens=100)
    assert first_s == pytest.approx(5 * 0.020)
    assert token_s == pytest.approx(0.0101)


def test_the_waiting_of_prompts_is_corrected_too(new_node):
    node = new_node()
    node.up("a")
    observe(node, prompt_tokens=100, sequences=0, step_s=5 * 0.020)
    node.arrive(1, input_tokens=100)

    assert prediction(node, 2, input_tokens=100)[0] == pytest.approx(2 * 5 * 0.020)


@pytest.mark.parametrize(("ratio", "factor"), [(1000.0, 16.0), (0.001, 1 / 16)])
def test_corrections_stay_within_sixteen_times(new_node, ratio, factor):
    node = new_node()
    node.up("a")
    observe(node, sequences=10, step_s=ratio * 0.011)

    assert prediction(node, 1)[1] == pytest.approx(factor * 0.0101, rel=2e-3)


def test_what_was_corrected_can_be_asked_for_by_replica_and_phase(new_node):
    node = new_node()
    node.up("a")
    node.up("b")
    observe(node, prompt_tokens=100, sequences=0, step_s=5 * 0.020)
    observe(node, sequences=10, step_s=2 * 0.011)
    node.down("b")

    assert node.policy.corrections() == {
        ("a", "prefill"): pytest.approx(5.0, rel=0.05),
        ("a", "decode"): pytest.approx(2.0, rel=0.05),
    }


@pytest.mark.parametrize("step_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_step_time_that_cannot_be_changes_nothing(new_node, step_s):
    node = new_node()
    node.up("a")
    observe(node, sequences=10, step_s=step_s)

    assert prediction(node, 1)[1] == pytest.approx(0.0101)


def test_a_step_of_an_earlier_start_changes_nothing(new_node):
    node = new_node()
    node.up("a", epoch=2)
    observe(node, sequences=10, step_s=1.0, epoch=1)
    observe(node, "z", sequences=10, step_s=1.0)

    assert prediction(node, 1)[1] == pytest.approx(0.0101)


def test_a_restarted_replica_is_taken_as_the_model_says(new_node):
    node = new_node()
    node.up("a")
    observe(node, sequences=10, step_s=0.11)
    observe(node, prompt_tokens=100, sequences=0, step_s=0.2)
    report(node, "g", running=5, prompt_tokens=900)
    node.down("a")
    node.up("a", epoch=2)

    assert prediction(node, 1) == (pytest.approx(0.02), pytest.approx(0.0101))
    observe(node, sequences=10, step_s=0.022, epoch=2)  # replaces again
    node.at = 1000.0
    assert prediction(node, 2)[1] == pytest.approx(2 * 0.0101)
    report(node, "h", running=1, epoch=2)  # what `g` said is forgotten
    assert prediction(node, 3)[1] == pytest.approx(2 * 0.0102, rel=5e-3)


def test_steps_are_compared_per_data_parallel_rank(new_node):
    node = new_node()
    step = StepTime(
        tokens=(0, 1000),
        seconds=(0.01, 0.11),
        kv_token_s=1e-5,
        pair_s=1e-6,
        sequence_s=1e-4,
        data_ranks=4,
    )
    node.up("a", step_time=step)
    table = node.policy._health.tables["m", "both"]
    observe(node, sequences=40, kv_tokens=4000, step_s=2 * (0.011 + 1e-3 + 1e-2))
    assert table.decode_factor_R[0] == pytest.approx(2.0)
    observe(
        node, prompt_tokens=400, sequences=40, kv_tokens=4000,
        step_s=2 * (0.021 + 1e-3 + 1e-2 + 1e-6 * 100 * 101 / 2),
    )  # fmt: skip
    assert table.prompt_factor_R[0] == pytest.approx(2.0)


def test_a_request_that_saw_slow_tokens_pulls_gently(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1)
    predicted_s = node.last[0].predicted_token_s
    node.at = 1.0
    node.first(1)
    node.at = 1.0 + 2 * predicted_s
    node.finish(1, output_tokens=2)

    factor = node.policy._health.tables["m", "both"].decode_factor_R[0]
    assert factor == pytest.approx(1 + (2 - 1) / 11)


def test_many_requests_that_saw_slow_tokens_convince(new_node):
    node = new_node()
    node.up("a")
    for request in range(300):
        node.arrive(request)
        node.first(request)
        node.at += 49 * 0.0101 * 3
        node.finish(request, output_tokens=50)

    factor = node.policy._health.tables["m", "both"].decode_factor_R[0]
    assert factor == pytest.approx(3.0, rel=0.02)


def test_an_answer_of_one_token_or_in_one_piece_says_nothing_of_the_time_per_token(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1)
    node.first(1)
    node.at = 9.0
    node.finish(1, output_tokens=1)
    node.arrive(2)
    node.at = 99.0
    node.finish(2, output_tokens=50)

    assert node.policy._health.tables["m", "both"].decode_factor_R[0] == 1.0


def test_what_other_gateways_sent_counts_as_load(new_node):
    node = new_node()
    node.up("a", max_step_tokens=1000)
    report(node, "g", running=4, prompt_tokens=1000)
    report(node, "h", running=1)

    first_s, token_s = prediction(node, 1, input_tokens=100)
    assert first_s == pytest.approx(0.110 + 0.020)
    assert token_s == pytest.approx(0.01 + 1e-4 * 6)
    report(node, "g", running=0, prompt_tokens=0)  # in place of what it said before
    node.at = 1000.0
    assert prediction(node, 2, input_tokens=100) == (pytest.approx(0.02), pytest.approx(0.0102))


def test_what_others_sent_beyond_the_slots_is_waited_for(new_node):
    node = new_node()
    node.up("a", max_sequences=4)
    report(node, "g", running=5)

    first_s, token_s = prediction(node, 1, input_tokens=100, max_output_tokens=50)
    assert first_s == pytest.approx(0.020 + (2 / 4) * 50 * token_s)


def test_other_gateways_load_drives_requests_away(new_node):
    node = new_node()
    node.up("a")
    report(node, "g", running=6, prompt_tokens=2000)
    node.up("b", step_time=FLAT.scaled(1.1))

    assert node.arrive(1) == ["Dispatch b"]
    assert report(node, "g", epoch=9) == []  # another start: stale


def test_ties_fall_by_the_seed_over_all_the_alike(new_node):
    def places(seed):
        node = new_node(seed=seed)
        for replica in "abcd":
            node.up(replica)
        for request in range(200):
            node.arrive(request)
            node.gone(request)
            node.at += 1000.0
        return [
            action.replica
            for _, told in node.log
            for action in told
            if isinstance(action, Dispatch)
        ]

    assert places(1) == places(1)
    assert places(1) != places(2)
    assert min(Counter(places(3)).values()) > 25  # 50 each expected


def test_unequal_replicas_share_the_load_by_what_they_can_do(new_node):
    """Under a load that keeps all busy, twice as fast is twice as many."""
    node = new_node()
    for index in range(4):
        node.up(f"fast{index}", max_sequences=64)
        node.up(f"slow{index}", step_time=FLAT.scaled(2), max_sequences=64)
    for request in range(240):
        node.arrive(request, input_tokens=1000, max_output_tokens=1)

    counts = Counter(node.where(request)[:4] for request in range(240))
    assert counts["fast"] == pytest.approx(160, abs=4)
    assert counts["slow"] == pytest.approx(80, abs=4)


def test_rows_and_kinds_are_used_again(new_node):
    node = new_node()
    for start in range(1, 60):
        node.up("a", epoch=start, step_time=FLAT.scaled(start))
        node.up(f"b{start}", step_time=FLAT.scaled(start + 0.5))
        node.arrive(start)
        node.down(f"b{start}")
    table = node.policy._health.tables["m", "both"]

    assert len(table.up) == 4
    assert len(table._kinds) <= 3


def test_a_grown_table_predicts_as_a_small_one(new_node):
    large, small = new_node(), new_node()
    small.up("a")
    for index in range(100):
        large.up(f"r{index}", step_time=FLAT.scaled(5))
    large.up("a")

    assert large.arrive(1) == small.arrive(1) == ["Dispatch a"]
    assert large.last == small.last


def test_the_columns_agree_with_scalar_arithmetic_on_random_fleets(new_node):
    """The scoring of all rows at once, against the same formula for one replica at a time."""
    rng = np.random.default_rng(7)
    node = new_node(context_tokens=8192)
    for index in range(30):
        step = StepTime(
            tokens=(1, 64, 4096),
            seconds=tuple(np.sort(rng.uniform(0.005, 0.5, 3))),
            kv_token_s=rng.uniform(0, 1e-6),
            pair_s=rng.uniform(0, 1e-9),
            sequence_s=rng.uniform(0, 1e-4),
        )
        node.up(f"r{index}", step_time=step, max_sequences=400, kv_capacity_tokens=10**7)
    table = node.policy._health.tables["m", "both"]
    for request in range(300):
        node.at += float(rng.exponential(0.01))
        tokens, most = int(rng.integers(1, 3000)), int(rng.integers(1, 90))
        finishes = {
            up.replica: _finish_s(node, up, tokens, most) for up in table.up if up is not None
        }
        node.arrive(request, input_tokens=tokens, max_output_tokens=most)
        assert finishes[node.where(request)] == pytest.approx(min(finishes.values()), rel=1e-9)


def _finish_s(node, up, tokens, output):
    """The formula of the router's docstring, from the log alone."""
    step, now_s = up.step_time, node.at
    sent = [
        (event.at_s, event.input_tokens, action)
        for event, told in node.log
        for action in told
        if isinstance(action, Dispatch) and action.replica == up.replica
    ]
    end_s = share = kv_tokens = 0.0
    for at_s, prompt, action in sent:
        work_s = _prompt_s(step, prompt, up.max_step_tokens)
        backlog_s = abs(end_s - at_s) if end_s else 0.0
        end_s = at_s + backlog_s + work_s
        share += work_s / 10.0 * np.exp((at_s - now_s) / 10.0)
        most = next(
            event.max_output_tokens
            for event, _ in node.log
            if getattr(event, "request", None) == action.request
        )
        kv_tokens += prompt + most / 2
    wait_s = abs(end_s - now_s) if sent else 0.0
    attend_s = step.step_s(tokens=0, kv_tokens=kv_tokens, sequences=len(sent))
    prompt_s = _prompt_s(step, tokens, up.max_step_tokens)
    prompt_s += -(-tokens // up.max_step_tokens) * attend_s
    decode_s = step.step_s(
        tokens=len(sent) + 1, kv_tokens=kv_tokens + tokens + output / 2, sequences=len(sent) + 1
    )
    return wait_s + prompt_s + output * decode_s / (1 - min(share, 0.9))


def _prompt_s(step, tokens, budget):
    done, seconds = 0, 0.0
    while done < tokens:
        chunk = min(budget, tokens - done)
        seconds += step.prompt_s(chunk, cached=done)
        done += chunk
    return seconds
