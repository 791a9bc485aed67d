"""From pools for prefill and decode to what their replicas announce."""

from typing import Any

import pytest

from polypod.cost.cpu import HostRates, handover_rates
from polypod.errors import InputError
from polypod.plan.place import island, way_between_bytes_per_s, way_out_bytes_per_s
from polypod.plan.predict import PREEMPTED_STEP_TOKENS, pool_replicas
from polypod.plan.spec import Plan, Pool, Service, Source, check
from polypod.workload.layout import Layout
from polypod.workload.precision import Precision

MODEL = "meta-llama/Llama-3.1-8B"
KV_BYTES = 2 * 32 * 8 * 128 * 2  # keys and values, layers, heads, width, bf16
FLEET = {
    "a": Source(accelerator="nvidia-h100-sxm", count=8),
    "b": Source(accelerator="nvidia-h20", count=8),
}


def pool(name: str, role: str, on: str = "a", **over: Any) -> Pool:
    known: dict[str, Any] = {
        "role": role, "on": on, "layout": Layout(tp=1), "replicas": 2, "name": name,
        "precision": Precision(weights="bf16", kv="bf16"), "state": "modelled",
        "max_sequences": 16, "max_step_tokens": 64,
    }  # fmt: skip
    return Pool(**(known | over))


def plan(*pools: Pool) -> Plan:
    made = Plan(polypod=1, fleet=FLEET, services=(Service(model=MODEL, pools=pools),))
    check(made)
    return made


def test_replicas_say_what_their_caches_are_and_where_they_go() -> None:
    """A replica sends by all its ranks; between islands by the narrower of their networks."""
    ups = {
        up.pool: up
        for up in pool_replicas(
            plan(
                pool("p", "prefill", hands_to=("d",)),
                pool("d", "decode", "b", layout=Layout(tp=2, dp=2)),
                pool("q", "prefill", kv_link="5 GB/s", layout=Layout(tp=2)),
                pool("w", "both"),
            )
        )
    }
    places = [island(name, source) for name, source in FLEET.items()]
    width = way_between_bytes_per_s(*places)

    assert width == min(way_out_bytes_per_s(place) or 0 for place in places)
    assert {up.kv_token_bytes for up in ups.values()} == {KV_BYTES, 0.0}
    assert ups["p"].kv_link_bytes_per_s == width
    assert ups["d"].kv_link_bytes_per_s == 4 * (width or 0)
    assert ups["q"].kv_link_bytes_per_s == 2 * 5e9
    assert (ups["p"].kv_pools, ups["d"].kv_pools) == (("d",), ())
    assert ups["w"].kv_token_bytes == ups["w"].kv_link_bytes_per_s == 0.0
    assert all(0 < ups[name].kv_link_latency_s < 1e-3 for name in "pqd")
    assert (ups["p"].max_step_tokens, ups["d"].max_step_tokens) == (64, PREEMPTED_STEP_TOKENS)


def test_a_way_inside_an_island_is_its_outermost_tier_whatever_that_joins() -> None:
    place = island("a", FLEET["a"])
    known = [tier.bytes_per_s.value for tier in place.rank.tiers if tier.bytes_per_s is not None]

    assert way_between_bytes_per_s(place, place) == known[-1]


