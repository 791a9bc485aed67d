"""Take a person's own chip, pod, link or model into their catalog: checked, and with what it lacks for which verb."""

from dataclasses import dataclass
from pathlib import Path

from polypod.catalog.load import (
    EntryKind,
    ModelEntry,
    file_name,
    is_shipped,
    load_accelerator,
    load_file,
    own_folder,
)
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


def add(source: Path, *, replace: bool = False) -> Added:
    """Check a file and keep a copy of it in the person's catalog.

    Raises `FileError` for a file that is broken, or that would overwrite another of the person's own without `replace`.
    """
    entry = load_file(source)
    if isinstance(entry, ModelEntry):
        raise FileError(
            source,
            "is a model's config.json; give its path to plan and estimate, nothing needs to be added",
        )
    kind = _kind(entry)
    folder = own_folder(kind)
    target = folder / file_name(entry.id)
    if target.exists() and not replace:
        raise FileError(target, f"is there already; add {source} with --replace to take its place")
    part = target.with_name(f".{target.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_bytes(source.read_bytes())
        part.replace(target)
    except OSError as error:
        raise FileError(target, f"cannot be written: {error.strerror}") from error
    return Added(
        id=entry.id,
        kind=kind,
        path=target,
        hides_shipped=is_shipped(kind, entry.id),
        lacks=tuple(lacks(entry)),
    )


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
