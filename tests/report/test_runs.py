"""What a record says, on records small enough to work out by hand."""

import json
from typing import Any

import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.plan.spec import Slo
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.actions import Dispatch, Reject, Retry
from polypod.policy.events import (
    ClientGone,
    FirstToken,
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFailed,
    RequestFinished,
)
from polypod.record import Header, Line, Measure, Step
from polypod.report.runs import run_json, run_text, summarise
from polypod.report.summary import percentiles

HEADER = Header(
    kind="simulated",
    polypod="0",
    policy=PolicySettings(services=(ServiceSettings(model="m", context_tokens=9),)),
)
STEP_TIME = StepTime(tokens=(0, 1), seconds=(1.0, 1.0), kv_token_s=0.0, pair_s=0.0)


def up(replica: str = "a", at_s: float = 0.0, epoch: int = 1, **over: Any) -> Step:
    known: dict[str, Any] = {"model": "m", "pool": "p"}
    return Step(
        event=ReplicaUp(
            at_s=at_s, replica=replica, epoch=epoch, role="both", step_time=STEP_TIME, context_tokens=9,
            kv_capacity_tokens=9, max_sequences=1, max_step_tokens=9, **(known | over),
        )
    )  # fmt: skip


def down(replica: str, at_s: float, epoch: int = 1) -> Step:
    return Step(event=ReplicaDown(at_s=at_s, replica=replica, epoch=epoch, reason="x"))


def place(request: int, replica: str, attempt: int = 1) -> Dispatch:
    return Dispatch(
        request=request, attempt=attempt, replica=replica, epoch=1,
        predicted_first_token_s=0.0, predicted_token_s=0.0,
    )  # fmt: skip


def arrived(request: int, at_s: float, *actions: Any, model: str = "m") -> Step:
    event = RequestArrived(at_s=at_s, request=request, model=model, input_tokens=1)
    return Step(event=event, actions=list(actions))


def first(request: int, at_s: float, replica: str = "a", attempt: int = 1) -> Step:
    return Step(
        event=FirstToken(at_s=at_s, request=request, attempt=attempt, replica=replica, epoch=1)
    )


def finished(request: int, at_s: float, tokens: int, replica: str = "a", attempt: int = 1) -> Step:
    return Step(
        event=RequestFinished(
            at_s=at_s, request=request, attempt=attempt, replica=replica, epoch=1, output_tokens=tokens
        )
    )  # fmt: skip


def reject(request: int, status: int) -> Reject:
    return Reject(request=request, status=status, code="x", message="x")


def whole(
    request: int, at_s: float, ttft_s: float, e2e_s: float, tokens: int, replica: str = "a"
) -> list[Line]:
    return [
        arrived(request, at_s, place(request, replica)),
        first(request, at_s + ttft_s, replica),
        finished(request, at_s + e2e_s, tokens, replica),
    ]


def test_one_request_is_every_percentile():
    summary = summarise([HEADER, up(), *whole(1, 10.0, 0.5, 2.5, 5)])

    for spread, value in ((summary.ttft, 0.5), (summary.tpot, 0.5), (summary.e2e, 2.5)):
        assert spread is not None
        assert (spread.mean_s, spread.p50_s, spread.p90_s, spread.p99_s) == (value,) * 4
    assert (summary.requests, summary.finished, summary.open) == (1, 1, 0)
    assert (summary.duration_s, summary.requests_per_s) == (2.5, 0.4)
    assert (summary.output_tokens, summary.output_tokens_per_s) == (5, 2.0)


def test_no_request_has_no_percentiles_and_no_rates():
    summary = summarise([HEADER, up()])

    assert (summary.requests, summary.duration_s) == (0, 0.0)
    assert summary.ttft is summary.tpot is summary.e2e is summary.goodput is None
    assert summary.requests_per_s is summary.output_tokens_per_s is None
    assert "none" in run_text(summary)


def test_nothing_at_all_is_a_summary_too():
    assert summarise([]).requests == 0


def test_percentiles_are_those_of_numpy():
    values = list(np.random.default_rng(1).exponential(1.0, 500))
    spread = percentiles(values)

    assert spread is not None
    assert spread.p90_s == pytest.approx(np.quantile(values, 0.9))
    assert spread.mean_s == pytest.approx(sum(values) / 500)


