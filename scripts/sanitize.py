"""Play random scenarios through the simulator's core, compiled with the address and undefined-behaviour sanitizers.

    python scripts/sanitize.py [FIRST] [LAST]

The scenarios are those of tests/simulate/test_compiled.py. Ends with the sanitizer's words and a code above 0 where it finds something.
"""

import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from polypod.engine.native import build
from polypod.simulate import compiled

ROOT = Path(__file__).parent.parent
FLAGS = (
    "-std=c11",
    "-O1",
    "-g",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
INSIDE = "POLYPOD_SANITIZED_CORE"


def outside(first: str, last: str) -> int:
    """Compile, and begin again with the sanitizer's library loaded first."""
    found = build.compiler()
    assert found is not None, "no C compiler is here"
    with tempfile.TemporaryDirectory() as folder:
        core = Path(folder) / "core.so"
        source = ROOT / "src/polypod/engine/native/core.c"
        subprocess.run(
            [
                found,
                *FLAGS,
                "-ffp-contract=off",
                "-fPIC",
                "-shared",
                "-o",
                str(core),
                str(source),
                "-lm",
            ],
            check=True,
        )
        runtime = subprocess.run(
            [found, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
        ).stdout.strip()
        own = {INSIDE: str(core), "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
        return subprocess.run(
            [sys.executable, __file__, first, last], env=os.environ | own, check=False
        ).returncode


def inside(first: int, last: int) -> None:
    spec = importlib.util.spec_from_file_location(
        "scenarios", ROOT / "tests/simulate/test_compiled.py"
    )
    assert spec is not None
    assert spec.loader is not None
    scenarios: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scenarios)
    core = ctypes.CDLL(os.environ[INSIDE])
    compiled.library = lambda: core
    events = 0
    for seed in range(first, last):
        events += compiled.play_compiled(scenarios.scenario(seed)).events
    print(f"{last - first} scenarios, {events:,} events: nothing found")


if __name__ == "__main__":
    bounds = (sys.argv[1:] + ["0", "200"][len(sys.argv) - 1 :])[:2]
    if INSIDE in os.environ:
        inside(int(bounds[0]), int(bounds[1]))
    else:
        sys.exit(outside(*bounds))