@pytest.mark.parametrize(
    ("pools", "says"),
    [
        ((pool("p", "prefill"),), r"a prefill pool without a decode pool of its service; add one.*pools\[0\]"),
        ((pool("p", "prefill"), pool("d", "decode", precision=Precision(weights="bf16", kv="fp8"))), "caches are bf16 here and fp8 where they come from or go to"),
        ((pool("p", "prefill", kv_link="0 GB/s"), pool("d", "decode")), "kv_link 0 GB/s lets no cache through"),
        ((pool("p", "prefill", hands_to=("d",)), pool("d", "decode"), pool("e", "decode")), r"a decode pool without a prefill pool .*pools\[2\]"),
    ],
)  # fmt: skip
def test_half_a_pair_is_refused(pools: tuple[Pool, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        pool_replicas(plan(*pools))


@pytest.mark.parametrize(
    ("pools", "says"),
    [
        ((pool("p", "prefill", hands_to=("x",)), pool("d", "decode")), r"'x' is no pool for decode of .* \(d\) - at `\$.services\[0\].pools\[0\].hands_to`"),
        ((pool("w", "both", hands_to=("d",)), pool("d", "decode")), "a pool for 'both' hands on no caches"),
        ((pool("w", "both", kv_link="wide"),), "kv_link"),
    ],
)  # fmt: skip
def test_a_plan_whose_pools_do_not_fit_together_is_refused(pools: tuple[Pool, ...], says: str) -> None:  # fmt: skip
    with pytest.raises(InputError, match=says):
        plan(*pools)


def test_a_chip_without_a_network_on_record_needs_its_link_said() -> None:
    fleet = {"a": Source(accelerator="nvidia-l4", count=1), "b": Source(accelerator="nvidia-h100-sxm", count=1)}  # fmt: skip
    pools = (pool("p", "prefill", replicas=1), pool("d", "decode", "b", replicas=1))
    made = Plan(polypod=1, fleet=fleet, services=(Service(model=MODEL, pools=pools),))
    with pytest.raises(InputError, match="no link for caches between nvidia-l4 on 'a' and nvidia-h100-sxm on 'b' is on record; say one rank's as kv_link"):  # fmt: skip
        pool_replicas(made)


RATES = HostRates(cpu_class="x86-amx", cpu="c", cores=1, gemm_flops_per_s=1e11, read_bytes_per_s=1e10, measured_utc="2026-01-01")  # fmt: skip
HOSTS = {
    "a": Source(host="c", cores=(0,), measured=RATES),
    "b": Source(host="c", cores=(1,), measured=RATES),
}


def on_cores(*engines: str, fleet: dict[str, Source] | None = None) -> Plan:
    said = Precision(weights="q4_1", kv="fp16")
    pools = (
        pool("p", "prefill", "a", engine=engines[0], replicas=1, precision=said),
        pool("d", "decode", "b", engine=engines[1], replicas=1, precision=said),
    )
    service = Service(model=MODEL, context=2048, pools=pools)
    return Plan(polypod=1, fleet=fleet or HOSTS, services=(service,))


def test_processes_of_one_host_hand_caches_on_by_a_file_as_fast_as_was_measured() -> None:
    measured = handover_rates("llama.cpp")
    assert measured is not None

    prefill, decode = pool_replicas(on_cores("llama.cpp", "llama.cpp"))

    for up in (prefill, decode):
        assert up.kv_token_bytes == KV_BYTES
        assert up.kv_link_bytes_per_s == measured.restore_bytes_per_s[1]
        assert up.kv_link_latency_s == measured.restore_latency_s[1]
    assert (prefill.role, decode.role) == ("prefill", "decode")


@pytest.mark.parametrize(
    ("engines", "says"),
    [
        (("llama.cpp", "openvino"), "the engines are llama.cpp and openvino; make role both"),
        (("openvino", "openvino"), "the engines are openvino; make role both"),
    ],
)
def test_engines_that_hand_nothing_on_are_refused_for_one_phase(
    engines: tuple[str, str], says: str
) -> None:
    with pytest.raises(InputError, match=f"between llama.cpp processes of one host alone, and {says}"):  # fmt: skip
        pool_replicas(on_cores(*engines))


def test_a_host_and_an_island_hand_each_other_nothing() -> None:
    fleet = {"a": HOSTS["a"], "b": FLEET["b"]}
    with pytest.raises(InputError, match="'b' is no host; make role both"):
        pool_replicas(on_cores("llama.cpp", "llama.cpp", fleet=fleet))