def test_one_token_has_no_time_per_token():
    summary = summarise([HEADER, up(), *whole(1, 0.0, 0.5, 0.5, 1)])

    assert summary.ttft is not None
    assert summary.tpot is None


def test_two_tokens_have_one_gap():
    tpot = summarise([HEADER, up(), *whole(1, 0.0, 0.5, 0.75, 2)]).tpot

    assert tpot is not None
    assert tpot.mean_s == 0.25


def test_an_answer_in_one_piece_has_its_first_token_at_its_end():
    summary = summarise([HEADER, up(), arrived(1, 0.0, place(1, "a")), finished(1, 3.0, 4)])

    assert summary.ttft is not None
    assert summary.ttft.p50_s == 3.0
    assert summary.tpot is None


def test_ttft_is_over_all_attempts_and_words_of_old_ones_do_not_count():
    lost = RequestFailed(at_s=1.0, request=1, attempt=1, replica="a", epoch=1, kind="lost")
    retry = Retry(request=1, attempt=1, reason="lost")
    summary = summarise(
        [
            HEADER,
            up("a"),
            up("b"),
            arrived(1, 0.0, place(1, "a")),
            Step(event=lost, actions=[retry, place(1, "b", attempt=2)]),
            first(1, 1.5),  # of attempt 1: stale
            finished(1, 1.6, 9),
            first(1, 2.0, "b", attempt=2),
            first(1, 2.5, "b", attempt=2),  # said twice
            finished(1, 3.0, 6, "b", attempt=2),
            finished(1, 9.0, 6, "b", attempt=2),
        ]
    )

    assert summary.ttft is not None
    assert summary.ttft.p50_s == 2.0
    assert (summary.finished, summary.retries, summary.output_tokens) == (1, 1, 6)
    assert summary.duration_s == 3.0
    assert [share.requests for share in summary.replicas] == [0, 1]


def test_ends_are_counted_by_kind():
    summary = summarise(
        [
            HEADER,
            up(),
            *whole(1, 0.0, 0.1, 0.5, 2),
            arrived(2, 1.0, reject(2, 429)),
            arrived(3, 2.0, reject(3, 404)),
            arrived(4, 3.0, reject(4, 429)),
            arrived(5, 4.0, place(5, "a")),
            Step(event=ClientGone(at_s=6.0, request=5)),
            Step(event=ClientGone(at_s=7.0, request=5)),
            arrived(6, 5.0, place(6, "a")),
        ]
    )

    assert (summary.requests, summary.finished, summary.gone, summary.open) == (6, 1, 1, 1)
    assert summary.rejected == {404: 1, 429: 2}
    assert summary.duration_s == 6.0
    text = run_text(summary)
    assert "1 with 404, 2 with 429" in text
    assert "clients gone" in text


def test_the_run_lasts_until_the_last_rejection():
    summary = summarise(
        [HEADER, up(), *whole(1, 0.0, 0.1, 0.5, 2), arrived(2, 4.0, reject(2, 429))]
    )

    assert summary.duration_s == 4.0


def test_goodput_is_what_keeps_every_limit_it_has():
    lines = [
        HEADER,
        up(),
        *whole(1, 0.0, 1.0, 2.0, 11),  # TTFT 1 s, TPOT 0.1 s: on both limits
        *whole(2, 0.0, 1.01, 2.0, 11),  # first token late
        *whole(3, 0.0, 1.0, 2.01, 11),  # tokens late
        *whole(4, 0.0, 0.9, 9.0, 1),  # one token has no time per token
        arrived(5, 0.0, reject(5, 429)),
    ]
    summary = summarise(lines, {"m": Slo(ttft="1 s", tpot="100 ms")})
    only_ttft = summarise(lines, {"m": Slo(ttft="1 s")})

    assert summary.goodput is not None
    assert (summary.goodput.requests, summary.goodput.fraction) == (2, 0.4)
    assert summary.goodput.per_s == pytest.approx(2 / 9.0)
    assert only_ttft.goodput is not None
    assert only_ttft.goodput.requests == 3
    assert summarise(lines).goodput is None
    assert "inside the SLO  2, 40.0 %, 0.222/s" in run_text(summary)


