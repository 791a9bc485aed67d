"""polypod runs: what earlier runs of nodes left on the disk; and what of it is to go."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polypod import units
from polypod.cli.asking import count
from polypod.errors import InputError
from polypod.report.tables import table
from polypod.serve.kept_runs import Run, remove, runs, to_go, why_left
from polypod.serve.store import state_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prune", action="store_true", help="remove runs; --keep or --older-than says which. None goes that is in use, or has a file that no node wrote")  # fmt: skip
    parser.add_argument("--keep", metavar="N", help="with --prune: the N latest stay")
    parser.add_argument("--older-than", metavar="TIME", help="with --prune: what has changed since then stays, as 30d")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="with --prune: say what would go")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    _check(args)
    state, now_s = state_directory(), time.time()
    kept, folder = runs(state, now_s), state / "runs"
    if args.prune:
        _prune(args, kept, state, now_s)
    elif args.json:
        print(json.dumps({"folder": str(folder), "runs": [_object(one) for one in kept]}, indent=2))
    else:
        print(_text(kept, folder))
    return 0


def _check(args: argparse.Namespace) -> None:
    says_which = args.keep is not None or args.older_than is not None
    if args.prune and not says_which:
        msg = "--prune needs to know what stays: say --keep N, --older-than TIME as 30d, or both"
        raise InputError(msg)
    if not args.prune and (says_which or args.dry_run):
        msg = "--keep, --older-than and --dry-run are of --prune; without it nothing goes"
        raise InputError(msg)


def _prune(args: argparse.Namespace, kept: Sequence[Run], state: Path, now_s: float) -> None:
    keep = None if args.keep is None else _keep(args.keep)
    before_s = None if args.older_than is None else now_s - units.parse(args.older_than, "s")
    gone: list[Run] = []
    left: list[tuple[Run, str]] = []
    for one in to_go(kept, keep=keep, before_s=before_s):
        why = why_left(one) if args.dry_run else remove(one, state, time.time())
        if why is None:
            gone.append(one)
        else:
            left.append((one, why))
    if args.json:
        names = {
            "removed": [one.name for one in gone],
            "left": {one.name: why for one, why in left},
        }
        print(json.dumps({"folder": str(state / "runs"), "dry_run": args.dry_run, **names}, indent=2))  # fmt: skip
    else:
        print("\n".join(_told(kept, gone, left, dry_run=args.dry_run)))


def _keep(text: str) -> int:
    return 0 if text.strip() == "0" else count("--keep", text)


def _told(
    kept: Sequence[Run], gone: Sequence[Run], left: Sequence[tuple[Run, str]], *, dry_run: bool
) -> list[str]:
    verb = "would go" if dry_run else "removed"
    lines = [f"{verb}  {one.name}  {_size([one])}" for one in gone]
    lines += [f"left  {one.name}: {why}" for one, why in left]
    stay = [one for one in kept if one not in gone]
    return [*lines, f"{_count(gone)} {verb}, {_size(gone)}; {_count(stay)} left, {_size(stay)}"]


def _text(kept: Sequence[Run], folder: Path) -> str:
    rows = [
        [
            one.name,
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(one.began_s)),
            f"{one.kind} *" if one.is_in_use else one.kind,
            _size([one]),
            _short(", ".join(one.models)),
        ]
        for one in kept
    ]
    if not rows:
        return f"no run is kept in {folder}"
    header = ["run", "began (UTC)", "kind", "size", "models"]
    marked = "; *: in use" if any(one.is_in_use for one in kept) else ""
    return (
        f"{table(header, rows, right=(3,))}\n\n{_count(kept)}, {_size(kept)}, in {folder}{marked}"
    )


def _count(some: Sequence[Run]) -> str:
    return "1 run" if len(some) == 1 else f"{len(some):,} runs"


def _short(text: str) -> str:
    return text if len(text) <= 19 else f"{text[:16]}..."


def _size(some: Sequence[Run]) -> str:
    """
    >>> _size([])
    '0 B'
    """
    size_bytes = sum(one.size_bytes for one in some)
    return units.show(float(size_bytes), "bytes") if size_bytes else "0 B"


def _object(one: Run) -> dict[str, Any]:
    return {
        "run": one.name,
        "began_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.began_s)),
        "changed_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.changed_s)),
        "kind": one.kind,
        "size_bytes": one.size_bytes,
        "models": list(one.models),
        "in_use": one.is_in_use,
    }
