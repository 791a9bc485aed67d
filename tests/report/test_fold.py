"""Columns from lines, against runs worked out by hand and against the lifecycle's laws."""

from typing import Any

import msgspec
import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.errors import FileError
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import ReplicaUp
from polypod.record import FaultNote, Step, encode
from polypod.report.fold import fold, read_outcomes
from polypod.report.outcomes import FINISHED, GONE, OPEN, ROLES, TRANSFER
from polypod.report.reading import BLOCK_BYTES, Reading, record_file
from polypod.simulate import Scenario, arrivals, play
from polypod.simulate.scenario import Fault
from polypod.workload.traffic import poisson


def crowded(seed: int = 1, requests: int = 400) -> list[Any]:
    """A run with a queue, a replica that dies and comes back, and retries."""
    step = StepTime(tokens=(1, 64, 1024), seconds=(0.01, 0.02, 0.1), kv_token_s=1e-8, pair_s=1e-10)
    ups = tuple(
        ReplicaUp(
            at_s=0.0, replica=f"r{n}", epoch=1, model="m", pool=f"p{n % 2}", role="both", step_time=step, context_tokens=9000,
            kv_capacity_tokens=20_000, max_sequences=8, max_step_tokens=1024,
        )
        for n in range(4)
    )  # fmt: skip
    faults = (
        Fault(at_s=3.0, replica="r0", what="down"),
        Fault(at_s=5.0, replica="r0", what="up"),
    )
    settings = PolicySettings(services=(ServiceSettings(model="m", context_tokens=9000),))
    trace = arrivals(poisson(40.0, requests, 500, 40, seed=seed), "m")
    return list(
        play(Scenario(replicas=ups, settings=settings, trace=trace, seed=seed, faults=faults)).lines
    )


def test_a_request_is_one_row_with_all_that_was_said_of_it(say):
    lines = [say.header(), say.up(), *say.whole(7, 1.0, tenant="t", priority=3)]
    outcomes = fold(lines)
    requests = outcomes.requests

    assert len(outcomes) == 1
    assert (requests.number[0], requests.arrival_s[0], requests.first_s[0]) == (7, 1.0, 1.5)
    assert (requests.end_s[0], requests.status[0], requests.output_tokens[0]) == (2.5, FINISHED, 11)
    assert outcomes.tenants[requests.tenant[0]] == "t"
    assert (requests.priority[0], requests.attempts[0], requests.input_tokens[0]) == (3, 1, 100)
    assert (requests.placed_s[0], requests.predicted_first_token_s[0]) == (1.0, 0.1)
    assert (outcomes.ttft_s[0], outcomes.e2e_s[0], outcomes.tpot_s[0]) == (0.5, 1.5, 0.1)


def test_rows_are_in_the_order_of_arrival_whatever_ends_first(say):
    lines = say.in_order(
        [say.header(), say.up(), *say.whole(5, 0.0, e2e_s=9.0), *say.whole(2, 1.0)]
    )
    lines += [say.arrived(9, 10.0), say.arrived(1, 11.0, say.reject(1))]

    requests = fold(lines).requests
    assert requests.number.tolist() == [5, 2, 9, 1]
    assert requests.status.tolist() == [FINISHED, FINISHED, OPEN, 429]
    assert np.isnan(requests.end_s[2])


def test_waiting_runs_from_the_arrival_and_from_a_retry_to_the_next_place(say):
    outcomes = fold(
        [
            say.header(),
            say.up("a"),
            say.arrived(1, 0.0),
            say.up("b", 2.0),
            say.finished(77, 3.0, 1, "b", say.place(1, "a")),
            say.down("a", 5.0, say.retry(1)),
            say.finished(78, 5.5, 1, "b", say.place(1, "b", attempt=2)),
            say.first(1, 6.0, "b", attempt=2),
            say.finished(1, 8.0, 5, "b", attempt=2),
        ]
    )
    waits, stays = outcomes.waits, outcomes.stays

    assert list(zip(waits.begin_s, waits.end_s, strict=True)) == [(0.0, 3.0), (5.0, 5.5)]
    assert list(zip(stays.begin_s, stays.end_s, strict=True)) == [(3.0, 5.0), (5.5, 8.0)]
    assert [outcomes.endings[n] for n in stays.ending] == ["replica_down", "finished"]
    assert stays.attempt.tolist() == [1, 2]
    assert (outcomes.requests.attempts[0], outcomes.retries) == (2, 1)
    assert [outcomes.replicas[n].name for n in stays.replica] == ["a", "b"]


