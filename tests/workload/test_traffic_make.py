"""Drawn traffic, against the laws of its processes."""

from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.errors import InputError
from polypod.workload.traffic import Traffic, blocks, poisson, trace_of
from polypod.workload.traffic_arrivals import DAY_S, Arrivals, Diurnal, Gamma, Poisson, times_s
from polypod.workload.traffic_lengths import Lengths, Lognormal, Resampled, Uniform
from polypod.workload.traffic_make import Stream, Synthetic, Turns
from polypod.workload.traffic_rows import Trace, reused_blocks
from polypod.workload.traffic_tenants import Tenant, even

ARRAYS = ("arrival_s", "input_tokens", "output_tokens", "model", "tenant", "session", "priority", "block_hashes", "block_starts")  # fmt: skip
CHAT = Stream(model="chat", rate_per_s=10.0, input_tokens=1000, output_tokens=200)
CODE = Stream(model="code", rate_per_s=30.0, input_tokens=2000, output_tokens=30)


def drawn(*streams: Stream, tenants: tuple[Tenant, ...] = (), **over: Any) -> Trace:
    source = Synthetic(streams=streams or (CHAT,), **({"requests": 20_000} | over))
    return trace_of(Traffic(source=source, tenants=tenants))


def same(one: Trace, two: Trace) -> bool:
    return all(np.array_equal(getattr(one, key), getattr(two, key)) for key in ARRAYS)


def test_the_plain_process_is_the_one_that_poisson_draws() -> None:
    ours, theirs = drawn(requests=40_000, seed=3), poisson(10.0, 40_000, 1000, 200, seed=3)

    assert ours.arrival_s == pytest.approx(theirs.arrival_s, rel=1e-12)
    assert np.array_equal(ours.input_tokens, theirs.input_tokens)


def test_poisson_counts_have_a_variance_equal_to_their_mean() -> None:
    counts = np.bincount(drawn(requests=400_000, seed=1).arrival_s.astype(int))[:-1]

    assert counts.mean() == pytest.approx(10, rel=0.01)
    assert counts.var() == pytest.approx(counts.mean(), rel=0.03)


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_gamma_gaps_have_the_mean_and_the_variation_asked_for(cv: float) -> None:
    gaps_s = np.diff(drawn(arrivals=Gamma(cv_ratio=cv), requests=400_000, seed=2).arrival_s)

    assert gaps_s.mean() == pytest.approx(0.1, rel=0.02)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.02)


HOURS = tuple(float(hour % 5) for hour in range(24))


@pytest.mark.parametrize(
    "day", [Diurnal(peak_ratio=3.0), Diurnal(peak_ratio=9.0, start_s=7e4), Diurnal(hours=HOURS)]
)
def test_a_days_mean_is_the_rate_and_every_hour_has_its_share(day: Diurnal) -> None:
    trace = drawn(arrivals=day, requests=None, duration_s=2 * DAY_S, seed=4)
    hourly = np.histogram(trace.arrival_s, np.arange(49) * 3600)[0].reshape(2, 24).sum(axis=0)
    expected = np.array(
        [day.relative(np.linspace(h, h + 1, 3600, endpoint=False) * 3600).mean() for h in range(24)]
    )

    assert len(trace) / (2 * DAY_S) == pytest.approx(10, rel=0.003)  # sigma 0.0008
    assert hourly / 72_000 == pytest.approx(expected, abs=0.03)  # sigma 0.004 at the mean
    assert expected.mean() == pytest.approx(1, rel=1e-3)


def test_the_peak_is_so_many_times_the_trough_and_at_its_hour() -> None:
    day = Diurnal(peak_ratio=3.0, peak_at_s=50_400.0, start_s=3600.0)
    at_s = np.arange(0, DAY_S, 60.0)
    rate = day.relative(at_s)

    assert rate.max() / rate.min() == pytest.approx(3, rel=1e-6)
    assert rate.max() == pytest.approx(day.highest, rel=1e-6)
    assert at_s[rate.argmax()] == 50_400 - 3600


def test_hours_are_relative_to_each_other_from_midnight() -> None:
    day = Diurnal(hours=(3.0, *[1.0] * 21, 0.0, 0.0), start_s=23 * 3600.0)

    assert day.relative(np.array([0.0, 3599.0, 3600.0, 7200.0])).tolist() == [0, 0, 3, 1]
    assert day.highest == 3


@given(
    arrivals=st.sampled_from([Poisson(), Gamma(cv_ratio=3.0), Diurnal(), Diurnal(hours=HOURS)]),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=20, deadline=None)
def test_times_ascend_across_pieces(arrivals: Arrivals, seed: int) -> None:
    pieces = list(islice(times_s(arrivals, 5.0, seed), 3))
    times = np.concatenate(pieces)

    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert (np.diff(times) > 0).mean() > 0.9


