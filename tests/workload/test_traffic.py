import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.errors import FileError, InputError, TraceError
from polypod.workload.traffic import poisson, read_trace
from polypod.workload.traffic_files import Reading

EXCERPT = Path(__file__).parents[2] / "examples/traces/azure-conv-1000.csv"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def write(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_the_shipped_excerpt_reads_as_its_first_and_last_lines_say():
    trace = read_trace(EXCERPT)

    assert len(trace) == 1000
    assert trace.name == "azure-conv-1000.csv"
    assert (trace.input_tokens[0], trace.output_tokens[0]) == (374, 44)
    assert (trace.input_tokens[-1], trace.output_tokens[-1]) == (309, 18)
    # 18:15:46.6805900, 18:15:50.9951690
    assert trace.arrival_s[:2] == pytest.approx([0, 4.314579], abs=1e-9)
    assert trace.sha256 == hashlib.sha256(EXCERPT.read_bytes()).hexdigest()


def test_the_seventh_decimal_of_a_timestamp_is_kept(tmp_path: Path):
    path = write(
        tmp_path, HEADER + "2023-11-16 18:15:46.0000001,1,1\n2023-11-16 18:15:46.0000004,1,1\n"
    )

    assert read_trace(path).arrival_s[1] == pytest.approx(3e-7, rel=1e-6)


@pytest.mark.parametrize("mark", ["", "Z", "+00:00"])
def test_universal_time_may_be_marked(tmp_path: Path, mark: str):
    rows = f"2024-05-10 00:00:00.009930{mark},5,6\n2024-05-10 00:01:00.009930{mark},5,6\n"

    assert read_trace(write(tmp_path, HEADER + rows)).arrival_s.tolist() == [0, 60]


def test_rows_in_any_order_are_sorted_where_that_is_asked_and_equal_times_keep_theirs(
    tmp_path: Path,
):
    path = write(tmp_path, HEADER + "7,1,1\n5,2,1\n7,3,1\n5.5,4,1\n")
    trace = read_trace(path, Reading(is_sorted=False))

    assert trace.arrival_s.tolist() == [0, 0.5, 2, 2]
    assert trace.input_tokens.tolist() == [2, 4, 1, 3]


def test_columns_are_found_by_name(tmp_path: Path):
    text = "GeneratedTokens,who,TIMESTAMP,ContextTokens\n3,a,0,7\n"
    trace = read_trace(write(tmp_path, text))

    assert (trace.input_tokens[0], trace.output_tokens[0]) == (7, 3)


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_are_nothing(tmp_path: Path):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (HEADER + "1,2,3\n\n2,2,3\n").replace("\n", "\r\n").encode())

    assert len(read_trace(path)) == 2


@pytest.mark.parametrize(
    ("rows", "line", "says"),
    [
        ("1,2,3\n1,2\n", 3, "has 2 fields, the header has 3"),
        ("1,2,3\n1,2,3,4\n", 3, "has 4 fields, the header has 3"),
        ("1,0,3\n", 2, "ContextTokens is '0', accepted is a whole number of tokens, at least 1"),
        ("1,2,-3\n", 2, "GeneratedTokens is '-3'"),
        ("1,2,3\n\n1,2.5,3\n", 4, "ContextTokens is '2.5'"),
        ("1,,3\n", 2, "ContextTokens is ''"),
        ("1,99999999999999999999,3\n", 2, "ContextTokens is '99999999999999999999'"),
        ("2023-11-16 18:15:46.68,2,3\nyesterday,2,3\n", 3, "TIMESTAMP is 'yesterday', accepted is a date and time"),
        ("2023-11-16 18:15:46.68,2,3\nNaT,2,3\n", 3, "TIMESTAMP is 'NaT'"),
        ("1,2,3\n-1,2,3\n", 3, "TIMESTAMP is '-1', accepted is a time from 0 on"),
        ("1,2,3\nnan,2,3\n", 3, "TIMESTAMP is 'nan'"),
        ("1,2,3\n3,2,3\n2,2,3\n", 4, "TIMESTAMP is '2', accepted is a time not before that of the line above; --sort"),
    ],
)  # fmt: skip
def test_a_broken_line_is_named_and_nothing_is_played(
    tmp_path: Path, rows: str, line: int, says: str
):
    with pytest.raises(TraceError) as caught:
        read_trace(write(tmp_path, HEADER + rows))

    assert caught.value.line == line
    assert f"trace.csv: line {line}: {says}" in str(caught.value)
    assert str(caught.value).endswith("nothing was played")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"has no column of arrival \(one of arrival_s, .*\); found none"),
        (HEADER, "holds no request"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "has no column of output tokens .* found TIMESTAMP, ContextTokens"),
    ],
)  # fmt: skip
def test_a_file_without_requests_or_columns_is_refused(tmp_path: Path, text: str, says: str):
    with pytest.raises(FileError, match=says):
        read_trace(write(tmp_path, text))


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path: Path):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00")

    for one in (path, tmp_path / "nowhere.csv"):
        with pytest.raises(FileError, match="cannot be read"):
            read_trace(one)


