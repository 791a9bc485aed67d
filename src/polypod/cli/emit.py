"""polypod emit: a plan as launch commands for the engines of its chips."""

import argparse
import json
import sys
from pathlib import Path
from typing import Final

from polypod.catalog.parsed import write_whole
from polypod.errors import FileError, InputError
from polypod.plan.emit import emit, read_wanted
from polypod.plan.flags import TARGETS
from polypod.plan.spec import Plan, read_plan, to_yaml, write_plan

_EXECUTABLE: Final = 0o755
_READABLE: Final = 0o644


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", help="a plan file, as `polypod plan -o` wrote it")
    parser.add_argument(
        "--engine",
        action="append",
        required=True,
        metavar="ENGINE",
        help=f"one of {', '.join(TARGETS)}; POOL=ENGINE for one pool or part of the fleet; may be repeated",
    )
    parser.add_argument(
        "-o", dest="folder", required=True, metavar="DIR", help="write the files here"
    )
    add_writing(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_writing(parser: argparse.ArgumentParser) -> None:
    """How launch files are written, by this verb and by `plan --emit`."""
    parser.add_argument(
        "--node-ranks", type=int, metavar="N", help="devices of a node (default: as the catalog's tiers say)"
    )  # fmt: skip
    parser.add_argument(
        "--force",
        action="store_true",
        help="write for an engine of which nobody says whether it runs on the chip",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that say something else"
    )


def run(args: argparse.Namespace) -> int:
    names = write_launch(read_plan(Path(args.plan)), args.engine, args)
    if args.json:
        print(json.dumps({"folder": args.folder, "files": names}, indent=2))
    else:
        print("\n".join(str(Path(args.folder) / name) for name in names))
    return 0


def write_launch(
    plan: Plan, engines: list[str], args: argparse.Namespace, beside: dict[str, str] | None = None
) -> list[str]:
    """Write a plan's launch files, and others beside them; return all names. Nothing is written where one of them may not be."""
    if args.node_ranks is not None and args.node_ranks < 1:
        msg = f"--node-ranks {args.node_ranks} is no number of devices; give a whole one from 1 on, as 8"
        raise InputError(msg)
    files = emit(plan, read_wanted(engines, args.node_ranks, force=args.force)) | (beside or {})
    write_files(files, Path(args.folder), overwrite=args.overwrite)
    return sorted(files)


def write_files(files: dict[str, str], folder: Path, *, overwrite: bool) -> None:
    """Write files whole, scripts executable.

    Raises `FileError` where one is there that says something else, before any is written; where the disk is full, no file is cut short.
    """
    replaced = [name for name, text in files.items() if _differs(folder / name, text)]
    if replaced and not overwrite:
        more = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
        problem = f"is there and says something else{more}; nothing was written - give another folder, or --overwrite"
        raise FileError(folder / replaced[0], problem)
    for name, text in files.items():
        path = folder / name
        try:
            write_whole(path, text.encode())
            path.chmod(_EXECUTABLE if name.endswith(".sh") else _READABLE)
        except OSError as error:
            raise FileError(path, f"cannot be written: {error.strerror}") from error
    for name in replaced:
        print(f"replaced {folder / name}", file=sys.stderr)


def _differs(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() != text.encode()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error


def write_answer(plan: Plan, args: argparse.Namespace) -> None:
    """The plan file, or a folder with it and its launch files."""
    if args.emit:
        args.folder = args.file
        names = write_launch(plan, args.emit, args, {"plan.yaml": to_yaml(plan)})
        print(f"wrote {', '.join(names)} in {args.folder}", file=sys.stderr)
    elif args.file:
        write_plan(plan, Path(args.file))
        print(f"wrote {args.file}", file=sys.stderr)
