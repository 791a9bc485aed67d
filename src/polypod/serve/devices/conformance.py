"""What the conformance kit holds for each vendor, as a small file in the package: the kit itself is in the repository only."""

import tomllib
from collections.abc import Mapping

import msgspec

from polypod.serve.devices.vendor import COUNTS, DATA


class Count(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Recorded machines of one vendor by provenance: captured from a real tool, retyped, or drawn in a tool's form."""

    captured: int = 0
    transcribed: int = 0
    reconstructed: int = 0

    @property
    def cases(self) -> int:
        return self.captured + self.transcribed + self.reconstructed


class Counts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts by vendor; "mixed" are machines with devices of several."""

    vendors: dict[str, Count]


def read_counts() -> Counts:
    """The counts that came with this version."""
    text = (DATA / COUNTS).read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), Counts)


def counts_toml(counts: Mapping[str, Count]) -> str:
    """The file, as `scripts/devices.py` writes it."""
    lines = ["# Written by scripts/devices.py from tests/conformance; a test compares them."]
    for vendor, count in sorted(counts.items()):
        lines += ["", f"[vendors.{vendor}]"]
        lines += [f"{name} = {getattr(count, name)}" for name in ("captured", "transcribed", "reconstructed")]  # fmt: skip
    return "\n".join(lines) + "\n"