def test_mooncakes_lines_are_read_in_milliseconds(tmp_path: Path):
    text = (
        '{"timestamp": 500, "input_length": 6, "output_length": 1, "hash_ids": []}\n'
        '{"timestamp": 3000, "input_length": 7, "output_length": 2, "hash_ids": [1]}\n'
    )
    trace = read_trace(write(tmp_path, text, "trace.jsonl"))

    assert trace.arrival_s.tolist() == [0, 2.5]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([6, 7], [1, 2])


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ("{", "line 3: is not JSON"),
        ("[1]", "line 3: is no JSON object"),
        ('{"timestamp": 1, "input_length": 2}', "line 3: lacks output_length"),
        ('{"timestamp": 1, "input_length": 1.5, "output_length": 2}', "line 3: input_length is 1.5"),
        ('{"timestamp": 1, "input_length": true, "output_length": 2}', "line 3: input_length is True"),
        ('{"timestamp": null, "input_length": 1, "output_length": 2}', "line 3: timestamp is None"),
    ],
)  # fmt: skip
def test_a_broken_json_line_is_named(tmp_path: Path, second: str, says: str):
    text = '{"timestamp": 0, "input_length": 1, "output_length": 1}\n\n' + second + "\n"

    with pytest.raises(TraceError, match=says):
        read_trace(write(tmp_path, text, "trace.jsonl"))


@given(rate=st.floats(0.01, 1000), count=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_drawn_arrivals_start_at_zero_increase_and_repeat_by_seed(
    rate: float, count: int, seed: int
):
    one, again = (poisson(rate, count, 10, 20, seed) for _ in range(2))

    assert len(one) == count
    assert one.arrival_s[0] == 0
    assert (np.diff(one.arrival_s) >= 0).all()
    assert np.array_equal(one.arrival_s, again.arrival_s)
    assert set(one.input_tokens) == {10}
    assert set(one.output_tokens) == {20}


def test_drawn_gaps_have_the_mean_and_the_spread_of_a_poisson_process():
    gaps_s = np.diff(poisson(4.0, 20_001, 1, 1, seed=3).arrival_s)

    assert gaps_s.mean() == pytest.approx(0.25, rel=0.02)
    assert gaps_s.std() == pytest.approx(0.25, rel=0.03)


def test_another_seed_draws_other_arrivals():
    assert poisson(1, 10, 1, 1, seed=1).arrival_s[1] != poisson(1, 10, 1, 1, seed=2).arrival_s[1]


@pytest.mark.parametrize("changed", [{"rate_per_s": 0}, {"count": 0}, {"input_tokens": -1}, {"rate_per_s": float("inf")}])  # fmt: skip
def test_traffic_that_cannot_be_is_refused(changed: dict[str, float]):
    given = {"rate_per_s": 1.0, "count": 1, "input_tokens": 1, "output_tokens": 1, "seed": 0}

    with pytest.raises(InputError, match=rf"{next(iter(changed))}=.* makes no traffic"):
        poisson(**{**given, **changed})
