"""More users, faster, longer: laws of what copies keep."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.errors import InputError
from polypod.workload.traffic import Traffic, blocks, read_trace, trace_of
from polypod.workload.traffic_rows import Trace, reused_blocks, starts_of
from polypod.workload.traffic_scale import Replay

EXAMPLES = Path(__file__).parents[2] / "examples/traces"
MOONCAKE = EXAMPLES / "mooncake-conversation-300.jsonl"
AZURE = EXAMPLES / "azure-conv-1000.csv"
ARRAYS = ("arrival_s", "input_tokens", "output_tokens", "model", "tenant", "session", "priority", "block_hashes", "block_starts")  # fmt: skip


def conversations(num: int = 400, seed: int = 0) -> Trace:
    """Sessions of 1 to 5 turns over about an hour, every prompt one block longer than the last, block 0 in all."""
    rng = np.random.default_rng(seed)
    rows = []
    for session in range(num):
        begin_s, block = rng.uniform(0, 3600), 1 + session * 10
        for turn in range(rng.integers(1, 6)):
            begin_s += rng.uniform(5, 60) if turn else 0
            rows.append((begin_s, session, [0, *range(block, block + turn + 1)]))
    rows.sort()
    chains = [chain for _, _, chain in rows]
    return Trace(
        name="conversations",
        arrival_s=np.array([at for at, _, _ in rows]) - rows[0][0],
        input_tokens=np.array([512 * len(chain) for chain in chains]),
        output_tokens=np.arange(1, len(rows) + 1),
        session=np.array([session for _, session, _ in rows]),
        block_hashes=np.array([one for chain in chains for one in chain]),
        block_starts=starts_of(np.array([len(chain) for chain in chains])),
        block_tokens=512,
    )


TALKS = conversations()


def played(trace: Trace = TALKS, **over: Any) -> Trace:
    return trace_of(Traffic(source=Replay(trace=trace, **over)))


def same(one: Trace, two: Trace) -> bool:
    return all(np.array_equal(getattr(one, key), getattr(two, key)) for key in ARRAYS)


def by_session(trace: Trace) -> dict[int, list[tuple[float, int]]]:
    """Arrivals and answers of each session, from its first request on."""
    found: dict[int, list[tuple[float, int]]] = {}
    for at_s, session, answer in zip(trace.arrival_s.tolist(), trace.session.tolist(), trace.output_tokens.tolist(), strict=True):  # fmt: skip
        found.setdefault(session, []).append((at_s, answer))
    return found


def shapes(trace: Trace) -> Counter[tuple[Any, ...]]:
    """Sessions as gaps and answers."""
    return Counter(
        tuple((round(at_s - turns[0][0], 6), answer) for at_s, answer in turns)
        for turns in by_session(trace).values()
    )


def test_once_is_the_trace_itself() -> None:
    assert same(played(), TALKS)


@pytest.mark.parametrize("scale", [2, 7])
def test_every_copy_has_every_session_with_its_order_and_gaps(scale: int) -> None:
    more = played(scale=float(scale), seed=5)

    assert len(more) == scale * len(TALKS)
    assert shapes(more) == Counter({shape: scale * n for shape, n in shapes(TALKS).items()})
    assert (np.diff(more.arrival_s) >= 0).all()
    assert more.arrival_s[0] == 0


def test_hits_inside_a_copy_are_the_originals_and_across_copies_there_are_none() -> None:
    more = played(scale=5.0, seed=1)
    reuse = int(reused_blocks(TALKS).sum())
    num_sessions = len(np.unique(TALKS.session))
    copy = more.session // num_sessions

    assert 0 < reuse < len(TALKS.block_hashes)
    assert reused_blocks(more).sum() == 5 * reuse
    owned = [set(more.take(np.flatnonzero(copy == n)).block_hashes.tolist()) for n in range(5)]
    assert sum(map(len, owned)) == len(set.union(*owned))
    for n in range(5):
        assert reused_blocks(more.take(np.flatnonzero(copy == n))).sum() == reuse


def test_every_window_has_the_scale_times_the_beginnings_of_the_trace() -> None:
    """3,600 s in 24 windows: what is slower than one is kept to the session."""
    begins_s = np.array([turns[0][0] for turns in by_session(TALKS).values()])
    more_s = np.array([turns[0][0] for turns in by_session(played(scale=10.0, seed=2)).values()])
    edges_s = np.linspace(0, Replay(trace=TALKS).period_s, 25)

    was, now = (np.histogram(times_s, edges_s)[0] for times_s in (begins_s, more_s))
    assert now.tolist() == (10 * was).tolist()
    assert (was > 0).all()


def test_copies_do_not_act_in_the_same_second_unless_asked_to() -> None:
    apart, in_step = (played(scale=4.0, window_s=window_s) for window_s in (None, 0.0))

    assert len(np.unique(apart.arrival_s)) == len(apart)
    assert np.array_equal(np.repeat(TALKS.arrival_s, 4), in_step.arrival_s)


def test_the_mean_rate_of_a_real_trace_is_the_scale_times_its_own() -> None:
    azure = read_trace(AZURE)
    more = played(azure, scale=40.0, seed=3)
    period_s = Replay(trace=azure).period_s
    edges_s = np.linspace(0, period_s, 25)

    assert len(more) / period_s == pytest.approx(40 * len(azure) / period_s)
    was, now = (np.histogram(trace.arrival_s, edges_s)[0] for trace in (azure, more))
    assert now.tolist() == (40 * was).tolist()
    one_second = [np.bincount(trace.arrival_s.astype(int)) for trace in (azure, more)]
    burstiness = [counts.std() / counts.mean() for counts in one_second]
    assert burstiness[1] < burstiness[0]  # many users are smoother than few


def test_half_keeps_a_seeded_half_of_the_sessions_whole() -> None:
    half = played(scale=0.5, seed=4)
    sessions = len(by_session(TALKS))

    assert len(by_session(half)) == sessions // 2
    assert not shapes(half) - shapes(TALKS)
    assert same(half, played(scale=0.5, seed=4))
    assert not same(half, played(scale=0.5, seed=5))


def test_two_and_a_half_is_two_copies_and_half_the_sessions() -> None:
    more = shapes(played(scale=2.5))
    twice = Counter({shape: 2 * n for shape, n in shapes(TALKS).items()})

    assert sum((more - twice).values()) == len(by_session(TALKS)) // 2
    assert not twice - more


def test_requests_without_a_session_are_kept_one_by_one() -> None:
    azure = read_trace(AZURE)

    assert len(played(azure, scale=0.25)) == 250
    assert set(played(azure, scale=3.0).session.tolist()) == {-1}


def test_a_rate_of_two_is_the_same_in_half_the_time() -> None:
    fast = played(rate_ratio=2.0)

    assert np.array_equal(fast.arrival_s, TALKS.arrival_s / 2)
    assert np.array_equal(fast.block_hashes, TALKS.block_hashes)


def test_a_shorter_duration_cuts_and_a_longer_one_begins_again_with_fresh_prefixes() -> None:
    period_s = Replay(trace=TALKS).period_s
    short, long = played(duration_s=600.0), played(duration_s=3.5 * period_s)

    assert short.arrival_s.tolist() == TALKS.arrival_s[TALKS.arrival_s < 600].tolist()
    assert long.arrival_s[-1] < 3.5 * period_s
    first = long.arrival_s < period_s
    again = (long.arrival_s >= period_s) & (long.arrival_s < 2 * period_s)
    assert long.arrival_s[again] - period_s == pytest.approx(long.arrival_s[first])
    hashes = [set(long.take(np.flatnonzero(rows)).block_hashes.tolist()) for rows in (first, again)]
    assert not hashes[0] & hashes[1]


def test_a_request_at_the_very_end_is_left_out() -> None:
    at_s = float(TALKS.arrival_s[100])

    assert played(duration_s=at_s).arrival_s.tolist() == TALKS.arrival_s[:100].tolist()


def test_copies_of_every_round_are_fresh() -> None:
    """Three copies, begun three times: nine times the reuse, and nine times the sessions."""
    more = played(scale=3.0, requests=9 * len(TALKS), seed=6)
    whole = by_session(TALKS)

    assert len(by_session(more)) > 8.5 * len(
        whole
    )  # some have begun a fourth time in place of late turns
    assert max(map(len, by_session(more).values())) <= max(map(len, whole.values()))
    assert reused_blocks(more).sum() == pytest.approx(9 * reused_blocks(TALKS).sum(), rel=0.02)


def test_a_number_of_requests_cuts_or_begins_again() -> None:
    assert np.array_equal(played(requests=100).arrival_s, TALKS.arrival_s[:100])
    assert len(played(requests=3 * len(TALKS) + 1)) == 3 * len(TALKS) + 1
    assert len(played(requests=100, duration_s=1.0, scale=3.0)) < 100


@settings(max_examples=25, deadline=None)
@given(
    scale=st.sampled_from([0.3, 1.0, 2.5, 6.0]),
    rounds=st.sampled_from([0.4, 1.0, 2.2]),
    block=st.sampled_from([1, 7, 100, 5000]),
)
def test_the_blocks_size_changes_no_row(scale: float, rounds: float, block: int) -> None:
    short = conversations(30, seed=7)
    replay = Replay(trace=short, scale=scale, duration_s=rounds * 3600.0, seed=9)
    pieces = list(blocks(Traffic(source=replay), block))
    whole = trace_of(Traffic(source=replay))

    assert all(len(piece) == block for piece in pieces[:-1])
    rows = np.concatenate([piece.arrival_s for piece in pieces])
    hashes = np.concatenate([piece.block_hashes for piece in pieces])
    sessions = np.concatenate([piece.session for piece in pieces])
    assert np.array_equal(rows, whole.arrival_s)
    assert np.array_equal(hashes, whole.block_hashes)
    assert np.array_equal(sessions, whole.session)
    assert (np.diff(rows) >= 0).all()


def test_mooncakes_excerpt_forty_times_has_forty_times_its_reuse() -> None:
    trace = read_trace(MOONCAKE)
    more = played(trace, scale=40.0, seed=11)

    assert len(more) == 40 * 300
    assert reused_blocks(more).sum() == 40 * 676


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"scale": 0.0}, r"scale=0\.0 plays nothing"),
        ({"rate_ratio": -1.0}, r"rate_ratio=-1\.0 plays nothing"),
        ({"duration_s": float("inf")}, r"duration_s=inf plays nothing"),
        ({"requests": 0}, r"requests=0 plays nothing"),
        ({"seed": -1}, r"seed=-1 is no seed"),
        ({"trace": TALKS.take(np.arange(0))}, r"conversations holds no request"),
        ({"window_s": 1e9}, r"window_s=1e\+09 is not within the trace's period; give 0 to 3"),
        ({"scale": 1e-4}, r"scale=0\.0001 keeps none of the 400 sessions of conversations; give 0\.0025 or more"),
    ],
)  # fmt: skip
def test_what_plays_nothing_is_refused(over: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        played(**over)
