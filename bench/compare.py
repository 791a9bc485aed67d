"""CPU seconds of `polypod compare deepseek-v3 --all` from a cold shell, beside their target; without limits, and inside an SLO.

    python bench/compare.py

A new interpreter each time, files in the system's cache; the best of three, since the machine does other things too.
"""

import resource
import subprocess
import sys

TARGET_S = 15.0
ASKED = ("compare", "deepseek-v3", "--all")
LIMITS = ("--ttft", "2s", "--tpot", "50ms", "--input", "4096", "--output", "1024")


def main() -> None:
    for words in (ASKED, (*ASKED, *LIMITS)):
        best_s = min(_cpu_s(words) for _ in range(3))
        print(f"polypod {' '.join(words)} in {best_s:.1f} s CPU, {best_s / TARGET_S:.2f} of the {TARGET_S:g} s allowed")  # fmt: skip


def _cpu_s(words: tuple[str, ...]) -> float:
    """Of the child alone, on as many threads as it takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "polypod", *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
