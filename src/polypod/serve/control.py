"""Orders to a running node, over a unix socket that only its user can reach: another plan.

One JSON object a line. The order is an `Order`; what comes back are `Word`s, the last of which says how it ended. Whoever gave the order may leave;
it is carried out all the same. A step that fails is undone with all before it, so that the node has its old plan or its new one.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

import msgspec

from polypod.errors import EngineError, InputError, PolypodError, RunError
from polypod.plan.spec import Plan, check, write_plan
from polypod.policy.settings import check_change
from polypod.serve.carrying import Carrying, Tell, Word, word_of
from polypod.serve.change import Change, change
from polypod.serve.devices.cpu import find_cpu
from polypod.serve.local import prepare, prepare_ghosts
from polypod.serve.node import LiveNode, Prepared, Seat
from polypod.serve.words import with_words

__all__ = ["Control", "Order", "Word", "give"]

LONGEST_ORDER_BYTES: Final = 16 << 20
_RESTART: Final = "stop the node and start it with this plan"
_LOG: Final = logging.getLogger("polypod.serve")


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to do."""

    plan: Plan
    dry_run: bool = False
    drain_s: float = 600.0  # that a replica which goes may take to end what it has


class Control:
    """Takes orders for a node while it is open; one at a time."""

    def __init__(self, node: LiveNode) -> None:
        self._node = node
        self._path = node.control_socket
        self._taken: set[str] = set()  # names of replicas there ever were
        self._plans = 1
        self._busy = asyncio.Lock()
        self._orders: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        old = os.umask(0o177)  # the socket's mode is 0600 from its first moment
        try:
            self._server = await asyncio.start_unix_server(
                self._listen, path=str(self._path), limit=LONGEST_ORDER_BYTES
            )
        finally:
            os.umask(old)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for order in self._orders:
            order.cancel()
        await asyncio.gather(*self._orders, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def apply(self, order: Order, tell: Tell) -> None:
        """Bring the node to another plan. Raises `PolypodError` where it has its old one again."""
        if self._busy.locked():
            msg = "another plan is just being applied; wait until that is done"
            raise RunError(msg)
        async with self._busy:
            check(order.plan)
            now = self._node.prepared
            wanted = await asyncio.to_thread(_prepared, order.plan, now)  # looks at the machine
            check_change(now.settings, wanted.settings)
            seats = self._node.seats_of(wanted)
            found = self._change(seats)
            named = {found.renamed.get(seat.name, seat.name): seat for seat in seats}
            await self._check_elsewhere([named[move.name] for move in found.moves if move.does == "start"])  # fmt: skip
            models = {name: seat.up.model for name, seat in (self._node.seats | named).items()}
            settings = now.settings, wanted.settings
            moves = with_words(found.moves, models, *settings, _continuation(now, wanted))
            if order.dry_run:
                for number, move in enumerate(moves, 1):
                    await tell(word_of("planned", move, number, len(moves)))
                return
            coming = {move.name: _renamed(named[move.name], move.name) for move in found.moves if move.does == "start"}  # fmt: skip
            self._node.note_plan(wanted.plan)
            try:
                await Carrying(self._node, coming, order.drain_s, tell).carry_out(moves)
            except PolypodError:
                self._node.note_plan(now.plan)
                raise
            self._keep(wanted)

    async def _check_elsewhere(self, coming: list[Seat]) -> None:
        """Nothing is begun where an engine elsewhere has not the model it would be asked for. Raises `InputError`."""
        for seat in coming:
            try:
                await self._node.check_elsewhere(seat)
            except EngineError as error:
                msg = f"{error}; engines elsewhere serve the plan's first model: name one first that it has, or {_RESTART} and without --engine-url {seat.name}=..."
                raise InputError(msg) from error

    def _change(self, seats: list[Seat]) -> Change:
        here = self._node.seats
        self._taken |= here.keys()
        return change(
            [seat.member for seat in here.values()],
            [seat.member for seat in seats],
            free_bytes=float(find_cpu().usable_memory_bytes),
            taken=self._taken,
        )

    def _keep(self, wanted: Prepared) -> None:
        self._plans += 1
        self._node.run_plan(wanted)
        write_plan(wanted.plan, wanted.folder / f"plan-{self._plans}.yaml")

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def tell(word: Word) -> None:
            with suppress(OSError):  # whoever asked has left
                writer.write(msgspec.json.encode(word) + b"\n")
                await writer.drain()

        task = asyncio.current_task()
        assert task is not None
        self._orders.add(task)
        try:
            await self._obey(await reader.readline(), tell)
        except ValueError:  # longer than the limit
            await tell(Word(state="refused", note=f"longer than {LONGEST_ORDER_BYTES} bytes"))
        finally:
            self._orders.discard(task)
            writer.close()

    async def _obey(self, line: bytes, tell: Tell) -> None:
        try:
            order = msgspec.json.decode(line, type=Order)
            await self.apply(order, tell)
        except (msgspec.DecodeError, InputError) as error:
            await tell(Word(state="refused", note=str(error)))
        except PolypodError as error:
            await tell(Word(state="failed", note=str(error)))
        else:
            await tell(Word(state="applied"))


def _renamed(seat: Seat, name: str) -> Seat:
    """The same replica under another name, with a socket and a log of its own."""
    up = msgspec.structs.replace(seat.up, replica=name)
    seat = replace(seat, up=up, member=replace(seat.member, name=name))
    if seat.replica is None:
        return seat
    spec = seat.replica.spec
    spec = replace(
        spec,
        replica=name,
        socket=spec.socket.with_name(f"{name}.sock"),
        log=spec.log.with_name(f"{name}.log"),
    )
    return replace(seat, replica=replace(seat.replica, spec=spec))


def _prepared(plan: Plan, now: Prepared) -> Prepared:
    """The plan, ready to run as the node runs its present one."""
    if now.ghosts is not None:
        return prepare_ghosts(
            plan,
            now.folder,
            speed_ratio=now.ghosts.speed_ratio,
            processes=now.ghosts.processes,
        )
    return replace(
        prepare(plan, now.folder),
        engine_memory_bytes=now.engine_memory_bytes,
        remotes=now.remotes,
    )


def _continuation(now: Prepared, wanted: Prepared) -> list[str]:
    old, new = now.plan.policy.continuation, wanted.plan.policy.continuation
    return [] if old == new else [f"continuation {old} to {new}"]


async def give(socket: Path, order: Order) -> AsyncIterator[Word]:
    """Send an order to a node and hand on what it says. Raises `RunError` where it says nothing, or breaks off."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket), limit=LONGEST_ORDER_BYTES)
    except OSError as error:
        msg = f"the node does not take orders on {socket}: {error.strerror}; is it still running?"
        raise RunError(msg) from error
    try:
        writer.write(msgspec.json.encode(order) + b"\n")
        await writer.drain()
        while line := await reader.readline():
            word = msgspec.json.decode(line, type=Word)
            yield word
            if word.is_last:
                return
        msg = "the node stopped before it said how it ended; look at its folder"
        raise RunError(msg)
    finally:
        writer.close()