def test_each_model_has_its_own_slo_and_one_without_is_always_inside():
    lines = [
        HEADER,
        up(),
        *whole(1, 0.0, 1.0, 2.0, 11),
        arrived(2, 0.0, place(2, "a"), model="n"),
        finished(2, 99.0, 5),
    ]
    goodput = summarise(lines, {"m": Slo(ttft="0.5 s")}).goodput

    assert goodput is not None
    assert goodput.requests == 1


def test_the_slo_is_the_plans_where_none_is_given():
    plan = {
        "services": [{"model": "m", "slo": {"ttft": "1 s", "percentile": 99.0}}, {"model": "n"}]
    }
    header = Header(kind="live", polypod="0", policy=HEADER.policy, plan=plan)
    goodput = summarise([header, up(), *whole(1, 0.0, 1.1, 2.0, 11)]).goodput

    assert goodput is not None
    assert goodput.requests == 0


def test_busy_time_is_set_against_the_time_a_replica_was_up():
    lines = [
        HEADER,
        up("a", pool="p"),
        up("b", pool="p"),
        up("c", pool="q", at_s=4.0),
        *whole(1, 0.0, 0.5, 1.0, 5, "a"),
        *whole(2, 0.0, 0.5, 1.0, 3, "b"),
        *whole(3, 4.0, 0.5, 1.0, 2, "c"),
        down("b", 6.0),
        down("b", 7.0),  # said twice
        up("b", at_s=8.0, epoch=2),
        Measure(at_s=10.0, of="a", name="busy_s", value=5.0),
        Measure(at_s=10.0, of="b", name="busy_s", value=2.0),
        Measure(at_s=10.0, of="b", name="computed_tokens", value=77.0),
    ]
    summary = summarise(lines)
    a, b, c = summary.replicas
    p, q = summary.pools

    assert (a.up_s, b.up_s, c.up_s) == (10.0, 8.0, 6.0)
    assert (a.busy_fraction, b.busy_fraction, c.busy_fraction) == (0.5, 0.25, None)
    assert (p.requests, p.output_tokens, p.up_s, p.busy_s) == (2, 8, 18.0, 7.0)
    assert (q.requests, q.busy_s) == (1, None)


def test_a_later_start_ends_the_up_time_of_the_earlier_one():
    summary = summarise([HEADER, up("a"), up("a", at_s=5.0, epoch=3), up("a", at_s=6.0, epoch=2), down("a", 9.0, epoch=3), Measure(at_s=20.0, of="a", name="busy_s", value=9.0)])  # fmt: skip

    assert summary.replicas[0].up_s == 9.0
    assert summary.replicas[0].busy_fraction == 1.0


def test_tables_fit_eighty_columns_and_list_pools_when_replicas_are_many():
    name = "a-model-with-a-name-longer-than-any-table-has-room-for"
    few = [HEADER, *[up(f"{name}-{n}", model=name, pool=name) for n in range(3)]]
    many = [HEADER, *[up(f"{name}-{n}", model=name, pool=name) for n in range(40)]]
    traffic = whole(1, 0.0, 0.123456, 12345.6789, 1_000_000, f"{name}-0")

    for lines in (few, many):
        text = run_text(summarise([*lines, *traffic], {"m": Slo(ttft="1 s")}))
        assert max(map(len, text.splitlines())) <= 80
        assert not [line for line in text.splitlines() if line != line.rstrip()]
    assert "replica " in run_text(summarise([*few, *traffic]))
    assert "replica " not in run_text(summarise([*many, *traffic]))


def test_the_object_form_is_json_and_has_the_derived_rates():
    summary = summarise(
        [HEADER, up(), *whole(1, 0.0, 0.5, 2.5, 5), arrived(2, 0.0, reject(2, 429))]
    )
    raw = json.loads(json.dumps(run_json(summary)))

    assert raw["ttft"] == {"mean_s": 0.5, "p50_s": 0.5, "p90_s": 0.5, "p99_s": 0.5}
    assert raw["rejected"] == {"429": 1}
    assert (raw["requests_per_s"], raw["output_tokens_per_s"]) == (0.4, 2.0)
    assert raw["replicas"][0]["busy_fraction"] is None
    assert raw["goodput"] is None