def test_lognormal_lengths_have_the_mean_and_the_variation_asked_for() -> None:
    trace = drawn(lengths=Lognormal(cv_ratio=1.5), requests=400_000)

    for tokens, mean in ((trace.input_tokens, 1000), (trace.output_tokens, 200)):
        assert tokens.mean() == pytest.approx(mean, rel=0.01)
        assert tokens.std() / tokens.mean() == pytest.approx(1.5, rel=0.03)
        assert tokens.min() >= 1
        # of a lognormal, the median is the mean over sqrt(1 + cv^2)
        assert np.median(tokens) == pytest.approx(mean / np.sqrt(3.25), rel=0.02)


def test_uniform_lengths_fill_their_ranges_to_both_ends() -> None:
    trace = drawn(lengths=Uniform(input=(5, 9), output=(1, 3)))

    assert set(trace.input_tokens.tolist()) == set(range(5, 10))
    assert set(trace.output_tokens.tolist()) == {1, 2, 3}


def test_resampled_lengths_are_pairs_of_the_trace_each_as_often() -> None:
    sample = Trace(name="s", arrival_s=np.zeros(4), input_tokens=np.array([1, 2, 3, 4]), output_tokens=np.array([10, 20, 30, 40]))  # fmt: skip
    trace = drawn(lengths=Resampled(trace=sample))

    assert np.array_equal(trace.input_tokens * 10, trace.output_tokens)
    assert np.bincount(trace.input_tokens)[1:] / len(trace) == pytest.approx(0.25, abs=0.02)


def test_services_share_the_requests_by_their_rates_and_keep_their_lengths() -> None:
    trace = drawn(CHAT, CODE, requests=100_000)

    assert trace.models == ("chat", "code")
    assert np.bincount(trace.model) / len(trace) == pytest.approx([0.25, 0.75], abs=0.01)
    assert len(trace) / trace.arrival_s[-1] == pytest.approx(40, rel=0.02)
    assert set(trace.input_tokens[trace.model == 1].tolist()) == {2000}


# ---- conversations

TURNS = Turns(mean_turns=5, gap_s=30.0, system_tokens=1100, block_tokens=256)


def test_a_prompt_is_all_that_was_said_and_the_new_question() -> None:
    trace = drawn(turns=TURNS, lengths=Lognormal(cv_ratio=0.5), requests=5000)
    order = np.lexsort((trace.arrival_s, trace.session))
    follows = np.diff(trace.session[order]) == 0
    before, after = order[:-1][follows], order[1:][follows]
    question = trace.input_tokens[after] - trace.input_tokens[before] - trace.output_tokens[before]

    assert question.min() >= 1
    assert question.mean() == pytest.approx(1000, rel=0.05)
    _, first = np.unique(trace.session, return_index=True)
    assert (trace.input_tokens[first] > 1100).all()


def test_a_turn_finds_all_full_blocks_of_the_turn_before() -> None:
    trace = drawn(CHAT, CODE, turns=TURNS, requests=5000)
    known = reused_blocks(trace)
    last: dict[int, int] = {}
    begun = set()
    for row, (session, model) in enumerate(zip(trace.session.tolist(), trace.model.tolist(), strict=True)):  # fmt: skip
        shared = 1100 // 256 if model in begun else 0
        assert known[row] == last.get(session, shared)
        assert trace.num_blocks[row] == trace.input_tokens[row] // 256
        last[session] = trace.input_tokens[row] // 256
        begun.add(model)


def test_a_conversation_begins_when_the_process_says_and_goes_on_after_it() -> None:
    trace = drawn(turns=TURNS, arrivals=Gamma(cv_ratio=2.0), requests=5000, seed=8)
    _, first = np.unique(trace.session, return_index=True)
    begins_s = next(times_s(Gamma(cv_ratio=2.0), 10.0 / 5, 8))[: len(first)]

    assert np.array_equal(trace.arrival_s[first], begins_s)


def test_conversations_keep_the_rate_of_requests_their_turns_and_their_gaps() -> None:
    trace = drawn(turns=TURNS, requests=None, duration_s=20_000.0)
    per_session = np.bincount(trace.session)
    order = np.lexsort((trace.arrival_s, trace.session))
    gaps_s = np.diff(trace.arrival_s[order])[np.diff(trace.session[order]) == 0]

    late = trace.arrival_s > 1000  # conversations of before second 0 are missing in the beginning
    assert late.sum() / 19_000 == pytest.approx(10, rel=0.03)
    assert per_session.mean() == pytest.approx(5, rel=0.03)
    assert gaps_s.mean() == pytest.approx(30, rel=0.03)
    assert gaps_s.std() == pytest.approx(30, rel=0.05)


# ---- the same however it is read

