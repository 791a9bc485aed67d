"""A change of a running node carried out, step by step; where one fails, undone.

Replicas that go one after the other end what they have side by side. They leave behind no less than the steps leave when they are taken singly, and whoever
waits for a change waits for the longest answer once.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Literal, TypedDict

import msgspec

from polypod.errors import PolypodError
from polypod.serve.change import Does, Move
from polypod.serve.node import LiveNode, Seat
from polypod.serve.words import LIMITS, all_of

_LOG: Final = logging.getLogger("polypod.serve")


class Word(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is being done, or how it ended."""

    state: Literal["planned", "begun", "done", "undone", "applied", "failed", "refused"]
    does: Does | None = None
    replica: str | None = None
    model: str | None = None  # that is added, removed, or has another context
    note: str = ""
    step: int = 0  # from 1
    steps: int = 0
    took_s: float | None = None
    cut_requests: int = 0  # that took longer than the drain

    @property
    def is_last(self) -> bool:
        return self.state in ("applied", "failed", "refused")


class _What(TypedDict, total=False):
    does: Does
    replica: str
    model: str


Tell = Callable[[Word], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    move: Move
    number: int  # from 1
    count: int

    def word(self, state: Literal["planned", "begun", "done"]) -> Word:
        return word_of(state, self.move, self.number, self.count)


@dataclass(slots=True, eq=False)
class Carrying:
    """One change being carried out."""

    node: LiveNode
    coming: dict[str, Seat]
    drain_s: float
    tell: Tell

    async def carry_out(self, moves: tuple[Move, ...]) -> None:
        """Raises `PolypodError` where a step failed, when all is as it was before."""
        gone: dict[str, Seat] = {}
        done: list[Move] = []
        steps = deque(
            _Step(move=move, number=number, count=len(moves))
            for number, move in enumerate(moves, 1)
        )
        try:
            while steps:
                at_once = self._at_once(steps)
                starts = {self.coming[one.move.name].up.model for one in steps if one.move.does == "start"}  # fmt: skip
                ended = await asyncio.gather(
                    *(self._take(step, gone, done, starts) for step in at_once),
                    return_exceptions=True,
                )
                for error in filter(None, ended):
                    raise error
        except PolypodError:
            await self._undo(done, gone)
            raise

    def _at_once(self, steps: deque[_Step]) -> list[_Step]:
        """The next step; of replicas of one role that go one after the other, all: they end what they have side by side."""
        taken = [steps.popleft()]
        while steps and self._goes(steps[0]) == self._goes(taken[0]) is not None:
            taken.append(steps.popleft())
        return taken

    def _goes(self, step: _Step) -> str | None:
        move = step.move
        return self.node.seats[move.name].up.role if move.does == "retire" else None

    async def _take(
        self, step: _Step, gone: dict[str, Seat], done: list[Move], starts: AbstractSet[str]
    ) -> None:
        loop = asyncio.get_running_loop()
        await self.tell(step.word("begun"))
        began_s = loop.time()
        cut = await self._do(step.move, gone, starts)
        done.append(step.move)
        took_s = round(loop.time() - began_s, 3)
        word = step.word("done")
        await self.tell(msgspec.structs.replace(word, took_s=took_s, cut_requests=cut))

    async def _do(self, move: Move, gone: dict[str, Seat], starts: AbstractSet[str]) -> int:
        if move.settings is not None:
            self.node.tell_settings(move.settings)
            return 0
        if move.does == "start":
            await self.node.start_replica(self.coming[move.name])
            return 0
        seat = gone[move.name] = self.node.seats[move.name]
        is_replaced = seat.up.model in starts  # by one that comes later on
        back_in_s = self.node.took_s(move.name) if is_replaced else None
        return await self.node.retire_replica(move.name, drain_s=self.drain_s, back_in_s=back_in_s)

    async def _undo(self, done: list[Move], gone: dict[str, Seat]) -> None:
        """Backwards, with the old models and limits. An old replica that does not start again is said, and the node goes on with the others."""
        before = self.node.prepared
        told = [move.settings for move in done if move.settings is not None]
        if told:  # what starts again is known again, and what goes still is
            self.node.tell_settings(all_of(before.settings, told[-1]))
        for move in reversed(done):
            try:
                if move.settings is not None:
                    pass
                elif move.does == "start":
                    await self.node.retire_replica(move.name, drain_s=self.drain_s)
                else:
                    await self.node.start_replica(gone[move.name])
            except PolypodError as error:
                _LOG.error("%s could not be undone: %s", move, error)
                await self.tell(Word(state="undone", note=f"failed: {error}", **_what(move)))
            else:
                await self.tell(Word(state="undone", **_what(move)))
        if told:
            self.node.tell_settings(before.settings)
            self.node.run_plan(before)


def word_of(state: Literal["planned", "begun", "done"], move: Move, step: int, steps: int) -> Word:
    """Of a step that is to be taken, is being taken, or was."""
    return Word(state=state, note=move.note, step=step, steps=steps, **_what(move))


def _what(move: Move) -> _What:
    found = _What(does=move.does)
    if move.is_of_replica:
        found["replica"] = move.name
    elif move.name != LIMITS:
        found["model"] = move.name
    return found
