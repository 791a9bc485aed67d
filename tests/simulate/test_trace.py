"""Traces as they are published, and as they are drawn."""

from pathlib import Path

import numpy as np
import pytest

from polypod.errors import FileError, InputError, TraceError
from polypod.simulate import Arrival, poisson_trace, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,0
2023-11-16 18:15:47.1805900,12,3
"""
MOONCAKE = """{"timestamp": 3000, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}

{"timestamp": 3500, "input_length": 10, "output_length": 1, "hash_ids": []}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace"
    path.write_text(text)
    return path


def test_an_azure_trace_is_read_in_order_of_time(tmp_path):
    trace = read_trace(written(tmp_path, AZURE), "m")

    assert [(one.input_tokens, one.output_tokens) for one in trace] == [
        (374, 44),
        (12, 3),
        (396, 1),
    ]
    assert [one.at_s for one in trace] == [0.0, pytest.approx(0.5), pytest.approx(4.314579)]
    assert {one.model for one in trace} == {"m"}


def test_a_mooncake_trace_counts_milliseconds(tmp_path):
    assert read_trace(written(tmp_path, MOONCAKE), "m") == (
        Arrival(at_s=0.0, model="m", input_tokens=6955, output_tokens=52),
        Arrival(at_s=0.5, model="m", input_tokens=10, output_tokens=1),
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (AZURE + "yesterday,3,4\n", 5),
        (AZURE + "2023-11-16 18:15:46,3\n", 5),
        (AZURE + "2023-11-16 18:15:46,3,4,5\n", 5),
        (AZURE + "2023-11-16 18:15:46,0,4\n", 5),
        (AZURE + "2023-11-16 18:15:46,5,-1\n", 5),
        (MOONCAKE + '{"timestamp": 3000}', 4),
        (MOONCAKE + "[1, 2]", 4),
        (MOONCAKE + "{", 4),
        ("hello\n", 1),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path, text, line):
    with pytest.raises(TraceError, match=f"line {line}: .*; nothing was played") as caught:
        read_trace(written(tmp_path, text), "m")
    assert caught.value.line == line


@pytest.mark.parametrize("text", ["", "TIMESTAMP,ContextTokens,GeneratedTokens\n"])
def test_a_trace_without_requests_is_refused(tmp_path, text):
    with pytest.raises(FileError, match="has no requests"):
        read_trace(written(tmp_path, text), "m")


def test_a_trace_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileError, match="cannot be read"):
        read_trace(tmp_path / "none", "m")


def test_poisson_gaps_have_the_mean_and_the_spread_of_their_rate():
    trace = poisson_trace("m", rate_per_s=20.0, lengths=(300, 40), requests=20_000, seed=1)
    gaps_s = np.diff([0.0, *(one.at_s for one in trace)])

    assert gaps_s.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps_s.std() == pytest.approx(1 / 20, rel=0.03)
    assert {(one.input_tokens, one.output_tokens) for one in trace} == {(300, 40)}


def test_poisson_arrivals_are_the_seeds():
    def drawn(seed):
        return poisson_trace("m", rate_per_s=1.0, lengths=(1, 1), requests=5, seed=seed)

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(InputError, match="positive rate"):
        poisson_trace("m", rate_per_s=rate, lengths=(1, 1), requests=1)