def test_prefill_and_decode_apart_are_three_stays_with_the_wait_between(say):
    outcomes = fold([say.header(), say.up("a", role="prefill"), say.up("b", role="decode"), *say.apart(1, 10.0)])  # fmt: skip
    stays, waits = outcomes.stays, outcomes.waits

    assert [ROLES[n] for n in stays.role] == ["prefill", "transfer", "decode"]
    assert stays.begin_s.tolist() == [11.0, 13.5, 14.5]
    assert stays.end_s.tolist() == [13.0, 14.5, 18.75]
    assert list(zip(waits.begin_s, waits.end_s, strict=True)) == [(10.0, 11.0), (13.0, 13.5)]
    assert outcomes.replicas[outcomes.requests.prefill_replica[0]].name == "a"
    assert outcomes.replicas[outcomes.requests.decode_replica[0]].name == "b"
    assert outcomes.ttft_s[0] == 4.75


def test_what_is_open_at_the_end_stays_and_waits_until_then(say):
    outcomes = fold(
        [say.header(), say.up(), say.arrived(1, 0.0, say.place(1)), say.arrived(2, 1.0), say.gone(3, 4.0)]
    )  # fmt: skip

    assert outcomes.stays.end_s.tolist() == [4.0]
    assert outcomes.stays.ending.tolist() == [-1]
    assert outcomes.waits.end_s.tolist() == [4.0]


def test_a_client_that_left_is_gone_and_a_rejection_has_its_code(say):
    outcomes = fold(
        [say.header(), say.up(), say.arrived(1, 0.0), say.gone(1, 2.0), say.arrived(2, 3.0, say.reject(2, 503, "no_room"))]
    )  # fmt: skip

    assert outcomes.requests.status.tolist() == [GONE, 503]
    assert outcomes.codes[outcomes.requests.code[1]] == "no_room"
    assert outcomes.requests.code[0] == -1


def test_replicas_that_went_down_at_one_moment_are_one_fault_until_the_last_is_back(say):
    outcomes = fold(
        [
            say.header(),
            say.up("a"),
            say.up("b"),
            say.up("c"),
            say.down("a", 5.0, reason="rack"),
            say.down("b", 5.0, reason="rack"),
            say.down("c", 7.0),
            say.up("a", 8.0, epoch=2),
            say.up("b", 9.0, epoch=2),
        ]
    )

    rack, other = outcomes.faults
    assert (rack.replicas, rack.at_s, rack.repaired_s, rack.what) == (("a", "b"), 5.0, 9.0, "rack")
    assert (other.replicas, other.repaired_s) == (("c",), None)


def test_lines_of_faults_take_the_place_of_what_went_down(say):
    fault = FaultNote(
        id=1, what="crash", where="card a/1", replicas=("a",), at_s=1.0, noticed_s=2.0, repaired_s=3.0, back_s=4.0, by_spare=1,
    )  # fmt: skip
    later = FaultNote(id=2, what="hang", where="card a/2", replicas=(), at_s=50.0)
    outcomes = fold([say.header(), say.up(), say.down("a", 5.0), fault, later])

    (one,) = outcomes.faults  # the later one is not in this run
    assert (one.id, one.noticed_s, one.repaired_s, one.over_s) == ("1", 2.0, 3.0, 4.0)


def test_stays_and_waits_of_a_request_fill_its_time_without_a_gap():
    outcomes = fold(crowded())
    requests = outcomes.requests
    stays, waits = outcomes.stays, outcomes.waits
    n = len(outcomes)
    spent_s = np.bincount(stays.row, weights=stays.end_s - stays.begin_s, minlength=n)
    spent_s += np.bincount(waits.row, weights=waits.end_s - waits.begin_s, minlength=n)
    ended = np.isfinite(requests.end_s)

    assert n == 400
    assert len(waits.row) > 10
    assert outcomes.retries > 0
    np.testing.assert_allclose(spent_s[ended], (requests.end_s - requests.arrival_s)[ended], atol=1e-9)  # fmt: skip
    assert not np.any(stays.role == TRANSFER)


def test_no_replica_ever_has_more_requests_than_slots():
    outcomes = fold(crowded())
    for index, replica in enumerate(outcomes.replicas):
        here = outcomes.stays.replica == index
        begins, ends = np.sort(outcomes.stays.begin_s[here]), np.sort(outcomes.stays.end_s[here])
        there = np.searchsorted(begins, begins, side="right") - np.searchsorted(ends, begins, side="right")  # fmt: skip
        assert there.max() <= replica.slots


# ---- files


