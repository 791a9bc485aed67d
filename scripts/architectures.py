"""Trace every architecture of transformers and every model of the catalog; keep what came out, and write docs/architectures.md from it.

`make architectures` runs it in an environment of its own (.venv-trace: torch, transformers). One process an architecture, forked from one
that has torch loaded, killed after 60 s. What is in the kept file already is not traced again; --fresh starts anew, --write only writes the
page. Two at a time; about half an hour in all on two cores.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from polypod.catalog.load import listing, load_model
from polypod.errors import PolypodError
from polypod.workload.config import read_model
from polypod.workload.traced import Traced, checks, is_checked
from polypod.workload.traced_kept import (
    Kept,
    Row,
    compared,
    distinct_checked,
    read_kept,
    write_kept,
)

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "tests" / "workload" / "data" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"
LIMIT_S = 60
AT_ONCE = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="trace everything anew")
    parser.add_argument(
        "--write", action="store_true", help="only write the page from what is kept"
    )
    parser.add_argument("--retry", action="store_true", help="trace again what failed")
    parser.add_argument("--limit-s", type=float, default=3600.0, help="stop starting after so long")
    args = parser.parse_args()
    rows = [] if args.fresh or not KEPT.exists() else read_kept(KEPT.read_bytes()).rows
    if args.retry:
        rows = [row for row in rows if row.traced and is_checked(row.traced)]
    if not args.write:
        rows = _traced(rows, args.limit_s)
    rows = [_beside(row) for row in sorted(rows, key=lambda row: (row.kind, row.name))]
    KEPT.write_bytes(write_kept(Kept(rows=rows)))
    PAGE.write_text(page(rows), encoding="utf-8")
    print(_summary(rows))
    return 0


def _traced(rows: list[Row], limit_s: float) -> list[Row]:
    import torch  # once, before forking
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for kind in ("llama", "mixtral", "vit"):
        _one(
            "type", kind, {"model_type": kind, "num_hidden_layers": 1}
        )  # loads what every child needs
    done = {(row.kind, row.name) for row in rows}
    todo = [job for job in _jobs(transformers) if job[:2] not in done]
    end_s = time.monotonic() + limit_s
    running: dict[int, tuple[tuple[str, str, dict[str, Any]], Path, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        while (todo and time.monotonic() < end_s) or running:
            while todo and len(running) < AT_ONCE and time.monotonic() < end_s:
                job = todo.pop(0)
                path = Path(folder) / f"{len(rows)}-{len(todo)}.json"
                running[_fork(job, path)] = (job, path, time.monotonic())
            time.sleep(0.02)
            ended = _ended(running)
            rows += ended
            if ended and len(rows) % 20 == 0:
                KEPT.write_bytes(write_kept(Kept(rows=rows)))  # so that a run can be cut short
    if todo:
        print(f"{len(todo)} not reached in {limit_s:.0f} s; run it again", file=sys.stderr)
    return rows


def _jobs(transformers: ModuleType) -> list[tuple[str, str, dict[str, Any]]]:
    """Models of the catalog, then every model type that transformers maps to a class."""
    found = []
    for line in listing():
        if line.kind == "model":
            entry = load_model(line.id)
            found.append(("model", entry.name, entry.config))
    types: dict[str, None] = {}
    for name in ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", ""):
        mapping = f"MODEL_{'FOR_' if name else ''}{name}{'_' if name else ''}MAPPING_NAMES"
        types |= dict.fromkeys(getattr(transformers.models.auto.modeling_auto, mapping))
    alone = [("type", name, {"model_type": name}) for name in types]
    return [job for pair in zip_longest(found, alone) for job in pair if job]


def _fork(job: tuple[str, str, dict[str, Any]], path: Path) -> int:
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        path.write_bytes(msgspec.json.encode(_one(*job)))
    finally:
        os._exit(0)


def _one(kind: str, name: str, config: dict[str, Any]) -> Row:
    from polypod.workload.trace import trace

    try:
        return Row(kind=kind, name=name, traced=trace(config))
    except PolypodError as error:
        return Row(kind=kind, name=name, problem=str(error)[:220])


def _ended(running: dict[int, tuple[tuple[str, str, dict[str, Any]], Path, float]]) -> list[Row]:
    """Rows of the children that have ended, or that had their time."""
    rows = []
    for child, (job, path, start_s) in list(running.items()):
        is_late = time.monotonic() - start_s > LIMIT_S
        if is_late:
            os.kill(child, signal.SIGKILL)
        ended, _ = os.waitpid(child, 0 if is_late else os.WNOHANG)
        if not ended:
            continue
        del running[child]
        why = f"took more than {LIMIT_S} s" if is_late else "its process died"
        ok = path.exists() and path.stat().st_size
        rows.append(
            msgspec.json.decode(path.read_bytes(), type=Row)
            if ok
            else Row(kind=job[0], name=job[1], problem=why)
        )
        print(f"{job[1]}: {rows[-1].problem or 'traced'}", flush=True)
    return rows


def _beside(row: Row) -> Row:
    """A catalog model's row with what its own description says."""
    if row.kind != "model" or row.traced is None:
        return row
    entry = load_model(row.name)
    model = read_model(entry.config, entry.name, entry.path)
    return msgspec.structs.replace(row, native=compared(row.traced, model))


