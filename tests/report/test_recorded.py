"""A record's requests as a trace: what is kept of them, and what is drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypod import record
from polypod.errors import FileError, InputError
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import RequestFinished, SettingsChanged
from polypod.record import Line, Step
from polypod.report.recorded import check_whole, is_record, read_recorded, renamed
from tests.report import conftest as made


def written(path: Path, *lines: Line, **head: Any) -> Path:
    path.write_bytes(
        b"".join(map(record.encode, (made.header(**head), made.up(at_s=50.0), *lines)))
    )
    return path


def counted(request: int, at_s: float, **tokens: int) -> Step:
    return Step(event=RequestFinished(at_s=at_s, **made.about(request, "a"), **tokens))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Five requests from second 100 on: three finished, one left, one is open; one of them for no model of the run."""
    return written(
        tmp_path / "record.jsonl",
        made.arrived(7, 100.0, made.place(7), tenant="a", priority=2, max_output_tokens=30),
        made.arrived(9, 100.5, made.place(9), input_is_exact=False, only_replica="a"),
        made.first(7, 101.0),
        made.finished(7, 102.0, tokens=21),
        counted(9, 103.0, input_tokens=77, output_tokens=22),
        made.arrived(11, 104.0, made.reject(11, 404, "model_not_found"), model="other", tenant="b"),
        made.arrived(12, 105.0, made.place(12), is_streamed=False),
        made.gone(12, 106.0),
        made.arrived(13, 107.0, made.place(13)),
    )


def test_a_model_that_was_added_on_the_way_was_served(tmp_path: Path) -> None:
    services = (ServiceSettings(model="n", context_tokens=9),)
    told = SettingsChanged(at_s=99.0, settings=PolicySettings(services=services))
    came = made.arrived(7, 100.0, made.place(7), model="n")
    lines = (Step(event=told, actions=[]), came, made.finished(7, 102.0, tokens=2))
    found = read_recorded(written(tmp_path / "record.jsonl", *lines))
    assert found.served == ("m", "n")
    with pytest.raises(InputError, match="'n', which the plan does not serve"):
        renamed(found, ["m"], {}, "")


def test_times_count_from_the_first_request_and_lengths_are_what_engines_counted(path):
    found = read_recorded(path)
    trace = found.trace

    assert found.begin_s == 100.0
    assert trace.arrival_s.tolist() == [0.0, 0.5, 4.0, 5.0, 7.0]
    assert trace.input_tokens.tolist() == [100, 77, 100, 100, 100]
    assert trace.output_tokens[:2].tolist() == [21, 22]
    assert trace.max_output_tokens.tolist() == [30, 0, 0, 0, 0]
    assert trace.priority.tolist() == [2, 0, 0, 0, 0]
    assert [trace.tenants[n] for n in trace.tenant] == ["a", "", "b", "", ""]
    assert [trace.models[n] for n in trace.model] == ["m", "m", "other", "m", "m"]
    assert found.is_pinned.tolist() == [False, True, False, False, False]
    assert found.is_streamed.tolist() == [True, True, True, False, True]


def test_answers_that_did_not_end_have_lengths_of_answers_that_did(path):
    drawn = [read_recorded(path, seed=seed) for seed in range(20)]

    for found in drawn:
        assert found.is_drawn.tolist() == [False, False, True, True, True]
        assert set(found.trace.output_tokens.tolist()) <= {21, 22}
    assert len({tuple(found.trace.output_tokens.tolist()) for found in drawn}) > 1
    again = read_recorded(path, seed=3)
    assert again.trace.output_tokens.tolist() == drawn[3].trace.output_tokens.tolist()


def test_a_length_is_drawn_from_its_own_model_where_one_of_it_finished(tmp_path):
    policy = PolicySettings(
        services=tuple(ServiceSettings(model=name, context_tokens=9) for name in ("m", "n"))
    )
    lines = [
        made.arrived(1, 0.0, made.place(1)),
        made.finished(1, 1.0, tokens=5),
        made.arrived(2, 2.0, made.place(2), model="n"),
        made.finished(2, 3.0, tokens=900),
        *(made.arrived(n, 4.0, model="nm"[n % 2]) for n in range(3, 23)),
    ]
    trace = read_recorded(written(tmp_path / "r.jsonl", *lines, policy=policy)).trace

    by_model = {
        name: set(trace.output_tokens[trace.model == n].tolist())
        for n, name in enumerate(trace.models)
    }
    assert by_model == {"m": {5}, "n": {900}}


