from typing import Any

import pytest

from polypod.errors import FileError
from polypod.workload.config import read_model
from polypod.workload.families import FAMILIES

UNHEARD: dict[str, Any] = {
    "model_type": "qwen3x_moe", "hidden_size": 64, "num_hidden_layers": 2, "num_experts": 8, "layer_types": ["a", "b"],
    "memory_slots": 5, "fold_every": 3, "bos_token_id": 1, "rope_theta": 1e4, "use_cache": True, "torch_dtype": "bfloat16",
    "unset": None,
}  # fmt: skip


def said_of(config: dict[str, Any]) -> str:
    with pytest.raises(FileError) as caught:
        read_model(config, "one", "mine/config.json")
    return str(caught.value)


def test_what_was_read_and_what_was_not_is_said():
    said = said_of(UNHEARD)

    assert "model_type is 'qwen3x_moe'; accepted: one of the modelled families: llama, " in said
    assert (
        "read from the file: hidden_size 64, num_hidden_layers 2, layer_types of 2, num_experts 8;"
        in said
    )
    assert "not read, of no described family's meaning: fold_every, memory_slots;" in said


def test_the_nearest_families_and_the_two_ways_out_are_named():
    said = said_of(UNHEARD)

    assert "the nearest by name are qwen3_moe, " in said
    assert "a row of FAMILIES in polypod/workload/families.py" in said
    assert 'pip install "polypod[trace]"' in said
    assert said.endswith("at `$.model_type`")


def test_a_name_like_no_other_has_no_nearest_and_long_lists_are_cut():
    said = said_of({"model_type": "zzz"} | {f"knob_{n:02}": n for n in range(20)})

    assert "nearest" not in said
    assert "read from the file: nothing;" in said
    assert "knob_11 and 8 more;" in said


def test_every_described_family_is_offered():
    said = said_of(UNHEARD)

    assert all(family in said for family in FAMILIES)


def test_what_its_fields_are_signs_of_is_said_and_not_acted_on():
    said = said_of(UNHEARD | {"kv_lora_rank": 512, "mamba_d_state": 16, "num_experts_per_tok": 2})

    assert "it seems to have latent attention (MLA), state-space layers, routed experts; nothing is taken from that" in said  # fmt: skip
    assert "it seems to have" not in said_of({"model_type": "zzz"})