def _summary(rows: list[Row]) -> str:
    types = [row for row in rows if row.kind == "type"]
    models = [row for row in rows if row.kind == "model"]
    agreeing = sum(bool(row.native) and all(row.native.agrees.values()) for row in models)
    return (
        f"{len(types)} model types, {sum(row.traced is not None for row in types)} traced, "
        f"{sum(bool(row.traced) and is_checked(row.traced) for row in types)} checked; "
        f"{len(models)} models of the catalog, {sum(row.traced is not None for row in models)} traced, "
        f"{sum(bool(row.traced) and is_checked(row.traced) for row in models)} checked, {agreeing} as described; "
        f"{distinct_checked(rows)} distinct architecture classes checked"
    )


def page(rows: list[Row]) -> str:
    versions = next((row.traced for row in rows if row.traced), None)
    assert versions is not None
    head = (ROOT / "scripts" / "architectures.head.md").read_text(encoding="utf-8")
    parts = [
        head.format(
            summary=_summary(rows), transformers=versions.transformers, torch=versions.torch
        ),
        "## Models of the catalog, traced and described\n",
        *_models([row for row in rows if row.kind == "model"]),
        "\n## Every architecture\n",
        *_types([row for row in rows if row.kind == "type"]),
        "\n## What cannot be traced, by its reason\n",
        *_reasons([row for row in rows if row.kind == "type" and row.problem]),
    ]
    return "\n".join(parts) + "\n"


def _models(rows: list[Row]) -> list[str]:
    lines = ["| model | class | checks | as described | differs |", "|---|---|---|---|---|"]
    for row in rows:
        if row.traced is None:
            lines.append(f"| {row.name} | | | | not traced: {_cell(row.problem)} |")
            continue
        native = row.native
        agrees = [name for name, ok in native.agrees.items() if ok] if native else []
        differs = [f"{name}: {why}" for name, why in native.differs.items()] if native else []
        lines.append(
            f"| {row.name} | {row.traced.architecture} | {_checks(row.traced)} | {', '.join(agrees)} | {_cell('; '.join(differs))} |"
        )
    return lines


def _types(rows: list[Row]) -> list[str]:
    lines = ["| model type | class | parameters, millions | checks |", "|---|---|---|---|"]
    for row in rows:
        if row.traced is None:
            lines.append(f"| {row.name} | | | fails: {_cell(row.problem)} |")
        else:
            size = f"{row.traced.parameters / 1e6:,.1f}"
            lines.append(
                f"| {row.name} | {row.traced.architecture} | {size} | {_checks(row.traced)} |"
            )
    return lines


def _checks(traced: Traced) -> str:
    found = checks(traced)
    bad = [name for name, ok in found.items() if not ok]
    good = [name for name, ok in found.items() if ok]
    return ", ".join(good) + (f"; NOT {', '.join(bad)}" if bad else "")


def _reasons(rows: list[Row]) -> list[str]:
    count = Counter(
        (row.problem.partition("cannot be traced: ")[2] or row.problem)[:60] for row in rows
    )
    return [f"* {times} x {_cell(why)}" for why, times in count.most_common()]


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
