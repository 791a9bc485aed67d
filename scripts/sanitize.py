"""Play random scenarios through the simulator's core, and random trials through one engine, both compiled with the address and undefined-behaviour sanitizers.

    python scripts/sanitize.py [FIRST] [LAST]

The scenarios are those of tests/simulate/test_compiled.py, the trials of tests/engine/test_compiled.py. Ends with the sanitizer's words and a code above 0 where it finds something.
"""

import ctypes
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from polypod.engine import compiled as emulated
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
        for part in ("core", "emulate"):
            source = ROOT / f"src/polypod/engine/native/{part}.c"
            made = ("-o", str(Path(folder) / f"{part}.so"), str(source), "-lm")
            subprocess.run(
                [found, *FLAGS, "-ffp-contract=off", "-fPIC", "-shared", *made], check=True
            )
        runtime = subprocess.run(
            [found, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
        ).stdout.strip()
        own = {INSIDE: folder, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
        return subprocess.run(
            [sys.executable, __file__, first, last], env=os.environ | own, check=False
        ).returncode


def inside(first: int, last: int) -> None:
    folder = Path(os.environ[INSIDE])
    core, one = (ctypes.CDLL(str(folder / f"{part}.so")) for part in ("core", "emulate"))
    compiled.library = lambda: core
    emulated.library = lambda _: one
    scenarios, trials = read("simulate"), read("engine")
    events = 0
    for seed in range(first, last):
        events += compiled.play_compiled(scenarios.scenario(seed)).events
        for phase in ("both", "prefill", "decode"):
            emulated.emulate(*trials.asked(seed, phase))
    print(
        f"{last - first} scenarios, {events:,} events, {3 * (last - first)} trials: nothing found"
    )


def read(part: str) -> ModuleType:
    """The tests of a compiled part."""
    spec = importlib.util.spec_from_file_location(
        f"compiled_{part}", ROOT / f"tests/{part}/test_compiled.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    bounds = (sys.argv[1:] + ["0", "200"][len(sys.argv) - 1 :])[:2]
    if INSIDE in os.environ:
        inside(int(bounds[0]), int(bounds[1]))
    else:
        sys.exit(outside(*bounds))
