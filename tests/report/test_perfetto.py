"""Traces for Perfetto, against a check written from the published format, and against the record they come from.

The referee here is the Trace Event Format as https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU describes it; Perfetto's own reader is a
binary that has to be downloaded, so it is not asked. Two readers that Node runs are, by `make trace-readers`.
"""

import gzip
import io
import json
import math
from collections import Counter, defaultdict
from typing import Any

import pytest

from polypod.errors import FileError
from polypod.report.fold import fold
from polypod.report.perfetto import save_perfetto, write_perfetto

REQUIRED = {
    "M": {"pid", "name", "cat", "args"},
    "b": {"pid", "tid", "name", "cat", "id", "ts"},
    "e": {"pid", "tid", "name", "cat", "id", "ts"},
    "C": {"pid", "name", "cat", "ts", "args"},
    "i": {"pid", "tid", "name", "cat", "ts", "s"},
}
METADATA = {"process_name": "name", "process_sort_index": "sort_index"}


def check(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold a trace against the format; returns its events."""
    assert set(trace) <= {"traceEvents", "displayTimeUnit", "otherData", "metadata"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events = trace["traceEvents"]
    named, opened = set(), defaultdict(list)
    for event in events:
        assert event["ph"] in REQUIRED, event
        assert set(event) >= REQUIRED[event["ph"]], event
        assert isinstance(event["pid"], int)
        assert "ts" not in event or (math.isfinite(event["ts"]) and event["ts"] >= 0), event
        if event["ph"] == "M":
            assert METADATA[event["name"]] in event["args"]
            named.add(event["pid"])
        elif event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(value, float | int) for value in event["args"].values())
        elif event["ph"] == "i":
            assert event["s"] in ("g", "p", "t")
        else:
            key = (event["pid"], event["cat"], event["id"], event["name"])
            opened[key].append((event["ph"], event["ts"]))
    for key, pair in opened.items():
        assert [ph for ph, _ in pair] == ["b", "e"], key
        assert pair[0][1] <= pair[1][1], key
    assert {event["pid"] for event in events} == named
    check_flows([event for event in events if "bind_id" in event])
    return events


def check_flows(events: list[dict[str, Any]]) -> None:
    """A flow goes out of its first slice, in and out of those between, into the last; later slices do not begin earlier."""
    flows = defaultdict(list)
    for event in events:
        assert event["ph"] == "b"
        flows[event["bind_id"]].append(event)
    for steps in flows.values():
        assert len(steps) > 1
        ways = [(step.get("flow_in", False), step.get("flow_out", False)) for step in steps]
        assert ways == [(False, True), *[(True, True)] * (len(steps) - 2), (True, False)]
        assert [step["ts"] for step in steps] == sorted(step["ts"] for step in steps)


def traced(outcomes, **over):
    file = io.BytesIO()
    left_out = write_perfetto(outcomes, file, **over)
    return check(json.loads(file.getvalue())), left_out


def busy_run(say):
    steps = [
        say.header(),
        say.up("a"),
        say.up("b", pool="q"),
        *say.whole(1, 0.0),
        say.arrived(2, 0.2),
        say.finished(99, 0.7, 1, "a", say.place(2, "a")),
        say.down("a", 3.0, say.retry(2), say.place(2, "b", attempt=2)),
        say.first(2, 4.0, "b", attempt=2),
        say.finished(2, 5.0, 9, "b", attempt=2),
        say.arrived(3, 5.0, say.place(3, "b")),
        say.finished(3, 6.0, 4, "b"),
        say.up("a", 6.5, epoch=2),
    ]
    return fold([*say.in_order(steps), say.measure(4.0, "hall", "watts", 700.0)])


def test_a_request_is_slices_where_it_was_joined_by_one_flow(say):
    events, _ = traced(busy_run(say))
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}  # fmt: skip
    begun = [
        (names[event["pid"]], event["name"], event["ts"], event.get("bind_id"))
        for event in events
        if event["ph"] == "b" and event["args"].get("request") == 2
    ]

    assert begun == [
        ("run", "waiting", 0.2e6, "0x2"),
        ("a (m)", "prefill", 0.7e6, "0x2"),
        ("b (m)", "prefill", 3.0e6, "0x2"),
        ("b (m)", "decode", 4.0e6, "0x2"),
    ]


def test_an_answer_in_one_piece_is_one_slice_without_a_flow(say):
    events, _ = traced(busy_run(say))
    (answer,) = [event for event in events if event["ph"] == "b" and event["name"] == "answer"]

    assert answer["args"]["request"] == 3
    assert "bind_id" not in answer


def test_an_answer_of_one_token_is_prefill_and_no_time_of_decode(say):
    events, _ = traced(fold([say.header(), say.up(), *say.whole(1, 0.0, 0.5, 0.5, 1)]))
    begun = [(event["name"], event["ts"]) for event in events if event["ph"] == "b"]

    assert begun == [("prefill", 0.0), ("decode", 0.5e6)]


def test_prefill_and_decode_apart_have_a_transfer_between(say):
    outcomes = fold([say.header(), say.up("a", role="prefill"), say.up("b", role="decode"), *say.apart(1, 0.0)])  # fmt: skip
    events, _ = traced(outcomes)

    assert [event["name"] for event in events if event["ph"] == "b"] == [
        "waiting", "prefill", "waiting", "transfer", "decode",
    ]  # fmt: skip


def test_slices_last_as_long_as_the_requests_were_there(say):
    outcomes = busy_run(say)
    events, _ = traced(outcomes)
    lasted = sum(
        (1 if event["ph"] == "e" else -1) * event["ts"]
        for event in events
        if event["ph"] in "be" and event["name"] != "fault"
    )
    requests = outcomes.requests

    assert lasted / 1e6 == pytest.approx(float((requests.end_s - requests.arrival_s).sum()))


def test_a_fault_is_an_instant_on_all_and_on_each_replica_it_hit(say):
    events, _ = traced(busy_run(say))
    instants = [(event["s"], event["name"], event["ts"]) for event in events if event["ph"] == "i"]

    assert instants == [("g", "x: a", 3.0e6), ("p", "x: a", 3.0e6)]
    fault = [event["ts"] for event in events if event["name"] == "fault"]
    assert fault == [3.0e6, 6.5e6]


def test_counters_follow_the_series(say):
    events, _ = traced(busy_run(say))
    counted = Counter(event["name"] for event in events if event["ph"] == "C")

    assert {"queue", "running", "kv_tokens", "tokens_per_s", "hall watts"} <= set(counted)
    watts = [event["args"]["value"] for event in events if event["name"] == "hall watts"]
    assert watts == [700.0]


def test_the_last_to_arrive_are_left_out_and_counted(say):
    events, left_out = traced(busy_run(say), most=1)

    assert left_out == 2
    assert {event["args"].get("request") for event in events if event["ph"] == "b"} == {1, None}


def test_an_empty_run_is_a_trace_too(say):
    events, left_out = traced(fold([say.header()]))

    assert left_out == 0
    assert {event["ph"] for event in events} == {"M"}


def test_a_name_in_gz_is_compressed_and_always_the_same_bytes(say, tmp_path):
    outcomes = busy_run(say)
    plain, packed, again = (tmp_path / name for name in ("t.json", "t.json.gz", "u.json.gz"))
    for path in (plain, packed, again):
        save_perfetto(outcomes, path)

    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert packed.read_bytes() == again.read_bytes()
    with pytest.raises(FileError, match="cannot be written"):
        save_perfetto(outcomes, tmp_path / "none" / "t.json")