ANY: list[dict[str, Any]] = [
    {},
    {"arrivals": Gamma(cv_ratio=3.0), "lengths": Lognormal()},
    {"arrivals": Diurnal(), "requests": None, "duration_s": 3000.0},
    {"turns": TURNS, "lengths": Uniform(input=(10, 2000), output=(1, 300))},
]


@pytest.mark.parametrize("over", ANY)
@pytest.mark.parametrize("block", [999, 16_384, 65_536])
def test_the_blocks_size_changes_no_row(over: dict[str, Any], block: int) -> None:
    source = Synthetic(streams=(CHAT, CODE), **({"requests": 40_000} | over))
    traffic = Traffic(source=source, tenants=(Tenant(name="a", share=3), Tenant(name="b", share=1)))
    pieces = list(blocks(traffic, block))
    whole = trace_of(traffic)

    assert all(len(piece) == block for piece in pieces[:-1])
    for key in ARRAYS[:-1]:
        joined = np.concatenate([getattr(piece, key) for piece in pieces])
        assert np.array_equal(joined, getattr(whole, key))
    assert (np.diff(whole.arrival_s) >= 0).all()


@pytest.mark.parametrize("over", ANY)
def test_a_seed_is_one_traffic(over: dict[str, Any]) -> None:
    assert same(drawn(seed=1, **over), drawn(seed=1, **over))
    assert not same(drawn(seed=1, **over), drawn(seed=2, **over))


def test_other_lengths_leave_the_arrivals_as_they_are() -> None:
    assert np.array_equal(drawn().arrival_s, drawn(lengths=Lognormal()).arrival_s)


# ---- tenants


def test_tenants_share_the_requests_and_have_their_priorities() -> None:
    tenants = (Tenant(name="a", share=3, priority=7), Tenant(name="b", share=1))
    trace = drawn(tenants=tenants, requests=100_000)

    assert trace.tenants == ("a", "b")
    assert np.bincount(trace.tenant) / len(trace) == pytest.approx([0.75, 0.25], abs=0.01)
    assert trace.priority.tolist() == [(7, 0)[tenant] for tenant in trace.tenant.tolist()]


def test_a_session_is_of_one_tenant() -> None:
    tenants = (Tenant(name="a", share=1), Tenant(name="b", share=1))
    trace = drawn(turns=TURNS, tenants=tenants)
    pairs = np.unique(np.stack([trace.session, trace.tenant]), axis=1)

    assert pairs.shape[1] == len(np.unique(trace.session))


def test_even_numbers_are_even_and_of_their_seed() -> None:
    values = even(np.arange(100_000), seed=5)

    assert np.histogram(values, 10, (0, 1))[0] / 100_000 == pytest.approx(0.1, abs=0.005)
    assert np.corrcoef(values[:-1], values[1:])[0, 1] == pytest.approx(0, abs=0.01)
    assert not np.isin(values, even(np.arange(100_000), seed=6)).any()


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: Synthetic(streams=(CHAT,)), r"no end of its own; say how many requests, or for how long"),
        (lambda: drawn(requests=-1), r"requests=-1 makes no traffic"),
        (lambda: Stream(model="m", rate_per_s=0, input_tokens=1, output_tokens=1), r"rate_per_s=0 of m makes no traffic"),
        (lambda: Gamma(cv_ratio=0.0), r"gamma with cv=0 draws no gaps"),
        (lambda: Diurnal(peak_ratio=0.5), r"diurnal with peak=0\.5: the peak is so many times the trough; give 1 or more"),
        (lambda: Diurnal(hours=(1.0,)), r"diurnal with 1 hours .*give 24 rates"),
        (lambda: Lognormal(cv_ratio=-1.0), r"lognormal with cv=-1 draws no lengths"),
        (lambda: Uniform(input=(0, 5), output=(1, 1)), r"uniform input=0\.\.5 tokens is no range"),
        (lambda: Uniform(input=(5, 5), output=(3, 1)), r"uniform output=3\.\.1 tokens is no range"),
        (lambda: Turns(mean_turns=0), r"mean_turns=0 makes no conversations; give 1 or more"),
        (lambda: Tenant(name="a", share=0.0), r"tenant 'a' has the share 0"),
        (lambda: drawn(duration_s=1e-9, arrivals=Diurnal()), r"no request arrives in the time that was asked for"),
        (lambda: list(blocks(Traffic(source=Synthetic(streams=(CHAT,), requests=5)), 0)), r"block_requests=0 holds nothing"),
    ],
)  # fmt: skip
def test_what_makes_no_traffic_is_refused(made: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        made()


def test_lengths_of_every_kind_are_whole_tokens() -> None:
    kinds: list[Lengths] = [Lognormal(cv_ratio=5.0), Uniform(input=(1, 2), output=(1, 2))]
    for lengths in kinds:
        trace = drawn(lengths=lengths)
        assert trace.input_tokens.dtype == trace.output_tokens.dtype == np.int64
