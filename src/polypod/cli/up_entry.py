"""Who may use the node that `up` starts: its flags, and what they come to."""

import argparse
import socket
from dataclasses import replace
from pathlib import Path
from typing import Final

from polypod import units
from polypod.cli.asking import count, note
from polypod.errors import InputError
from polypod.serve.descriptors import raise_limit, shortage, streams_within
from polypod.serve.door import LOOPBACK_HOSTS, Keyring, Rules
from polypod.serve.keys import KeyStore, keys_folder
from polypod.serve.listen import is_loopback
from polypod.serve.node import Entry

_ANY: Final = ("0.0.0.0", "::")  # noqa: S104 - to be recognised
_BUSY_S: Final = 0.05  # a node's loop waits no longer for the keys' database


def add_entry(parser: argparse.ArgumentParser) -> None:
    """Flags about who may come in."""
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="listen on this address; one that other machines reach needs an API key (default: 127.0.0.1)")  # fmt: skip
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name clients may call the node by, in Host and Origin; repeat for several")  # fmt: skip
    parser.add_argument("--require-key", action="store_true", help="ask for an API key on loopback too")  # fmt: skip
    parser.add_argument("--log-prompts", action="store_true", help="write what clients ask to prompts.jsonl in the run's folder")  # fmt: skip
    parser.add_argument("--max-body", default="8 MiB", metavar="SIZE", help="the largest request (default: 8 MiB)")  # fmt: skip
    parser.add_argument("--max-bodies", default="1 GiB", metavar="SIZE", help="the most that all requests under way may have (default: 1 GiB)")  # fmt: skip
    parser.add_argument("--max-connections", metavar="N", help="the most clients' connections at a time (default: as many as there are descriptors for)")  # fmt: skip
    parser.add_argument("--max-time", default="1 h", metavar="TIME", help="the longest a request may run (default: 1 h)")  # fmt: skip


def entry(args: argparse.Namespace, state: Path) -> Entry:
    """Rules and keys of this start. Raises `InputError` where others could come in without a key."""
    largest, most = (int(units.parse(one, "bytes")) for one in (args.max_body, args.max_bodies))
    if most < largest:
        msg = f"--max-bodies {args.max_bodies} is less than one request may have; raise it to {args.max_body} or lower --max-body"
        raise InputError(msg)
    host = "127.0.0.1" if args.host == "localhost" else args.host
    is_local = is_loopback(host)
    needs_key = args.require_key or not is_local
    keys = None
    folder = keys_folder(state)
    if folder.is_dir() or needs_key:
        keys = Keyring(KeyStore(folder, busy_s=_BUSY_S))
    if needs_key and (keys is None or not keys.active()):
        flag = "--require-key" if is_local else f"--host {args.host}"
        msg = (
            f"{flag} needs an API key, and there is none that is active: make one with `polypod keys create`, or leave {flag} "
            "out to listen on loopback only"
        )
        raise InputError(msg)
    return Entry(
        rules=Rules(
            hosts=LOOPBACK_HOSTS | frozenset(map(_name, args.allow_host)) | _own_names(host),
            any_address=not is_local,
            needs_key=needs_key,
            largest_body_bytes=largest,
            most_body_bytes=most,
            request_s=units.parse(args.max_time, "s"),
        ),
        keys=keys,
        logs_prompts=args.log_prompts,
    )


def within_descriptors(args: argparse.Namespace, who: Entry, engines: int, sequences: int) -> Entry:
    """The same, for as many connections as this process can have; where that is less than the plan's sequences, it is noted."""
    limit = raise_limit()
    if args.max_connections is not None:
        most = count("--max-connections", args.max_connections)
    else:
        most = streams_within(limit, engines)
        if short := shortage(limit, engines, sequences):
            note(short)
    return replace(who, rules=replace(who.rules, most_connections=most))


def _own_names(host: str) -> frozenset[str]:
    """What this machine calls itself, where others can reach it."""
    if is_loopback(host):
        return frozenset()
    names = {socket.gethostname().lower()}
    return frozenset(names if host in _ANY else names | {host.lower()})


def _name(text: str) -> str:
    """As `Door` compares it: lower case, without brackets. Raises `InputError` for a URL, or a name with a port."""
    name = text.removeprefix("[").removesuffix("]").lower()
    is_address = name.count(":") > 1
    if not name or "/" in name or (":" in name and not is_address):
        msg = f"--allow-host {text!r} is no name; give it as clients write it in a URL, without scheme and port, as pod.lan"
        raise InputError(msg)
    return name
