"""What the conformance kit holds, counted: the package's data file and docs/devices.md. Run after adding a case; `--check` only compares."""

import sys
import tomllib
from collections import Counter
from pathlib import Path

from polypod.serve.devices.conformance import Count, counts_toml
from polypod.serve.devices.vendor import COUNTS, Vendor, shipped_vendors

ROOT = Path(__file__).parent.parent
KIT = ROOT / "tests/conformance"
DATA = ROOT / "src/polypod/serve/devices/data" / COUNTS
PAGE = ROOT / "docs/devices.md"


def counts(kit: Path = KIT) -> dict[str, Count]:
    """Cases by vendor and provenance."""
    found: dict[str, Counter[str]] = {}
    for path in sorted(kit.glob("*/*/case.toml")):
        case = tomllib.loads(path.read_text())
        found.setdefault(path.parts[-3], Counter())[case["provenance"]] += 1
    return {vendor: Count(**dict(numbers)) for vendor, numbers in found.items()}


def page(found: dict[str, Count]) -> str:
    """docs/devices.md."""
    rows = [_row(vendor, found.get(vendor.vendor, Count())) for vendor in shipped_vendors()]
    mixed = found.get("mixed", Count())
    total = [sum(getattr(one, name) for one in found.values()) for name in NUMBERS]
    return (
        HEAD
        + "\n".join(
            [
                *rows,
                f"| hosts with devices of several vendors | | | {_numbers(mixed)} | no |",
                f"| **all** | | | {' | '.join(map(str, total))} | |",
            ]
        )
        + TAIL
    )


NUMBERS = ("cases", "captured", "transcribed", "reconstructed")

HEAD = """\
# Devices of every vendor, and what each probe was tried on

Written by `scripts/devices.py`; a test compares it with the kit. How a machine is looked through is in [how-to/devices.md](how-to/devices.md), how a vendor is
added in [how-to/add-a-vendor.md](how-to/add-a-vendor.md).

Polypod's maintainers have none of these accelerators. **run here** says whether a probe has run on real hardware of the vendor; where it says no, the probe was tried
on recorded outputs only, and a driver that prints another form will be reported as a `parse_error` with the line. The others count recorded machines:

* **captured**: the source presents it as a real tool's output, under a licence that lets it be copied (named in each `case.toml`);
* **transcribed**: such an output retyped;
* **drawn**: written for this kit in the form a tool prints, with values of our own; all outputs whose licence is not known or is copyleft were redrawn so.

A library that is named is asked before the tool, through ctypes in a child process; its functions and layouts were read from public headers or bindings and tried
on fakes compiled from the kit's C files. "-" means that no public description was found that could be checked, so the tool is the only way.

| vendor | tools | library | cases | captured | transcribed | drawn | run here |
|---|---|---|--:|--:|--:|--:|---|
"""

TAIL = """

The CPU (cores, NUMA nodes, AMX, AVX-512, SVE, limits of containers) is found in the kernel's files and measured; that part runs on real hardware in every test run.
"""


def _row(vendor: Vendor, count: Count) -> str:
    tools = ", ".join(f"`{tool}`" for tool in vendor.cli.tools) or "the kernel's files"
    library = f"`{_library(vendor)}`" if vendor.library.interface else "-"
    return (
        f"| {vendor.name} | {tools} | {library} | {_numbers(count)} | {vendor.ran_here or 'no'} |"
    )


def _library(vendor: Vendor) -> str:
    """The file's name; of a library that is only tried in its own folder, that of the first path."""
    return (*vendor.library.names, *vendor.library.paths)[0].rsplit("/", 1)[-1]


def _numbers(count: Count) -> str:
    return " | ".join(str(getattr(count, name)) for name in NUMBERS)


def main(arguments: list[str]) -> int:
    found = counts()
    wanted = {DATA: counts_toml(found), PAGE: page(found)}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is stale; run scripts/devices.py")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
