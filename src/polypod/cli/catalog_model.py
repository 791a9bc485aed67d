"""`polypod catalog show MODEL`: what a model is made of, what it costs to keep and to run, and which chips hold it."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any, Final

import msgspec

from polypod import units
from polypod.catalog.interop import abilities_of, engines_on
from polypod.catalog.load import ModelEntry, listing, load_accelerator
from polypod.catalog.market_schema import STATES
from polypod.cli.cited import Sources
from polypod.cli.figures import Figure, figures
from polypod.cost.holding import Holding, holdings, sequence_tokens
from polypod.cost.steptime import causal_pairs
from polypod.report.tables import entry
from polypod.workload.config import read_model
from polypod.workload.forward import StepShape, step_ops
from polypod.workload.layout import Layout
from polypod.workload.memory import weight_bytes_per_rank
from polypod.workload.model import (
    Compressed,
    Dense,
    LayerGroup,
    Mixer,
    Mla,
    Model,
    Recurrent,
    active_parameters,
    cache_bytes_per_sequence,
    kv_bytes_per_token,
    mtp_parameters,
    parameters,
    state_bytes_per_sequence,
)
from polypod.workload.precision import KEPT, Precision, element_bytes

WEIGHTS: Final = ("bf16", "fp8", "int4")
CACHES: Final = ("bf16", "fp8")
CONTEXTS: Final = (1024, 8192, 65536)  # tokens

_FIDELITY: Final = {
    "verbatim": "the published file, as the source ships it",
    "rebuilt": "rebuilt by the source: not the published file as it stands",
    "class-defaults": "defaults of a class in the source: not a published file",
    "shape-only": "a shape alone: no published file is behind it",
}
_KEPT: Final = {
    "matrices": "embeddings, head, norms, biases and routers",
    "feed-forward": "embeddings, head, norms, biases, routers and attention",
    "experts": "embeddings, head, norms, biases, routers, attention and all feed-forwards but routed experts",
}
_GOOD: Final = STATES[:3]  # supported, experimental, reported
_UNCHECKED: Final = (
    "said of the chip: whether an engine runs this architecture there is not checked"
)


def text(found: ModelEntry) -> Iterator[str]:
    model = read_model(found.config, found.name, found.path)
    card = found.card
    yield f"{model.name} ({model.model_type})"
    if card and card.aliases:
        yield entry("", f"also called {', '.join(card.aliases)}", indent=2)
    yield ""
    yield from (entry(label, told, indent=20) for label, told in _shape(model))
    yield from (entry(label, told, indent=20) for label, told in _costs(model))
    yield from _origin(found)
    held = _held(model)
    yield f"\nfewest cards that hold it and one sequence of {sequence_tokens(model):,} tokens"
    yield from _cards(held)
    yield "\nengines on record for these chips"
    yield from (
        entry("", f"{', '.join(chips)}: {', '.join(names) or 'none'}", indent=2)
        for names, chips in _engines(held)
    )
    yield entry("", _UNCHECKED, indent=2)
    yield from _abilities_text(model, held)
    yield from _on_record(found)


def _origin(found: ModelEntry) -> Iterator[str]:
    card = found.card
    if card is None:
        yield entry("origin", found.path, indent=20)
        return
    yield entry("origin", f"{card.source} ({card.fidelity}, {card.licence})", indent=20)
    if card.fidelity != "verbatim":
        yield entry("", _FIDELITY[card.fidelity], indent=20)
    if card.note:
        yield entry("", card.note, indent=20)


def _on_record(found: ModelEntry) -> Iterator[str]:
    if found.card is None:
        return
    sources = Sources()
    yield "\non record"
    listed = [
        Figure("parameters", found.card.parameters, "tokens"),
        Figure("active parameters", found.card.active_parameters, "tokens"),
        Figure("cache per token, bf16", found.card.kv_bytes_per_token_bf16, "bytes"),
    ]
    yield from figures([figure for figure in listed if figure.fact], sources)
    yield from sources.lines()


def _shape(model: Model) -> Iterator[tuple[str, str]]:
    yield "parameters", f"{parameters(model):,}"
    if model.is_moe:
        yield "active", f"{active_parameters(model):,} per token"
    if model.mtp_layers:
        yield (
            "MTP layers",
            f"{model.mtp_layers}, of {mtp_parameters(model):,} parameters, not counted above",
        )
    yield "layers", f"{model.num_layers}"
    yield from (("", f"{group.count} of {kind_of(group)}") for group in model.layers)
    yield (
        "hidden, vocabulary",
        f"{model.hidden:,}, {model.vocab:,}{' (tied)' if model.tied else ''}",
    )
    context = f"{model.context_tokens:,} tokens" if model.context_tokens else "no limit stated"
    yield "context", context


def kind_of(group: LayerGroup) -> str:
    """A layer in words: what mixes tokens, and what follows."""
    parts = [_mixer(group.attention), _feed_forward(group)]
    return " and ".join(part for part in parts if part)


def _mixer(mixer: Mixer | None) -> str:
    if mixer is None:
        return ""
    if isinstance(mixer, Recurrent):
        return f"recurrence ({mixer.heads:,} heads)" if mixer.key_dim else "short convolution"
    if isinstance(mixer, Compressed):
        far = f", every {mixer.ratio} further ones compressed to one" if mixer.ratio else ""
        return f"attention over {mixer.window_tokens} tokens{far}"
    sparse = f" over the best {mixer.index_topk:,} tokens" if mixer.index_topk else ""
    if isinstance(mixer, Mla):
        return f"MLA{sparse}"
    window = f" over a window of {mixer.window_tokens:,}" if mixer.window_tokens else ""
    cache = "" if mixer.own_kv else ", cache of the layer before"
    return f"GQA ({mixer.heads} heads, {mixer.kv_heads} cached{cache}){window}{sparse}"


def _feed_forward(group: LayerGroup) -> str:
    feed_forward = group.feed_forward
    if feed_forward is None:
        return ""
    if isinstance(feed_forward, Dense):
        return f"a feed-forward of {feed_forward.intermediate:,}"
    shared = f", {feed_forward.shared_intermediate:,} columns beside them for all tokens"
    return (
        f"{feed_forward.experts_per_token} of {feed_forward.experts} experts of {feed_forward.expert_intermediate:,}"
        f"{shared if feed_forward.shared_intermediate else ''}"
    )


def costs(model: Model) -> dict[str, Any]:
    """What a model takes, in bytes and FLOPs, by number format and by context."""
    return {
        "weights_bytes": {dtype: _weights_bytes(model, dtype) for dtype in WEIGHTS},
        "kept_in_bf16": _kept_in_bf16(model),
        "rest_dtype": model.rest_dtype,
        "kv_bytes_per_token": {
            dtype: kv_bytes_per_token(model, element_bytes(dtype)) for dtype in CACHES
        },
        "state_bytes_per_sequence": state_bytes_per_sequence(model),
        "cache_bytes_per_sequence_bf16": {
            tokens: cache_bytes_per_sequence(model, element_bytes("bf16"), tokens)
            for tokens in CONTEXTS
        },
        "flops_per_generated_token": {
            tokens: flops_per_generated_token(model, tokens) for tokens in CONTEXTS
        },
        "flops_per_prompt_token": {
            tokens: flops_per_prompt_token(model, tokens) for tokens in CONTEXTS
        },
    }


def _kept_in_bf16(model: Model) -> str:
    return _KEPT[model.quantised if model.rest_dtype == KEPT else "matrices"]


def _weights_bytes(model: Model, dtype: str) -> float:
    return float(weight_bytes_per_rank(model, Layout(), Precision(weights=dtype, kv="bf16")))


def flops_per_generated_token(model: Model, context_tokens: int) -> float:
    """All operators of a decode step of one sequence that has so many tokens in its cache; the head is among them."""
    shape = StepShape(decode_sequences=1, kv_tokens=context_tokens)
    ops = step_ops(model, Layout(), Precision(weights=KEPT, kv=KEPT), shape)
    return float(sum(op.count * op.flops for op in ops))


def flops_per_prompt_token(model: Model, prompt_tokens: int) -> float:
    """The mean over a prompt of so many tokens computed at once: each attends to those before it, the last goes through the head."""
    pairs = causal_pairs(prompt_tokens)
    shape = StepShape(prompt_tokens=prompt_tokens, pairs=pairs, finished_prompts=1)
    ops = step_ops(model, Layout(), Precision(weights=KEPT, kv=KEPT), shape)
    return float(sum(op.count * op.flops for op in ops)) / prompt_tokens


def _costs(model: Model) -> Iterator[tuple[str, str]]:
    found = costs(model)
    yield "stored in", model.weight_dtype
    sizes = found["weights_bytes"].items()
    yield (
        "weights",
        ", ".join(f"{units.show(size, 'bytes', 4)} in {dtype}" for dtype, size in sizes),
    )
    rest = f", other matrices but routed experts in {model.rest_dtype} where that is wider"
    beside = rest if model.rest_dtype != KEPT else ""
    yield "", f"in each, {found['kept_in_bf16']} stay in bf16{beside}"
    caches = found["kv_bytes_per_token"].items()
    past = " past every window" if model.is_bounded else ""
    told = ", ".join(f"{size:,.0f} bytes in {dtype}" for dtype, size in caches)
    yield "cache per token", f"{told}{past}"
    if found["state_bytes_per_sequence"]:
        yield "state of a sequence", units.show(found["state_bytes_per_sequence"], "bytes", 4)
    kept = found["cache_bytes_per_sequence_bf16"].items()
    yield (
        "cache of a sequence",
        ", ".join(f"{units.show(size, 'bytes')} at {tokens:,}" for tokens, size in kept),
    )
    yield "a generated token", f"{_flops(found['flops_per_generated_token'])} tokens of context"
    yield (
        "a prompt's token",
        f"{_flops(found['flops_per_prompt_token'])} tokens of prompt, the mean",
    )


def _flops(by_tokens: dict[int, float]) -> str:
    return ", ".join(
        f"{units.significant(each / 1e9)} GFLOP at {tokens:,}" for tokens, each in by_tokens.items()
    )


def _held(model: Model) -> list[Holding]:
    chips = [load_accelerator(one.id) for one in listing() if one.kind == "accelerator"]
    return holdings(model, chips)


def _cards(held: list[Holding]) -> Iterator[str]:
    """One paragraph for each number of cards and format of the weights."""
    fits = [one for one in held if one.cards]
    ordered = sorted(fits, key=lambda one: (one.cards or 0, one.weights or "", one.chip))
    for (cards, weights), group in groupby(ordered, key=lambda one: (one.cards, one.weights)):
        yield entry(f"  {cards}, {weights}", ", ".join(one.chip for one in group), indent=20)
    lacking = {
        "more than tp can": [one.chip for one in held if not one.cards and one.weights],
        "no fitting peak": [one.chip for one in held if one.weights is None],
    }
    for label, chips in lacking.items():
        if chips:
            yield entry(f"  {label}", ", ".join(chips), indent=20)


def _engines(held: list[Holding]) -> list[tuple[tuple[str, ...], list[str]]]:
    """Chips by the engines that are said to run on them, the best supported first; the most chips first."""
    found: dict[tuple[str, ...], list[str]] = {}
    for one in held:
        if one.cards:
            answers = engines_on(one.chip)
            names = tuple(answer.engine for answer in answers if answer.state in _GOOD)
            found.setdefault(names, []).append(one.chip)
    return sorted(found.items(), key=lambda item: (not item[0], -len(item[1]), item[1]))


def needs(model: Model) -> dict[str, str]:
    """What the architecture asks of an engine and the market's records speak of, by ability."""
    mixers = [group.attention for group in model.layers]
    mla = {"mla": "MLA"} if any(isinstance(mixer, Mla) for mixer in mixers) else {}
    return mla | ({"moe_ep": "expert parallelism"} if model.is_moe else {})


