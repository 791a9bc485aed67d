"""Take a person's own chip, pod, link or model into their catalog: checked, and with what it lacks for which verb.

A model is its config.json, kept under a name; whether its architecture is understood is for `workload` to say.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from polypod.catalog.load import (
    EntryKind,
    ModelEntry,
    file_name,
    forget_own,
    is_shipped,
    known_names,
    link_speeds,
    load_accelerator,
    load_file,
    own_folder,
)
from polypod.catalog.parsed import write_whole
from polypod.catalog.plausible import Doubt, doubts_beside, doubts_of_speed
from polypod.catalog.schema import Accelerator, Interconnect, Pod
from polypod.errors import FileError, InputError, UnknownNameError


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What was taken in, where it is kept, whose place it takes, and what it lacks."""

    id: str
    kind: EntryKind
    path: Path
    hides_shipped: bool
    lacks: tuple[str, ...]


def add(source: Path, *, replace: bool = False, name: str | None = None) -> Added:
    """Check a file and keep a copy of it in the person's catalog. `name` is what a model is called; others have their id.

    Raises `FileError` for a file that is broken, whose figures do not go together, or that would overwrite another of the person's own
    without `replace`; `InputError` for a name where there is an id, or that is none.
    """
    entry = load_file(source)
    if isinstance(entry, ModelEntry):
        return _add_model(entry, name=name or entry.name, replace=replace)
    if name is not None:
        msg = f"--name {name!r} is for a model's config.json; {source} says itself that it is {entry.id}"
        raise InputError(msg)
    for doubt in _doubts_beside_the_catalog(entry):
        raise FileError(source, str(doubt))
    kind = _kind(entry)
    target = own_folder(kind) / file_name(entry.id)
    _keep(source, target, replace=replace)
    return Added(
        id=entry.id,
        kind=kind,
        path=target,
        hides_shipped=is_shipped(kind, entry.id),
        lacks=tuple(lacks(entry)),
    )


def _add_model(entry: ModelEntry, *, name: str, replace: bool) -> Added:
    if not _MODEL_NAME.fullmatch(name):
        msg = f"{name!r} names no model; a name is letters, digits, dots and dashes, with an owner before a slash or without: --name acme/one-7b"
        raise InputError(msg)
    target = own_folder("model") / file_name(name).replace(".toml", ".json")
    _keep(Path(entry.path), target, replace=replace)
    return Added(
        id=name,
        kind="model",
        path=target,
        hides_shipped=is_shipped("model", name),
        lacks=(),
    )


_MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def _keep(source: Path, target: Path, *, replace: bool) -> None:
    """Copy a file whole or not at all."""
    if target.exists() and not replace:
        raise FileError(target, f"is there already; add {source} with --replace to take its place")
    try:
        write_whole(target, source.read_bytes())
    except OSError as error:
        raise FileError(target, f"cannot be written: {error.strerror}") from error
    forget_own()


def _doubts_beside_the_catalog(entry: Accelerator | Pod | Interconnect) -> list[Doubt]:
    """What does not go with the entries that this one names."""
    if isinstance(entry, Accelerator) and entry.scale_up:
        ports = entry.scale_up
        return doubts_of_speed(ports.name, "scale_up.bytes_per_s", ports.bytes_per_s, link_speeds())
    if isinstance(entry, Pod) and entry.accelerator and entry.accelerator in known_names():
        return doubts_beside(entry, load_accelerator(entry.accelerator))
    return []


def lacks(entry: Accelerator | Pod | Interconnect) -> list[str]:
    """What an entry would need for which verb.

    >>> lacks(load_accelerator("biren-br106"))[0]
    'memory_bytes: plan and estimate need it'
    """
    if isinstance(entry, Accelerator):
        return _accelerator_lacks(entry)
    return _pod_lacks(entry) if isinstance(entry, Pod) else []


def _accelerator_lacks(entry: Accelerator) -> list[str]:
    found = [
        f"{key}: plan and estimate need it"
        for key in ("memory_bytes", "memory_bytes_per_s", "peak_flops_per_s")
        if not getattr(entry, key)
    ]
    if entry.peak_flops_per_s and not {"bf16", "fp16"} & set(entry.peak_flops_per_s):
        found.append(
            "peak_flops_per_s.bf16 or fp16: 16-bit models, and the 16-bit parts of others, need it"
        )
    if entry.scale_up is None:
        found.append(
            "scale_up: without it, or a pod of this accelerator, only one can be planned on at a time"
        )
    if entry.power_w is None:
        found.append("power_w: nothing can be said about energy")
    return found


def _pod_lacks(entry: Pod) -> list[str]:
    found = []
    if entry.accelerator is None:
        found.append("accelerator: plan and estimate need it")
    else:
        try:
            chip = load_accelerator(entry.accelerator)
        except (UnknownNameError, InputError):
            found.append(f"accelerator {entry.accelerator!r} is in no catalog: add its file too")
        else:
            found += [f"{entry.accelerator}: {what}" for what in lacks(chip) if "need it" in what]
    for tier in entry.tiers:
        if tier.bytes_per_s is None:
            found.append(f"tier {tier.name!r} has no bytes_per_s: nothing is planned across it")
        elif tier.latency_s is None:
            found.append(f"tier {tier.name!r} has no latency_s: one is assumed, and said so")
    if entry.power_w is None:
        found.append("power_w: nothing can be said about energy")
    return found


def _kind(entry: Accelerator | Pod | Interconnect) -> EntryKind:
    if isinstance(entry, Accelerator):
        return "accelerator"
    return "pod" if isinstance(entry, Pod) else "link"
