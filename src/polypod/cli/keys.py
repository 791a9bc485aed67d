"""polypod keys: who may use this machine's nodes. Nodes that run hear of a change within a second."""

import argparse
import json
import time
from datetime import UTC, datetime
from typing import Any

from polypod import units
from polypod.errors import InputError
from polypod.report.tables import entry, table
from polypod.serve.keys import Grant, Key, KeyStore, keys_folder
from polypod.serve.store import state_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key; its secret is shown this once")
    create.add_argument("--tenant", default="", metavar="NAME", help="whose requests these are; keys of one tenant share its turn (default: a tenant of its own)")  # fmt: skip
    create.add_argument("--priority", type=int, default=0, metavar="N", help="a higher one goes first (default: 0)")  # fmt: skip
    create.add_argument("--models", default="", metavar="A,B", help="the only models it may use (default: all)")  # fmt: skip
    create.add_argument("--requests-per-minute", type=int, metavar="N", help="answered with 429 beyond")  # fmt: skip
    create.add_argument("--tokens-per-minute", type=int, metavar="N", help="prompt and answer together; answered with 429 beyond")  # fmt: skip
    create.add_argument("--expires", metavar="TIME", help="from now, as 90d (default: never)")
    shown = actions.add_parser("list", help="every key, without its secret")
    revoke = actions.add_parser("revoke", help="a key opens nothing from now on, and its streams end")  # fmt: skip
    revoke.add_argument("id", metavar="ID", help="as `polypod keys list` shows it")
    rotate = actions.add_parser("rotate", help="a new secret with the same rights; the old key is revoked")  # fmt: skip
    rotate.add_argument("id", metavar="ID", help="as `polypod keys list` shows it")
    rotate.add_argument("--overlap", default="0s", metavar="TIME", help="how long the old key still works, as 10min (default: 0s)")  # fmt: skip
    for one in (create, shown, revoke, rotate):
        one.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    return _ACTIONS[args.action](args, KeyStore(keys_folder(state_directory())))


def _create(args: argparse.Namespace, store: KeyStore) -> int:
    for flag in ("requests_per_minute", "tokens_per_minute"):
        if (value := getattr(args, flag)) is not None and value < 1:
            msg = f"--{flag.replace('_', '-')} {value} would refuse every request; give 1 or more, or leave it out for no limit"
            raise InputError(msg)
    life_s = None if args.expires is None else units.parse(args.expires, "s")
    grant = Grant(
        tenant=args.tenant,
        priority=args.priority,
        models=tuple(name for name in args.models.split(",") if name),
        requests_per_minute=args.requests_per_minute,
        tokens_per_minute=args.tokens_per_minute,
    )
    return _show_new(args, *store.create(grant, life_s=life_s))


def _rotate(args: argparse.Namespace, store: KeyStore) -> int:
    return _show_new(args, *store.rotate(args.id, overlap_s=units.parse(args.overlap, "s")))


def _show_new(args: argparse.Namespace, key: Key, token: str) -> int:
    if args.json:
        print(json.dumps(_object(key) | {"key": token}, indent=2))
        return 0
    print(entry("key", token))
    print(entry("", f"shown this once; its id is {key.id}. Send it as the header"))
    print(entry("", f"Authorization: Bearer {token}"))
    return 0


def _list(args: argparse.Namespace, store: KeyStore) -> int:
    keys = store.all()
    if args.json:
        print(json.dumps({"keys": [_object(key) for key in keys]}, indent=2))
        return 0
    if not keys:
        print("no keys; `polypod keys create` makes one")
        return 0
    print(table(["id", "state", "tenant", "priority", "limits", "until"], [_row(key) for key in keys]))  # fmt: skip
    return 0


def _revoke(args: argparse.Namespace, store: KeyStore) -> int:
    key = store.revoke(args.id)
    if args.json:
        print(json.dumps(_object(key), indent=2))
        return 0
    print(f"key {key.id} is revoked; running nodes refuse it, and end its streams, within a second")
    return 0


def _row(key: Key) -> list[str]:
    grant = key.grant
    limits = [
        *([f"{grant.requests_per_minute:,} requests/min"] if grant.requests_per_minute else []),
        *([f"{grant.tokens_per_minute:,} tokens/min"] if grant.tokens_per_minute else []),
        *([", ".join(grant.models)] if grant.models else []),
    ]
    ends_s = [at_s for at_s in (key.expires_unix_s, key.revoked_unix_s) if at_s is not None]
    until = f"{datetime.fromtimestamp(min(ends_s), UTC):%Y-%m-%d %H:%M} UTC" if ends_s else ""
    state = key.state(time.time())
    return [key.id, state, grant.tenant, str(grant.priority), "; ".join(limits), until]


def _object(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "state": key.state(time.time()),
        "tenant": key.grant.tenant,
        "priority": key.grant.priority,
        "models": list(key.grant.models),
        "requests_per_minute": key.grant.requests_per_minute,
        "tokens_per_minute": key.grant.tokens_per_minute,
        "created_utc": _utc(key.created_unix_s),
        "expires_utc": _utc(key.expires_unix_s),
        "revoked_utc": _utc(key.revoked_unix_s),
    }


def _utc(unix_s: float | None) -> str | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")  # fmt: skip


_ACTIONS = {"create": _create, "list": _list, "revoke": _revoke, "rotate": _rotate}
