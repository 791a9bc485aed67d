"""General trace files: columns by name, prefixes, sessions, tenants, models; and a word about the line where one is wrong."""

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypod.errors import FileError, TraceError
from polypod.workload.traffic import read_trace
from polypod.workload.traffic_files import NAMES, Reading
from polypod.workload.traffic_rows import reused_blocks

MOONCAKE = Path(__file__).parents[2] / "examples/traces/mooncake-conversation-300.jsonl"


def write(tmp_path: Path, text: str, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


FULL = """arrival_s,input_tokens,output_tokens,model,tenant,session,priority,prefix_hashes
10,1000,20,big,acme,s7,5,a b
10.5,1500,30,small,,s8,,
11.25,1600,40,big,acme,s7,-1,a;b|[c]
12,10,5,big,zeta,,0,[]
"""


def test_every_column_of_a_csv_is_read(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, FULL))

    assert trace.arrival_s.tolist() == [0, 0.5, 1.25, 2]
    assert [trace.models[at] for at in trace.model] == ["big", "small", "big", "big"]
    assert [trace.tenants[at] for at in trace.tenant] == ["acme", "", "acme", "zeta"]
    assert trace.session.tolist() == [0, 1, 0, -1]
    assert trace.priority.tolist() == [5, 0, -1, 0]
    assert trace.num_blocks.tolist() == [2, 0, 3, 0]
    assert trace.block_tokens == 512
    assert reused_blocks(trace).tolist() == [0, 0, 2, 0]


def test_sessions_are_numbered_as_they_begin_around_those_without(tmp_path: Path) -> None:
    rows = "".join(f"{at},1,1,{session}\n" for at, session in enumerate(["b", "", "a", "b", "", "c"]))  # fmt: skip
    trace = read_trace(write(tmp_path, "arrival_s,input_tokens,output_tokens,session\n" + rows))

    assert trace.session.tolist() == [0, -1, 1, 0, -1, 2]


def test_json_lines_say_the_same_as_csv(tmp_path: Path) -> None:
    lines = (
        '{"arrival_s": 10, "input_tokens": 1000, "output_tokens": 20, "model": "big", "tenant": "acme", "session": "s7", "priority": 5, "prefix_hashes": ["a", "b"]}\n'
        '{"arrival_s": 10.5, "input_tokens": 1500, "output_tokens": 30, "model": "small", "session": "s8"}\n'
        '{"arrival_s": 11.25, "input_tokens": 1600, "output_tokens": 40, "model": "big", "tenant": "acme", "session": "s7", "priority": -1, "prefix_hashes": ["a", "b", "c"]}\n'
        '{"arrival_s": 12, "input_tokens": 10, "output_tokens": 5, "model": "big", "tenant": "zeta", "session": null, "priority": 0}\n'
    )
    one = read_trace(write(tmp_path, FULL))
    two = read_trace(write(tmp_path, lines, "trace.jsonl"))

    assert same(one, two)


def same(one: Any, two: Any) -> bool:
    arrays = ("arrival_s", "input_tokens", "output_tokens", "model", "tenant", "session", "priority", "block_hashes", "block_starts")  # fmt: skip
    equal = all(np.array_equal(getattr(one, key), getattr(two, key)) for key in arrays)
    return equal and (one.models, one.tenants) == (two.models, two.tenants)


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    start = dt.datetime(2024, 5, 10, tzinfo=dt.UTC)
    after_s = [10, 10.5, 11.25, 12]
    table = pa.table(
        {
            "Timestamp": [start + dt.timedelta(seconds=after) for after in after_s],
            "Request tokens": [1000, 1500, 1600, 10],
            "Response tokens": [20, 30, 40, 5],
            "Model": ["big", "small", "big", "big"],
            "tenant": ["acme", None, "acme", "zeta"],
            "session": ["s7", "s8", "s7", None],
            "priority": [5, None, -1, 0],
            "hash_ids": [[0, 1], None, [0, 1, 2], []],
        }
    )
    path = tmp_path / "trace.parquet"
    parquet.write_table(table, path)

    assert same(read_trace(path), read_trace(write(tmp_path, FULL)))

    negative = table.set_column(1, "Request tokens", pa.array([1000, 1500, -1, 10]))
    parquet.write_table(negative, path)
    with pytest.raises(TraceError, match=r"line 3: Request tokens is -1, accepted is a whole"):
        read_trace(path)
    missing = table.set_column(1, "Request tokens", pa.array([1000, None, 1, 10]))
    parquet.write_table(missing, path)
    with pytest.raises(TraceError, match=r"line 2: Request tokens is None, accepted is a whole"):
        read_trace(path)
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(FileError, match=r"trace\.parquet: is not Parquet"):
        read_trace(path)


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        FileError, match=r"pip install 'polypod\[sweep\]', or write the trace as CSV"
    ):
        read_trace(write(tmp_path, "", "trace.parquet"))


