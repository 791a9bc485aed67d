"""Every claim of the field's systems, and what the catalog says of it: reproduced, contradicted, or untestable and why.

Three kinds of claim are judged here. A pod's headline is held against the sum of its parts. A digest's figure is held against the
fact on record, or against the parts. A claim without a figure, or about what the catalog does not hold, is untestable, with
the reason; one of serving names the published figure (`point`) whose prediction `polypod claims` holds it against.

A figure on record that is itself a claim reproduces nothing: where both agree the verdict is untestable, and says so.
"""

from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Literal

import msgspec

from polypod.catalog.claims import sum_of_parts
from polypod.catalog.load import listing, load_accelerator, load_any, load_pod
from polypod.catalog.schema import Claim, Dtype, Fact, Kind, Pod, Positive, Strict
from polypod.errors import FileError, InputError

Ruling = Literal["reproduced", "contradicted", "untestable"]

TOLERANCE_FRACTION = 0.10
"""A headline is rounded; a tenth is more than rounding."""


class Digested(Strict, frozen=True, kw_only=True):
    """One sentence of a news digest. It names what tests it, or why nothing does."""

    id: str
    digest: str
    says: Annotated[str, msgspec.Meta(min_length=4)]
    system: str | None = None
    value: Positive | None = None
    unit: Literal["s", "bytes", "bytes_per_s", "flops_per_s", "ratio", "accelerators"] | None = None
    fact: str | None = None  # path of the fact on record, below the system's entry
    parts: Literal["flops_per_s", "memory_bytes", "memory_bytes_per_s"] | None = None
    dtype: Dtype | None = None
    tolerance_fraction: Annotated[float, msgspec.Meta(ge=0, lt=1)] = TOLERANCE_FRACTION
    untestable: str | None = None
    point: str | None = (
        None  # a published figure of serving, whose prediction rules where there is one
    )
    note: str | None = None


class _Digests(Strict, frozen=True, kw_only=True):
    claims: tuple[Digested, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A claim and its ruling. `claimed` and `ours` are in SI, both None where there is no figure.

    `point` names a figure whose prediction may rule instead; `predicted` says that one did.
    """

    id: str
    system: str | None
    says: str
    source: str
    unit: str | None
    claimed: float | None
    ours: float | None
    ruling: Ruling
    reason: str
    point: str | None = None
    predicted: bool = False


def all_verdicts() -> list[Verdict]:
    """Pods' headlines, by pod; then what the digests say."""
    pods = [load_pod(entry.id) for entry in listing() if entry.kind == "pod"]
    return [*(verdict for pod in pods for verdict in headlines(pod)), *digests()]


def headlines(pod: Pod) -> list[Verdict]:
    """A pod's claims against the sum of its parts."""
    return [_headline(pod, number, claim) for number, claim in enumerate(pod.claims, start=1)]


def digests() -> list[Verdict]:
    """The digests' claims against the catalog. Raises `FileError` for one that names neither a test nor a reason."""
    file = resources.files("polypod.catalog").joinpath("data", "claims", "digests.toml")
    try:
        read = msgspec.toml.decode(file.read_bytes(), type=_Digests)
    except msgspec.DecodeError as error:
        raise FileError(str(file), str(error)) from error
    return [_digested(claim, str(file)) for claim in read.claims]


def judged(
    claimed: float, ours: float, tolerance_fraction: float = TOLERANCE_FRACTION
) -> tuple[Ruling, str]:
    """Rule on two figures.

    >>> judged(300e15, 288.8e15)
    ('reproduced', 'ours is 3.7 % less')
    >>> judged(630e15, 307e15)
    ('contradicted', 'ours is 51 % less')
    """
    off = ours / claimed - 1
    ruling: Ruling = "reproduced" if abs(off) <= tolerance_fraction + 1e-12 else "contradicted"
    if off == 0:
        return ruling, "the same"
    return ruling, f"ours is {100 * abs(off):.2g} % {'more' if off > 0 else 'less'}"


def _headline(pod: Pod, number: int, claim: Claim) -> Verdict:
    accelerator = None if pod.accelerator is None else load_accelerator(pod.accelerator)
    ours = sum_of_parts(claim, pod, accelerator)
    if ours is None:
        ruling: Ruling = "untestable"
        reason = "a part of it is not on record"
    else:
        ruling, reason = judged(claim.value, ours)
        reason = f"{reason}, the sum of {pod.accelerators:,} {pod.accelerator}"
    return Verdict(
        id=f"{pod.id}.{number}",
        system=pod.id,
        says=claim.what,
        source=claim.source,
        unit="bytes_per_s"
        if claim.quantity.startswith("link")
        else claim.quantity.removeprefix("memory_"),
        claimed=claim.value,
        ours=ours,
        ruling=ruling,
        reason=_with(claim.note, reason),
    )


def _digested(claim: Digested, file: str) -> Verdict:
    ours, ruling, reason = _rule(claim, file)
    return Verdict(
        id=claim.id,
        system=claim.system,
        says=claim.says,
        source=f"news digest {claim.digest}",
        unit=claim.unit,
        claimed=claim.value,
        ours=ours,
        ruling=ruling,
        reason=_with(claim.note, reason),
        point=claim.point,
    )


def _rule(claim: Digested, file: str) -> tuple[float | None, Ruling, str]:
    if claim.untestable is not None:
        return None, "untestable", claim.untestable
    if claim.system is None or claim.value is None or not (claim.fact or claim.parts):
        raise FileError(
            file, f"claim {claim.id!r} names neither what tests it nor why nothing does"
        )
    if claim.parts is not None:
        return _by_parts(claim, claim.system, claim.value)
    found, kind = _on_record(claim.system, str(claim.fact))
    if found is None:
        return None, "untestable", f"{claim.fact} of {claim.system} is not on record"
    ruling, reason = judged(claim.value, found, claim.tolerance_fraction)
    if ruling == "reproduced" and kind in {"claimed", "estimated"}:
        return found, "untestable", f"{reason}, but the figure on record is itself {kind}"
    return found, ruling, f"{reason}, {kind or 'counted'}"


def _by_parts(claim: Digested, system: str, value: float) -> tuple[float | None, Ruling, str]:
    pod = load_pod(system)
    whole = Claim(
        what=claim.says, quantity=claim.parts or "flops_per_s", value=value, source="news digest", kind="claimed", dtype=claim.dtype
    )  # fmt: skip
    ours = sum_of_parts(
        whole, pod, None if pod.accelerator is None else load_accelerator(pod.accelerator)
    )
    if ours is None:
        return None, "untestable", "a part of it is not on record"
    ruling, reason = judged(value, ours, claim.tolerance_fraction)
    return ours, ruling, f"{reason}, the sum of {pod.accelerators:,} {pod.accelerator}"


def _on_record(system: str, path: str) -> tuple[float | None, Kind | None]:
    """Walk from an entry to a fact: attributes, keys, and tiers by their names."""
    at: object = load_any(system)
    for step in path.split("."):
        if isinstance(at, dict):
            at = at.get(step)
        elif isinstance(at, tuple):
            at = next((one for one in at if getattr(one, "name", None) == step), None)
        else:
            at = getattr(at, step, None)
    if isinstance(at, Fact):
        return at.value, at.kind
    if isinstance(at, int | float):
        return float(at), None
    if at is None:
        return None, None
    msg = f"{path!r} of {system} is no figure"
    raise InputError(msg)


def _with(note: str | None, reason: str) -> str:
    return reason if note is None else f"{reason}; {note}"
