"""All C of this project, compiled with the address and undefined-behaviour sanitizers, under random input.

    python scripts/sanitize.py [FIRST] [LAST]

The simulator's core plays the scenarios of tests/simulate/test_compiled.py, one engine the trials of tests/engine/test_compiled.py. The gateway's modules are held against Python
over random messages, streams and tables, those of tests/serve/http/test_heads.py and test_relays.py and tests/policy/test_compiled.py, after these files' tests have run with them, and
test_streams.py's. Python's own objects are the C library's here, so that a module that reads past one is found. Ends with the sanitizer's words and a code above 0 where it finds something.
"""

import ctypes
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

from polypod.engine import compiled as emulated
from polypod.engine.native import build
from polypod.policy import compiled as rows
from polypod.serve.http import native
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
OF_ENGINE = ROOT / "src/polypod/engine/native"
OF_WIRE = ROOT / "src/polypod/serve/http/native"
LIBRARIES = {"core": OF_ENGINE / "core.c", "emulate": OF_ENGINE / "emulate.c"}
MODULES = {
    "polypod_rows": OF_ENGINE / "rows_calls.c",
    "polypod_heads": OF_WIRE / "heads.c",
    "polypod_relay": OF_WIRE / "relay.c",
}
OF_MODULES = (
    "policy/test_compiled",
    "serve/http/test_heads",
    "serve/http/test_relays",
    "serve/http/test_streams",
)
MESSAGES = 200
"""Of each kind, for one scenario: they take so much less."""


def outside(first: str, last: str) -> int:
    """Compile, and begin again with the sanitizer's library loaded first."""
    found = build.compiler()
    assert found is not None, "no C compiler is here"
    with tempfile.TemporaryDirectory() as folder:
        headers = (f"-I{sysconfig.get_paths()['include']}", "-D_GNU_SOURCE")
        for part, source in (LIBRARIES | MODULES).items():
            made = ("-o", str(Path(folder) / f"{part}.so"), str(source), "-lm")
            flags = (*FLAGS, "-ffp-contract=off", "-fPIC", "-shared", *headers)
            subprocess.run([found, *flags, *made], check=True)
        runtime = subprocess.run(
            [found, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
        ).stdout.strip()
        own = {
            INSIDE: folder,
            "LD_PRELOAD": runtime,
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "PYTHONMALLOC": "malloc",
        }
        return subprocess.run(
            [sys.executable, __file__, first, last], env=os.environ | own, check=False
        ).returncode


def inside(first: int, last: int) -> int:
    folder = Path(os.environ[INSIDE])
    core, one = (ctypes.CDLL(str(folder / f"{part}.so")) for part in LIBRARIES)
    compiled.library = lambda: core
    emulated.library = lambda _: one
    modules = {name: build.loaded(name, folder / f"{name}.so") for name in MODULES}
    rows.extension = lambda name, _: modules[name]
    native.module = lambda name: modules[f"polypod_{name}"]
    files = [str(ROOT / f"tests/{one}.py") for one in OF_MODULES]
    plain = (
        "-q",
        "-p",
        "no:cacheprovider",
        "--capture=sys",
    )  # else it would keep what a sanitizer says
    failed = pytest.main([*plain, *files])  # first: it loads its plugins
    events, seeds = play(range(first, last)), range(MESSAGES * first, MESSAGES * last)
    hold_against_python(seeds)
    print(
        f"{last - first} scenarios, {events:,} events, {3 * (last - first)} trials, {len(seeds):,} messages and streams: {'a test failed' if failed else 'nothing found'}"
    )
    return int(failed)


def play(seeds: range) -> int:
    """Scenarios and trials; how many events there were."""
    scenarios, trials = read("simulate/test_compiled"), read("engine/test_compiled")
    events = 0
    for seed in seeds:
        events += compiled.play_compiled(scenarios.scenario(seed)).events
        for phase in ("both", "prefill", "decode"):
            emulated.emulate(*trials.asked(seed, phase))
    return events


def hold_against_python(seeds: range) -> None:
    """Requests, answers, streams and tables."""
    heads, relays, tables = map(
        read, ("serve/http/test_heads", "serve/http/test_relays", "policy/test_compiled")
    )
    heads.compare_answers(native.module("heads"), seeds)
    for seed in seeds:
        heads.compare_requests(native.module("heads"), seed)
        relays.compare_stream(native.module("relay"), seed)
        if seed % MESSAGES == 0:
            tables.Twins(seed).play(300)


def read(path: str) -> ModuleType:
    """The tests in one file."""
    name = path.replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tests/{path}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    bounds = (sys.argv[1:] + ["0", "200"][len(sys.argv) - 1 :])[:2]
    if INSIDE in os.environ:
        sys.exit(inside(int(bounds[0]), int(bounds[1])))
    else:
        sys.exit(outside(*bounds))
