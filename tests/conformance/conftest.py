"""Fake vendor libraries, compiled once a run from the C files beside this one."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.conformance.battery")

FAKES = Path(__file__).parent / "fakes"
DEFINES = {"hgml": ["-DPREFIX=hgml"], "ixml": ["-DNO_FLAGS"]}
SOURCES = {"hgml": "nvml", "ixml": "nvml"}


@pytest.fixture(scope="session")
def fake_library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The shared object that stands in for an interface."""
    folder = tmp_path_factory.mktemp("fakes")

    def compiled(interface: str) -> Path:
        target = folder / f"{interface}.so"
        if not target.exists():
            source = FAKES / f"{SOURCES.get(interface, interface)}.c"
            flags = ["-shared", "-fPIC", "-O0", "-Wall"]
            command = ["cc", *flags, *DEFINES.get(interface, []), "-o", str(target), str(source)]
            subprocess.run(command, check=True)
        return target

    return compiled