def written(tmp_path, lines, cut_bytes=0):
    path = tmp_path / "record.jsonl"
    raw = b"".join(encode(line) for line in lines)
    path.write_bytes(raw[: len(raw) - cut_bytes])
    return path


def test_a_file_gives_the_columns_that_its_lines_give(tmp_path):
    lines = crowded()
    from_file, from_lines = read_outcomes(written(tmp_path, lines)), fold(lines)

    for name in ("requests", "stays", "waits"):
        for column in getattr(from_file, name).__dataclass_fields__:
            np.testing.assert_array_equal(getattr(getattr(from_file, name), column), getattr(getattr(from_lines, name), column))  # fmt: skip
    assert from_file.note is None
    assert read_outcomes(tmp_path).requests.number.tolist() == from_file.requests.number.tolist()


def test_a_file_longer_than_a_block_is_read_whole(tmp_path):
    lines = crowded(requests=900)
    path = written(tmp_path, lines)

    assert path.stat().st_size > 2 * BLOCK_BYTES
    assert sum(len(block) for block in Reading(path)) == len(lines)


@pytest.mark.parametrize("cut_bytes", [1, 2, 40])
def test_a_last_line_that_was_cut_is_left_out_with_a_note(tmp_path, say, cut_bytes):
    lines = [say.header(), say.up(), *say.whole(1, 0.0)]
    outcomes = read_outcomes(written(tmp_path, lines, cut_bytes))

    if cut_bytes == 1:  # only the line's end is missing: the line is whole
        assert outcomes.note is None
        assert outcomes.requests.status[0] == FINISHED
    else:
        assert outcomes.note is not None
        assert outcomes.note.startswith("line 5 is cut short")
        assert outcomes.requests.status[0] == OPEN


def test_a_broken_line_elsewhere_is_named_by_its_number(tmp_path, say):
    lines = [say.header(), say.up(), *say.whole(1, 0.0)]
    path = tmp_path / "record.jsonl"
    raw = [encode(line) for line in lines]
    raw[2] = raw[2][:30] + b"\n"
    path.write_bytes(b"".join(raw))

    with pytest.raises(FileError, match=r"record\.jsonl: line 3: "):
        read_outcomes(path)


def test_a_broken_line_in_a_later_block_has_its_own_number(tmp_path):
    raw = [encode(line) for line in crowded(requests=900)]
    raw[-5] = b"{}\n"
    path = tmp_path / "record.jsonl"
    path.write_bytes(b"".join(raw))

    with pytest.raises(FileError, match=rf"line {len(raw) - 4}: "):
        read_outcomes(path)


@pytest.mark.parametrize(
    ("order", "problem"),
    [
        ([1], "line 1: a record begins with a header of format 1"),
        ([0, 1, 0], "line 3: a second header"),
        ([], "is empty"),
    ],
)
def test_a_record_has_one_header_and_it_comes_first(tmp_path, say, order, problem):
    lines = [say.header(), say.up()]
    with pytest.raises(FileError, match=problem):
        read_outcomes(written(tmp_path, [lines[n] for n in order]))


def test_a_header_that_was_cut_is_an_error(tmp_path, say):
    with pytest.raises(FileError, match="line 1: "):
        read_outcomes(written(tmp_path, [say.header()], 20))


def test_a_record_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(FileError, match=r"record\.jsonl: cannot be read: No such file"):
        read_outcomes(record_file(tmp_path))


def test_a_record_is_whole_when_its_end_is_measured(say):
    lines = [say.header(), say.up(), *say.whole(1, 0.0)]

    assert not fold(lines).is_whole
    assert fold([*lines, say.measure(1.5, "run", "end_s", 1.5)]).is_whole


def test_an_engines_own_count_of_the_prompt_is_taken(say):
    lines = [say.header(), say.up(), *say.whole(1, 0.0)]
    lines[-1] = Step(event=msgspec.structs.replace(lines[-1].event, input_tokens=123))

    assert fold(lines).requests.input_tokens[0] == 123


def test_a_start_said_twice_and_an_end_of_another_start_change_nothing(say):
    lines = [say.header(), say.up("a"), say.up("a", 5.0), say.down("a", 6.0, epoch=2), say.gone(9, 10.0)]  # fmt: skip
    outcomes = fold(lines)

    assert outcomes.replicas[0].up == ((0.0, 10.0),)
    assert outcomes.faults == ()


def test_nothing_is_no_rows():
    outcomes = fold([])

    assert (len(outcomes), outcomes.duration_s, outcomes.replicas) == (0, 0.0, ())
