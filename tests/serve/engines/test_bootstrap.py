"""An engine's own module, started in a Python that has nothing of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

from polypod.serve.engines.spec import PARENT_VARIABLE, SECRET_VARIABLE
from polypod.serve.engines.vllm import BOOTSTRAP

ENGINE = """
import json, os, signal, sys
from multiprocessing import get_context

def child(queue):
    queue.put([__name__, sorted(os.sched_getaffinity(0))])

if __name__ == "__main__":
    context = get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    print(json.dumps({
        "argv": sys.argv, "secret": os.environ.get("POLYPOD_ENGINE_SECRET"), "child": queue.get(timeout=20),
        "cores": sorted(os.sched_getaffinity(0)), "ignores": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "shown": open("/proc/self/cmdline").read(), "ours": [name for name in sys.modules if name.startswith("polypod")],
    }))
    process.join()
"""


def start(folder: Path, *words: str, parent: int | None = None) -> subprocess.CompletedProcess[str]:
    (folder / "odd_engine.py").write_text(ENGINE, encoding="utf-8")
    environment = {
        "PYTHONPATH": str(folder), SECRET_VARIABLE: "open sesame", PARENT_VARIABLE: str(parent or os.getpid()), "PATH": os.environ["PATH"],
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, str(BOOTSTRAP), *words], env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_module_gets_its_arguments_its_cores_and_a_secret_that_ps_does_not_see(
    tmp_path: Path,
) -> None:
    core = max(os.sched_getaffinity(0))
    done = start(tmp_path, "--cores", str(core), "--secret-flag", "--api-key", "odd_engine", "--port", "1")  # fmt: skip
    said = json.loads(done.stdout)

    assert said["argv"][1:] == ["--port", "1", "--api-key", "open sesame"]
    assert said["secret"] is None
    assert "sesame" not in said["shown"]
    assert said["cores"] == [core]
    assert said["child"] == ["odd_engine", [core]] or said["child"] == ["__mp_main__", [core]]
    assert said["ignores"]
    assert said["ours"] == []


def test_without_a_flag_the_secret_stays_where_the_engine_reads_it(tmp_path: Path) -> None:
    said = json.loads(start(tmp_path, "odd_engine", "a").stdout)

    assert said["argv"][1:] == ["a"]
    assert said["secret"] == "open sesame"


def test_a_child_whose_parent_is_gone_does_not_start(tmp_path: Path) -> None:
    done = start(tmp_path, "odd_engine", parent=1 << 22)

    assert done.returncode == 1
    assert "is gone" in done.stderr
    assert done.stdout == ""


def test_another_option_is_refused(tmp_path: Path) -> None:
    assert "knows --cores and --secret-flag, not --core" in start(tmp_path, "--core", "1", "odd_engine").stderr  # fmt: skip
