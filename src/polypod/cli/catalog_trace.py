"""What `catalog show` prints of a model that Polypod has no description of: a trace of its code in transformers."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from polypod.catalog.load import ModelEntry
from polypod.catalog.traces import installed, keep_trace, read_trace, trace_path
from polypod.report.tables import entry, table
from polypod.workload.config import read_model
from polypod.workload.trace import trace
from polypod.workload.traced import Flops, Traced, checks, is_checked

_NOT_PLANNED = "a trace says what a model computes, not how it is cut over accelerators"


def show(found: ModelEntry, *, as_json: bool) -> str:
    """Text or one JSON object. Raises `InputError` where it cannot be traced, or what is needed for it is not installed."""
    traced = traced_model(found)
    if as_json:
        return json.dumps(trace_json(found.name, traced), indent=2, ensure_ascii=False)
    return "\n".join(trace_text(found.name, traced))


def trace_json(name: str, traced: Traced) -> dict[str, Any]:
    return {
        "kind": "traced model",
        "id": name,
        "traced": msgspec.to_builtins(traced),
        "active_parameters": traced.active_parameters,
        "cache_bytes_per_token": traced.cache_bytes_per_token,
        "cache_bytes_per_sequence": traced.cache_bytes_per_sequence,
        "checks": checks(traced),
        "is_checked": is_checked(traced),
        "can_be_planned": False,
    }


def traced_model(found: ModelEntry) -> Traced:
    """The trace of a config: kept, or made now and kept."""
    versions = installed()
    if versions is None:
        read_model(found.config, found.name, found.path)  # says what is modelled, and the way out
    assert versions is not None
    path = trace_path(found.config, versions)
    kept = read_trace(path)
    if kept is not None:
        try:
            return msgspec.json.decode(kept, type=Traced)
        except msgspec.DecodeError:
            pass  # of another version of Polypod: made anew
    made = trace(found.config)
    keep_trace(path, msgspec.json.encode(made))
    return made


def trace_text(name: str, traced: Traced) -> Iterator[str]:
    """Lines: what it is, FLOPs by kind, the laws that hold."""
    yield f"{name} ({traced.model_type}), traced"
    yield entry("", "not described by Polypod: counted by running its code without data", indent=2)
    yield ""
    yield from (entry(label, text, indent=20) for label, text in _about(traced))
    yield ""
    unit = "token" if traced.unit == "tokens" else "input"
    passes = [(f"{one.n} {unit}{'s' if one.n > 1 else ''}", one.flops) for one in traced.prompt]
    passes += [(f"1 after {one.n}", one.flops) for one in traced.decode]
    kinds = [kind for kind in Flops.__struct_fields__ if any(getattr(f, kind) for _, f in passes)]
    rows = [[kind, *(f"{getattr(f, kind) / 1e9:,.3f}" for _, f in passes)] for kind in kinds]
    header = ["GFLOP", *(label for label, _ in passes)]
    yield table(header, rows, right=range(1, len(header)))
    yield ""
    held = [name for name, holds in checks(traced).items() if holds]
    broken = [name for name, holds in checks(traced).items() if not holds]
    yield entry("checks", ", ".join(held) or "none speaks of it", indent=20)
    if broken:
        yield entry("do not hold", ", ".join(broken), indent=20)
    verdict = "yes" if is_checked(traced) else "no: do not rely on these figures"
    yield entry("counted twice alike", verdict, indent=20)
    yield entry("cannot be planned", _NOT_PLANNED, indent=20)


def _about(traced: Traced) -> Iterator[tuple[str, str]]:
    yield (
        "class",
        f"{traced.architecture} of transformers {traced.transformers}, torch {traced.torch}",
    )
    yield "parameters", f"{traced.parameters:,}"
    if traced.used_parameters != traced.parameters:
        yield "used", f"{traced.used_parameters:,} in this pass"
    if traced.expert_parameters:
        yield "active", f"{traced.active_parameters:,} per token"
    yield "weights", f"{traced.weight_bytes:,} bytes in bf16"
    if traced.decode:
        yield "cache per token", f"{traced.cache_bytes_per_token:,.0f} bytes in bf16"
        yield "and per sequence", f"{traced.cache_bytes_per_sequence:,.0f} bytes"
    if traced.how:
        yield "traced with", "; ".join(traced.how)
