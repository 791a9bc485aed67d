"""What a traffic amounts to, against its arrays."""

from pathlib import Path

import numpy as np
import pytest

from polypod.errors import InputError
from polypod.workload.traffic import Traffic, blocks, read_trace
from polypod.workload.traffic_arrivals import Gamma
from polypod.workload.traffic_figures import figures
from polypod.workload.traffic_lengths import Lognormal
from polypod.workload.traffic_make import Stream, Synthetic, Turns
from polypod.workload.traffic_scale import Replay
from polypod.workload.traffic_tenants import Tenant

MOONCAKE = Path(__file__).parents[2] / "examples/traces/mooncake-conversation-300.jsonl"
CHAT = Stream(model="chat", rate_per_s=10.0, input_tokens=1000, output_tokens=200)


def test_mooncakes_excerpt_adds_up() -> None:
    trace = read_trace(MOONCAKE)
    found = figures(blocks(Traffic(source=Replay(trace=trace)), 7))

    assert (found.requests, found.blocks, found.sessions) == (300, 8490, 279)
    assert found.in_sessions == 300
    assert found.reused_fraction == pytest.approx(676 / 8490)
    assert found.duration_s == pytest.approx(102.0 * 300 / 299)
    assert found.input.mean_tokens == pytest.approx(trace.input_tokens.mean())
    assert found.output.p99_tokens == np.percentile(trace.output_tokens, 99)
    tokens = trace.input_tokens.sum() + trace.output_tokens.sum()
    assert found.tokens_per_s == pytest.approx(tokens / found.duration_s)
    assert found.month_tokens == pytest.approx(30 * 86400 * tokens / found.duration_s)


@pytest.mark.parametrize("block", [1, 999, 10**6])
def test_the_blocks_size_changes_no_figure(block: int) -> None:
    source = Synthetic(streams=(CHAT,), arrivals=Gamma(cv_ratio=4.0), lengths=Lognormal(), turns=Turns(mean_turns=3), requests=5000)  # fmt: skip
    traffic = Traffic(source=source, tenants=(Tenant(name="a", share=3), Tenant(name="b", share=1)))
    one, two = figures(blocks(traffic, block)), figures(blocks(traffic))

    assert one.gap_cv_ratio == pytest.approx(two.gap_cv_ratio)
    assert (one.requests, one.sessions, one.reused_fraction) == (two.requests, two.sessions, two.reused_fraction)  # fmt: skip
    assert one.requests_of_tenant == two.requests_of_tenant
    assert sum(one.requests_of_tenant.values()) == one.requests_of_model["chat"] == 5000


def test_the_variation_of_gaps_is_that_of_the_process() -> None:
    source = Synthetic(streams=(CHAT,), arrivals=Gamma(cv_ratio=3.0), requests=200_000)
    found = figures(blocks(Traffic(source=source)))

    assert found.gap_cv_ratio == pytest.approx(3, rel=0.03)
    assert found.rate_per_s == pytest.approx(10, rel=0.03)
    assert found.reused_fraction is None


def test_no_request_is_no_traffic() -> None:
    with pytest.raises(InputError, match=r"no request arrives"):
        figures([])
