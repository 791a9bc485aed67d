"""What an engine's process does before anything else, seen from outside."""

import os
import signal
import subprocess
import sys

from polypod.serve.engines.spec import PARENT_VARIABLE, SECRET_VARIABLE

ARGUMENTS = [
    "--model",
    "m",
    "--weights",
    "w.gguf",
    "--context-tokens",
    "8",
    "--max-sequences",
    "1",
    "--socket",
    "s.sock",
]
PROGRAM = f"""
import os, signal, sys, time
from polypod.serve.engines.child import settle
options = settle()
print(sorted(os.sched_getaffinity(0)), options.secret, os.environ.get("{SECRET_VARIABLE}"), flush=True)
time.sleep(30)
"""


def start(core: int, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, "--cores", str(core), *ARGUMENTS]
    environment = {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_stays_on_its_cores_and_keeps_the_secret_out_of_its_environment() -> None:
    core = max(os.sched_getaffinity(0))
    with start(core, **{SECRET_VARIABLE: "sesame", PARENT_VARIABLE: str(os.getpid())}) as child:
        assert child.stdout.readline() == f"[{core}] sesame None\n"
        child.kill()


def test_ctrl_c_is_the_parents_business_and_sigterm_ends_it_at_once() -> None:
    with start(min(os.sched_getaffinity(0))) as child:
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=2) == -signal.SIGTERM


def test_a_child_whose_parent_died_before_it_asked_ends_itself() -> None:
    with start(min(os.sched_getaffinity(0)), **{PARENT_VARIABLE: "1"}) as child:
        assert child.wait(timeout=5) == 1
        assert "the parent 1 is gone" in child.stderr.read()


def test_a_full_disk_costs_log_lines_and_not_the_engine() -> None:
    program = (
        "import os, sys\nfrom polypod.serve.engines.child import settle\nsettle()\n"
        "print('x' * 100_000, flush=True)\nprint('y', file=sys.stderr, flush=True)\nos._exit(7)"
    )
    core = min(os.sched_getaffinity(0))
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device, to be handed on)
        done = subprocess.run(
            [sys.executable, "-c", program, "--cores", str(core), *ARGUMENTS],
            stdout=full,
            stderr=full,
            check=False,
        )
    assert done.returncode == 7
