"""Run the commands shown in README.md and put what they print below them; --check only says whether that changes anything.

A block is run where its fence says `console` and its first line is `$ polypod ...`. What `up` prints differs from run to run,
so its block is fenced as text and left alone.
"""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

from polypod.cli.main import main as polypod

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```console\n\$ polypod (?P<command>(?:[^\n]*\\\n)*[^\n]*)\n.*?```", re.DOTALL)


def rendered(text: str, folder: Path) -> str:
    """The text with every block's output as it is now. Commands run one after another in `folder`."""
    (folder / "examples").symlink_to(ROOT / "examples")
    before = Path.cwd()
    os.chdir(folder)
    try:
        return BLOCK.sub(_run, text)
    finally:
        os.chdir(before)


def _run(match: re.Match[str]) -> str:
    command = match["command"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = polypod(shlex.split(command.replace("\\\n", " ")))
    if code != 0:
        msg = f"polypod {command} ended with {code}"
        raise SystemExit(msg)
    return f"```console\n$ polypod {command}\n{out.getvalue().rstrip()}\n```"


def main() -> int:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        fresh = rendered(text, Path(folder))
    if fresh == text:
        return 0
    if "--check" in sys.argv[1:]:
        print(
            "README.md shows output that its commands no longer print; run: make docs",
            file=sys.stderr,
        )
        return 1
    path.write_text(fresh, encoding="utf-8")
    print("README.md rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
