"""What a probe is: how one vendor's tool is asked, and how its answers are read.

One file of `probes/` for each vendor has a `PROBE`. What it does not do is all the rest: looking at the bus, loading libraries, finding tools, laying
cards beside functions of the bus, naming catalog entries and variables.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from polypod.serve.devices.asking import Ask
from polypod.serve.devices.found import Reading
from polypod.serve.devices.pci import PciFunction


class Probe(Protocol):
    """One vendor's way to be asked."""

    def from_cli(self, ask: Ask) -> Reading:
        """Ask the vendor's tool. Raises `UnansweredError`."""

    def from_kernel(self, root: Path, functions: tuple[PciFunction, ...]) -> Reading | None:
        """Read what the driver tells in the kernel's files below `root`; None where this vendor's tells nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A probe made of two functions; either may be missing."""

    cli: Callable[[Ask], Reading] | None = None
    kernel: Callable[[Path, tuple[PciFunction, ...]], Reading | None] | None = None

    def from_cli(self, ask: Ask) -> Reading:
        assert self.cli is not None, f"{ask.vendor.vendor} names a tool and its probe cannot ask it"
        return self.cli(ask)

    def from_kernel(self, root: Path, functions: tuple[PciFunction, ...]) -> Reading | None:
        return self.kernel(root, functions) if self.kernel is not None else None


def probe_of(vendor: str) -> Probe:
    """The probe of a vendor, imported when it is needed."""
    module = importlib.import_module(f"polypod.serve.devices.probes.{vendor}")
    probe: Probe = module.PROBE
    return probe
