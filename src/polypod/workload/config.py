"""Reads a `config.json`, as model hubs publish them, into a `Model`; refuses what it would have to guess.

Of a model that sees as well as reads, the language model under `text_config` is described.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from polypod.workload.families import FAMILIES
from polypod.workload.keys import LONGEST, Keys
from polypod.workload.model import LayerGroup, Model, Moe
from polypod.workload.parts import Layers
from polypod.workload.quantisation import quantised, rest_dtype, weight_dtype
from polypod.workload.undescribed import undescribed


def read_model(config: Mapping[str, Any], name: str, path: Path | str) -> Model:
    """Understand a config.json. `path` is only for messages.

    Raises `FileError` with the key, its value and what is accepted, for a family that is not modelled, a field that is
    missing, of the wrong type or absurd, and for features that would change the cost and are not modelled.
    """
    keys = _language_model(Keys(config, path))
    model_type = keys.text("model_type")
    if model_type not in FAMILIES:
        raise undescribed(keys, FAMILIES)
    family = FAMILIES[model_type]
    keys = replace(keys, spelling=family.spelling)
    if not family.has_windows:
        _refuse_windows(keys)
    runs = family.layers(keys)
    layers = _merged(_even(run, keys) for run in runs)
    _refuse_experts(keys, layers)
    return Model(
        name=name,
        model_type=model_type,
        hidden=keys.count("hidden_size"),
        vocab=keys.count("vocab_size"),
        tied=keys.flag("tie_word_embeddings", default=family.tied),
        layers=layers,
        mtp_layers=keys.count(_mtp_key(keys), default=0, least=0),
        context_tokens=keys.optional("max_position_embeddings", most=LONGEST),
        weight_dtype=weight_dtype(keys),
        quantised=quantised(keys, sum(run.count for run in runs)),
        rest_dtype=rest_dtype(keys),
        others=family.others(keys),
        interleaved=len(runs) > len(layers),
    )


def is_modelled(config: Mapping[str, Any]) -> bool:
    """Whether the family is described here; the rest of the config may still be refused."""
    return _language_model(Keys(config, "")).config.get("model_type") in FAMILIES


def _language_model(keys: Keys) -> Keys:
    """The fields of the language model; what it does not state itself, such as the quantisation, is the whole file's."""
    text = keys.config.get("text_config")
    if not isinstance(text, Mapping):
        return keys
    return replace(keys, config={**keys.config, **text}, within="$.text_config")


def _mtp_key(keys: Keys) -> str:
    own = "mtp_num_hidden_layers"
    return own if keys.has(own) else "num_nextn_predict_layers"


def _even(run: LayerGroup, keys: Keys) -> LayerGroup:
    """Mark experts whose loads a bias evened in training (DeepSeek-V3, section 2.1.2, https://arxiv.org/abs/2412.19437)."""
    biased = any(keys.get(key) is True for key in ("use_routing_bias", "moe_router_enable_expert_bias"))  # fmt: skip
    if isinstance(run.feed_forward, Moe) and (biased or keys.get("topk_method") == "noaux_tc"):
        return replace(run, feed_forward=replace(run.feed_forward, balanced=True))
    return run


def _merged(runs: Iterable[LayerGroup]) -> Layers:
    """Groups of like layers, wherever they stand, in the order they first appear."""
    found: dict[LayerGroup, int] = {}
    for run in runs:
        kind = replace(run, count=1)
        found[kind] = found.get(kind, 0) + run.count
    return tuple(replace(kind, count=count) for kind, count in found.items())


def _refuse_experts(keys: Keys, layers: Layers) -> None:
    """A file that states experts where its family has none would be read as a small part of itself."""
    if any(isinstance(group.feed_forward, Moe) for group in layers):
        return
    for key in ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"):
        experts = keys.get(key)
        if isinstance(experts, int) and experts > 1:
            family = keys.text("model_type")
            raise keys.wrong(key=key, accepted=f"none (model_type {family} has no experts here)")


def _refuse_windows(keys: Keys) -> None:
    window = keys.get("sliding_window")
    context = keys.optional("max_position_embeddings", most=LONGEST)
    in_use = keys.flag("use_sliding_window", default=True)
    narrow = not isinstance(window, int) or context is None or window < context
    if window is not None and in_use and narrow:
        raise keys.wrong(
            key="sliding_window",
            accepted="null (windows are not modelled for this family)",
        )
