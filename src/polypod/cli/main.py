"""Find the verb, parse, call, print; turn what Polypod raises into a message and an exit code.

Exit codes: 0 success; 1 the question has no feasible answer (the message names the nearest one); 2 bad input, or something
failed while running (the message names the thing, the value, the limit and the way out); 130 interrupted.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from polypod import __version__
from polypod.errors import PolypodError

VERBS = {
    "up": "pool what is here and serve it behind one OpenAI endpoint",
    "apply": "bring a running node to another plan, without dropping a stream",
    "keys": "API keys of this machine's nodes: create, list, revoke, rotate",
    "devices": "what is on this machine, how it was found, how fast it measured",
    "catalog": "facts about chips, pods and models, and where they come from",
    "estimate": "one explicit configuration: time, memory, what bounds it",
    "plan": "the best deployment of one or more models on a fleet, inside SLOs",
    "emit": "a plan as launch commands for vLLM, SGLang, LMDeploy or MindIE",
    "replace": "the chips that hold the same traffic when others go",
    "sweep": "many plans from one file, resumable, as one table",
    "compare": "the best deployment on each of several pods, side by side",
    "validate": "predictions beside measurements: errors, bands, reasons",
    "calibrate": "your own measured rows as a calibration of your own",
    "claims": "what the field's systems claim, reproduced or contradicted",
    "traffic": "what a trace or drawn traffic amounts to: rates, lengths, reuse",
    "simulate": "play a request trace through a plan on a virtual clock",
    "availability": "how much of the time a plan has the replicas its traffic needs",
    "replay": "ask a run's record again: every decision, or its requests on another plan",
    "report": "what a run's record says: over time, slowest requests, faults, a trace",
    "runs": "what nodes' runs left on the disk: list them, remove old ones",
    "diff": "two runs side by side, and which differences are more than chance",
}

EPILOG = """\
first steps:
  polypod up                                      serve the embedded model on this machine
  polypod plan deepseek-ai/DeepSeek-V3 --on huawei-cm384 --ttft 2s --tpot 50ms --input 4096 --output 1024
  polypod VERB --help                             what a verb takes

--catalog DIR lets a folder of your own entries take part (accelerators/, pods/, links/, models/).
Quantities wear units ("50ms", "400Gb/s"). --json prints one object on stdout; notes go to stderr.
Exit codes: 0 done, 1 no feasible answer, 2 bad input or a failed run, 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except PolypodError as error:
        print(f"polypod: {error}", file=sys.stderr)
        return error.exit_code
    except (
        OSError
    ) as error:  # the machine's own limits: a full disk, a folder that cannot be written
        if isinstance(
            error, BrokenPipeError
        ):  # the reader left, as in `polypod catalog list | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        where = f"{error.filename}: " if error.filename else ""
        print(f"polypod: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("polypod: interrupted", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    parser = _parser()
    folders, arguments = _take_folders(arguments)
    verb = next((word for word in arguments if not word.startswith("-")), None)
    if verb in VERBS:
        module = importlib.import_module(f"polypod.cli.{verb}")
        at = arguments.index(verb)
        own = argparse.ArgumentParser(
            prog=f"polypod {verb}",
            description=VERBS[verb].capitalize() + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(own)
        return _ask(module, own.parse_args(arguments[:at] + arguments[at + 1 :]), folders)
    parser.parse_args(arguments)  # --help and --version end here, and so does an unknown verb
    parser.print_help()
    return 0


def _take_folders(arguments: list[str]) -> tuple[list[str], list[str]]:
    """`--catalog DIR`, which every verb takes wherever it stands, and the other arguments."""
    common = argparse.ArgumentParser(prog="polypod", add_help=False, allow_abbrev=False)
    common.add_argument("--catalog", metavar="DIR", action="append", default=[])
    known, rest = common.parse_known_args(arguments)
    return known.catalog, rest


def _ask(verb: ModuleType, args: argparse.Namespace, folders: list[str]) -> int:
    """Run a verb; then say which own entries were read in the place of shipped ones, and keep what was parsed."""
    from polypod.catalog import load, parsed

    for folder in folders:
        load.use_folder(Path(folder))
    try:
        code: int = verb.run(args)
        sys.stdout.flush()
    finally:
        for entry, file in load.read_instead.items():
            print(
                f"note: {entry} is read from {file}, in the place of the entry that comes with Polypod",
                file=sys.stderr,
            )
        parsed.texts().save()
    return code


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {verb:12} {what}" for verb, what in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="polypod",
        usage="polypod VERB [ARGUMENTS]",
        description=f"One pod out of many chips.\n\nverbs:\n{listed}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"polypod {__version__}")
    parser.add_argument(
        "verb", nargs="?", choices=list(VERBS), help=argparse.SUPPRESS, metavar="VERB"
    )
    return parser