@pytest.mark.parametrize("kind", ["arrival", "input_tokens", "output_tokens"])
def test_a_column_may_have_any_of_its_names_in_any_case(tmp_path: Path, kind: str) -> None:
    usual = {"arrival": "arrival_s", "input_tokens": "input_tokens", "output_tokens": "output_tokens"}  # fmt: skip
    for name in NAMES[kind]:
        called = usual | {kind: name.upper().replace("_", " ")}
        header = ",".join(called.values())
        trace = read_trace(write(tmp_path, f"{header}\n0,3,4\n2000,5,6\n"))
        unit_s = 1e-3 if name.endswith("_ms") else 1.0
        assert trace.arrival_s.tolist() == [0, 2000 * unit_s]
        assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([3, 5], [4, 6])


def test_dates_with_an_offset_are_moments(tmp_path: Path) -> None:
    rows = "2024-05-10 01:30:00.5+01:30,5,6\n2024-05-09T19:00:10-05:00,5,6\n"
    trace = read_trace(write(tmp_path, "time,input_tokens,output_tokens\n" + rows))

    assert trace.arrival_s.tolist() == [0, 9.5]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("1,5,5,big,\n0.5,5,5,big,\n", r"line 3: arrival_s is '0\.5', accepted is a time not before that of the line above; --sort"),
        ("1,-5,5,big,\n", r"line 2: input_tokens is '-5', accepted is a whole number of tokens, at least 1"),
        ("1,5,0,big,\n", r"line 2: output_tokens is '0'"),
        ("1,5,5,big,\n1,5,5,bigg,\n", r"line 3: model is 'bigg', accepted is a model that is served; nearest: big"),
        ("1,5,5,,\n", r"line 2: model is '', accepted is a model that is served; nearest: big, small"),
        ("1,512,5,big,1\n1,513,5,big,1 2\n1,1024,5,big,1 2 3\n", r"line 4: hash_ids has 3 hashes for a prompt of 1024 tokens, accepted are 2 at most, of 512 tokens each"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_before_anything_runs(tmp_path: Path, rows: str, says: str) -> None:
    header = "arrival_s,input_tokens,output_tokens,model,hash_ids\n"

    with pytest.raises(TraceError, match=says):
        read_trace(write(tmp_path, header + rows), Reading(models=("big", "small")))


@pytest.mark.parametrize("hashes", ["7", '{"a": 1}', "[1, 2.5]", '[1, "a"]', "[true]"])
def test_prefixes_that_are_none_are_named(tmp_path: Path, hashes: str) -> None:
    line = f'{{"timestamp": 0, "input_length": 900, "output_length": 1, "hash_ids": {hashes}}}\n'

    with pytest.raises(TraceError, match=r"line 1: hash_ids is .*accepted is a list of whole"):
        read_trace(write(tmp_path, line, "trace.jsonl"))


def test_a_priority_that_is_none_is_named(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens,priority\n0,1,1,3\n0,1,1,urgent\n"

    with pytest.raises(TraceError, match=r"line 3: priority is 'urgent', accepted is a whole"):
        read_trace(write(tmp_path, text))


def test_block_sizes_may_be_other_than_512(tmp_path: Path) -> None:
    text = "arrival_s,input_tokens,output_tokens,hash_ids\n0,40,1,1 2 3\n"
    trace = read_trace(write(tmp_path, text), Reading(block_tokens=16))

    assert (trace.block_tokens, trace.num_blocks.tolist()) == (16, [3])


def test_hashes_wider_than_the_array_stay_apart(tmp_path: Path) -> None:
    text = f'{{"timestamp": 0, "input_length": 900, "output_length": 1, "hash_ids": [{2**64 - 1}, {2**64 - 2}]}}\n'
    trace = read_trace(write(tmp_path, text, "trace.jsonl"))

    assert len(set(trace.block_hashes.tolist())) == 2


def test_mooncakes_excerpt_has_the_reuse_that_walking_its_chains_finds() -> None:
    """In the whole trace, 12,031 requests, it is 36.6 %; this is of the first 300."""
    trace = read_trace(MOONCAKE)
    seen: set[int] = set()
    known = []
    for line in MOONCAKE.read_text().splitlines():
        chain = json.loads(line)["hash_ids"]
        known.append(next((at for at, one in enumerate(chain) if one not in seen), len(chain)))
        seen.update(chain)

    assert (len(trace), trace.block_tokens) == (300, 512)
    assert reused_blocks(trace).tolist() == known
    assert sum(known) == 676


def test_mooncakes_sessions_are_the_prompts_that_share_more_than_the_system_prompt() -> None:
    trace = read_trace(MOONCAKE)
    chains = [json.loads(line)["hash_ids"] for line in MOONCAKE.read_text().splitlines()]

    assert {chain[0] for chain in chains} == {0}  # the system prompt
    by_first: dict[int, int] = {}
    expected = [by_first.setdefault(chain[1], len(by_first)) for chain in chains]
    assert trace.session.tolist() == expected
    assert len(by_first) == 279