def _abilities(model: Model, chip: str) -> dict[str, str]:
    found = abilities_of(chip)
    return {name: found[name].state if name in found else "unknown" for name in needs(model)}


def _abilities_text(model: Model, held: list[Holding]) -> Iterator[str]:
    """The exceptions: where no record says that the chip's engines can what the architecture asks."""
    for name, told in needs(model).items():
        chips = [
            one.chip for one in held if one.cards and _abilities(model, one.chip)[name] not in _GOOD
        ]
        where = f"all but {', '.join(chips)}" if chips else "all of them"
        yield entry("", f"{told}: on record on {where}", indent=2)


def as_json(found: ModelEntry) -> dict[str, Any]:
    model = read_model(found.config, found.name, found.path)
    raw: dict[str, Any] = {
        "kind": "model",
        "id": found.name,
        "card": msgspec.to_builtins(found.card),
        "fidelity": _FIDELITY[found.card.fidelity] if found.card else "a file of your own",
        "computed": {
            "parameters": parameters(model),
            "active_parameters": active_parameters(model),
            "mtp_parameters": mtp_parameters(model),
            "kv_bytes_per_token_bf16": kv_bytes_per_token(model, 2),
            "layers": model.num_layers,
            "context_tokens": model.context_tokens,
            "weight_dtype": model.weight_dtype,
        },
        "layers": [{"count": group.count, "kind": kind_of(group)} for group in model.layers],
        "costs": costs(model),
        "sequence_tokens": sequence_tokens(model),
        "chips": [_chip_json(model, one) for one in _held(model)],
        "engines_note": _UNCHECKED,
    }
    return raw | {"config": found.config}


def _chip_json(model: Model, held: Holding) -> dict[str, Any]:
    engines = engines_on(held.chip) if held.cards else []
    named = [
        {"engine": one.engine, "state": one.state, "version": one.version, "reason": one.reason}
        for one in engines
    ]
    abilities = _abilities(model, held.chip) if held.cards else {}
    return asdict(held) | {"engines": named, "abilities": abilities}
