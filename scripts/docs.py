"""Run the commands shown in the documents and put what they print below them; --check only says whether that changes anything.

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
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
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
    os.environ["XDG_CONFIG_HOME"] = (
        "config"  # nobody's own catalog, and a path that is always the same
    )
    is_check = "--check" in sys.argv[1:]
    stale = False
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            fresh = rendered(text, Path(folder))
        if fresh == text:
            continue
        stale = True
        if is_check:
            problem = "shows output that its commands no longer print; run: make docs"
            print(f"{path.name} {problem}", file=sys.stderr)
        else:
            path.write_text(fresh, encoding="utf-8")
            print(f"{path.name} rewritten")
    return 1 if stale and is_check else 0


if __name__ == "__main__":
    sys.exit(main())