def test_a_record_cut_in_the_middle_of_a_line_is_read_and_says_so(path):
    raw = path.read_bytes()
    path.write_bytes(raw[:-20])
    found = read_recorded(path)

    assert len(found.trace) == 4
    assert "is cut short" in str(found.note)


def test_prefix_hashes_and_their_block_size_come_along(tmp_path):
    policy = PolicySettings(
        services=(ServiceSettings(model="m", context_tokens=9, block_tokens=48),)
    )
    lines = [
        made.arrived(1, 0.0, prefix_hashes=(4, 5)),
        made.finished(1, 1.0),
        made.arrived(2, 2.0),
        made.arrived(3, 3.0, prefix_hashes=(4,)),
    ]
    trace = read_recorded(written(tmp_path / "r.jsonl", *lines, policy=policy)).trace

    assert trace.block_tokens == 48
    assert trace.block_hashes.tolist() == [4, 5, 4]
    assert trace.num_blocks.tolist() == [2, 0, 1]
    assert trace.session[0] == trace.session[2]  # told from the prefixes, as of any trace


def test_a_model_that_the_plan_does_not_serve_is_said_with_the_nearest_and_another_name_will_do(
    path,
):
    found = read_recorded(path)

    with pytest.raises(
        InputError,
        match=r"has requests for 'm', which the plan does not serve; nearest: m-large; so$",
    ):
        renamed(found, ["m-large"], {}, "; so")
    assert renamed(found, ["m-large"], {"m": "m-large"}, "").trace.models == ("m-large", "other")
    assert renamed(found, ["m"], {}, "").trace.models == (
        "m",
        "other",
    )  # it was refused, and is again
    with pytest.raises(InputError, match=r"no request of .* is for 'q'; nearest: m, other"):
        renamed(found, ["m"], {"q": "m"}, "")
    with pytest.raises(InputError, match=r"the plan does not serve 'q'; nearest: m"):
        renamed(found, ["m"], {"m": "q"}, "")


def test_a_sample_is_no_whole_run(tmp_path):
    line = made.arrived(1, 0.0), made.finished(1, 1.0)
    found = read_recorded(written(tmp_path / "r.jsonl", *line, sample=0.02))
    with pytest.raises(
        InputError, match=r"keeps 2 % of its requests, and the others came between them; go on"
    ):
        check_whole(found, "go on")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "holds no request"),
        ((made.arrived(1, 0.0),), "has no request that finished"),
        ((made.arrived(1, 5.0), made.arrived(2, 4.0), made.finished(1, 6.0)), "request 2 came before the one"),
    ],
)  # fmt: skip
def test_what_cannot_be_played_again_is_said(tmp_path, lines, message):
    with pytest.raises(FileError, match=message):
        read_recorded(written(tmp_path / "r.jsonl", *lines))


def test_a_record_is_known_by_its_first_line(path, tmp_path):
    assert is_record(path)
    assert is_record(tmp_path)  # the folder that it lies in
    (tmp_path / "trace.jsonl").write_text(
        '{"timestamp": 0, "input_length": 1, "output_length": 1}\n'
    )
    assert not is_record(tmp_path / "trace.jsonl")
    assert not is_record(tmp_path / "nothing")


def test_an_engine_that_counts_nothing_leaves_the_guess(tmp_path):
    lines = [
        made.arrived(1, 0.0), made.finished(1, 1.0, tokens=0), made.arrived(2, 2.0), made.finished(2, 3.0, tokens=6),
    ]  # fmt: skip
    found = read_recorded(written(tmp_path / "r.jsonl", *lines))

    assert found.trace.input_tokens.tolist() == [100, 100]
    assert found.trace.output_tokens.tolist() == [6, 6]
    assert np.flatnonzero(found.is_drawn).tolist() == [0]
