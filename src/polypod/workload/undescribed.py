"""What is said of a config.json whose family nobody has described: what was read of it, what was not, what to do."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Final

from polypod.errors import FileError
from polypod.workload.keys import Keys

_SHAPE: Final = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
    "max_position_embeddings",
    "sliding_window",
    "layer_types",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "n_shared_experts",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "quantization_config",
)
"""Fields that mean the same wherever they stand."""

_NEUTRAL: Final = (
    "architectures",
    "attention_dropout",
    "auto_map",
    "dtype",
    "hidden_act",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "text_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
_NEUTRAL_PARTS: Final = ("token", "rope", "dropout", "eps", "loss", "_name", "router_jitter")
_MOST: Final = 12  # names in one list


def undescribed(keys: Keys, families: Collection[str]) -> FileError:
    """The error for a `model_type` that is not listed."""
    accepted = [f"one of the modelled families: {', '.join(families)}"]
    near = get_close_matches(keys.text("model_type"), families, n=3)
    if near:
        accepted.append(
            f"the nearest by name are {', '.join(near)}: if it is built like one, say so in model_type of a copy"
        )
    accepted.append(f"read from the file: {_read(keys) or 'nothing'}")
    if kinds := _kinds(keys):
        accepted.append(f"by its fields it seems to have {kinds}; nothing is taken from that")
    accepted.append(f"not read, of no described family's meaning: {_not_read(keys) or 'nothing'}")
    accepted.append(
        "to add it: a row of FAMILIES in polypod/workload/families.py whose parameters come out as published; or, with "
        'pip install "polypod[trace]", `polypod catalog show` prints what a trace of its code counts (extra `trace`); it cannot be planned yet'
    )
    return keys.wrong(key="model_type", accepted="; ".join(accepted))


_SIGNS: Final = (
    ("kv_lora_rank", "latent attention (MLA)"),
    ("index_topk", "sparse attention by an index"),
    ("sliding_window", "attention windows"),
    ("linear_num_value_heads", "gated delta nets"),
    ("mamba_", "state-space layers"),
    ("ssm_", "state-space layers"),
    ("num_experts_per_tok", "routed experts"),
)
"""What a field, or one that begins so, is a sign of."""


def _kinds(keys: Keys) -> str:
    found = [
        kind
        for sign, kind in _SIGNS
        if any(key.startswith(sign) and keys.has(key) for key in keys.config)
    ]
    return ", ".join(dict.fromkeys(found))


def _read(keys: Keys) -> str:
    found = [f"{key} {_short(keys.get(key))}" for key in _SHAPE if keys.has(key)]
    return _listed(found)


def _not_read(keys: Keys) -> str:
    known = {*_SHAPE, *_NEUTRAL}
    found = [
        key
        for key in sorted(keys.config)
        if key not in known and not any(part in key for part in _NEUTRAL_PARTS) and keys.has(key)
    ]
    return _listed(found)


def _short(value: object) -> str:
    return f"of {len(value)}" if isinstance(value, list | dict) else str(value)


def _listed(found: list[str]) -> str:
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return ", ".join(found[:_MOST]) + more
