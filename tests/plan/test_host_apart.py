"""Prompts on one half of a machine's cores, answers on the other."""

import pytest

from polypod.catalog.load import load_model
from polypod.cost.cpu import HostRates
from polypod.errors import InputError
from polypod.plan.host import CoreGroup, LocalEngine, LocalModel, plan_host
from polypod.plan.host_apart import host_apart, that_hand_over
from polypod.plan.predict import pool_replicas
from polypod.plan.spec import Plan, check
from polypod.workload.config import read_model

ENTRY = load_model("smollm2")
LOCAL = LocalModel(
    model=read_model(ENTRY.config, name=ENTRY.name, path=ENTRY.path),
    weights="/models/m.gguf",
    weight_format="q4_1",
    served_name="SmolLM2-135M-Instruct",
)
RATES = HostRates(cpu_class="x86-amx", cpu="a CPU", cores=1, gemm_flops_per_s=100e9, read_bytes_per_s=15e9, measured_utc="2026-01-01T00:00:00+00:00")  # fmt: skip
LLAMA_CPP = LocalEngine(name="llama.cpp", version="1", kv_bytes_per_element=2.0, max_step_tokens=512)  # fmt: skip


def openvino() -> LocalEngine:
    return LocalEngine(name="openvino", version="1", kv_bytes_per_element=1.1875, max_step_tokens=512)  # fmt: skip


def planned(cores: int) -> Plan:
    groups = [CoreGroup(cores=(n,), rates=RATES) for n in range(cores)]
    return plan_host(LOCAL, groups, [LLAMA_CPP], free_memory_bytes=20e9)


def test_the_first_half_of_the_cores_computes_prompts_and_the_second_answers() -> None:
    made = host_apart(planned(2))
    check(made)
    prefill, decode = pool_replicas(made)
    assert (prefill.replica, prefill.role) == ("prefill-0", "prefill")
    assert (decode.replica, decode.role) == ("decode-0", "decode")
    assert [made.fleet[pool.on].cores for pool in made.services[0].pools] == [(0,), (1,)]
    assert prefill.kv_token_bytes == decode.kv_token_bytes == 23040
    assert prefill.kv_link_bytes_per_s > 0


def test_of_three_groups_two_answer_under_names_of_their_own() -> None:
    ups = pool_replicas(host_apart(planned(3)))
    assert [up.role for up in ups] == ["prefill", "decode", "decode"]
    assert len({up.replica for up in ups}) == 3


def test_one_group_of_cores_cannot_be_taken_apart() -> None:
    with pytest.raises(InputError, match="need two groups of cores"):
        host_apart(planned(1))


def test_only_engines_that_hand_caches_on_are_taken() -> None:
    assert that_hand_over([openvino(), LLAMA_CPP]) == [LLAMA_CPP]
    with pytest.raises(InputError, match=r"which is llama\.cpp, and there is openvino"):
        that_hand_over([openvino()])
    with pytest.raises(InputError, match="there is no engine"):
        that_hand_over([])
