"""What a node's policy is told while its replicas change, and between which of the moves: its models, their limits, and those of all.

A model is added before its first replica starts, and offered once one is up. It is removed, and a context made shorter, before its first replica goes, so that nobody
begins a wait for what goes; a context is made longer once a replica with it is up. All else comes last. A node is never told that it has no model: where the last one goes,
those that come are added before.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from polypod.policy.settings import PolicySettings, ServiceSettings
from polypod.serve.change import Does, Move

LIMITS: Final = "limits"
"""What is set where it is not of one model alone."""


def with_words(
    moves: Iterable[Move],
    models: Mapping[str, str],
    now: PolicySettings,
    wanted: PolicySettings,
    others: Sequence[str] = (),
) -> tuple[Move, ...]:
    """The moves, and between them what the policy is told; `models` says of which each moved replica is, `others` what else changes last."""
    words = _Words(now, wanted)
    for move in moves:
        words.before(move, models[move.name])
        words.moves.append(move)
        words.after(move, models[move.name])
    words.finish(others)
    return tuple(words.moves)


def all_of(now: PolicySettings, other: PolicySettings) -> PolicySettings:
    """These settings, with the models that only the others have."""
    known = {service.model for service in now.services}
    more = tuple(service for service in other.services if service.model not in known)
    return msgspec.structs.replace(now, services=now.services + more)


class _Words:
    def __init__(self, now: PolicySettings, wanted: PolicySettings) -> None:
        self.moves: list[Move] = []
        self._now = now
        self._wanted = wanted

    def before(self, move: Move, model: str) -> None:
        told, new = _of(self._now, model), _of(self._wanted, model)
        if move.does == "start" and told is None and new is not None:
            self._add(new)
        elif move.does == "retire" and told is not None and new is None:
            if self._now.services == (told,):
                for one in self._wanted.services:
                    self._add(one)
            left = tuple(one for one in self._now.services if one.model != model)
            self._say("remove", model, left, "who waits for it is told; what it answers, it ends")
        elif move.does == "retire" and told and new and new.context_tokens < told.context_tokens:
            self._context(told, new)

    def after(self, move: Move, model: str) -> None:
        told, new = _of(self._now, model), _of(self._wanted, model)
        if move.does == "start" and told and new and new.context_tokens > told.context_tokens:
            self._context(told, new)

    def finish(self, others: Sequence[str]) -> None:
        if self._now == self._wanted and not others:
            return
        notes = [*_differences(self._now, self._wanted), *others] or ["the order of its models"]
        self.moves.append(
            Move(does="set", name=LIMITS, note=", ".join(notes), settings=self._wanted)
        )
        self._now = self._wanted

    def _add(self, new: ServiceSettings) -> None:
        self._say("add", new.model, (*self._now.services, new), "offered once a replica is up")

    def _context(self, told: ServiceSettings, new: ServiceSettings) -> None:
        longer = msgspec.structs.replace(told, context_tokens=new.context_tokens)
        services = tuple(longer if one is told else one for one in self._now.services)
        self._say("set", told.model, services, _changed(told, longer))

    def _say(self, does: Does, name: str, services: tuple[ServiceSettings, ...], note: str) -> None:
        order = [one.model for one in self._wanted.services]
        order += [one.model for one in services if one.model not in order]  # they leave later
        services = tuple(sorted(services, key=lambda one: order.index(one.model)))
        self._now = msgspec.structs.replace(self._now, services=services)
        self.moves.append(Move(does=does, name=name, note=note, settings=self._now))


def _of(settings: PolicySettings, model: str) -> ServiceSettings | None:
    return next((one for one in settings.services if one.model == model), None)


def _differences(now: PolicySettings, wanted: PolicySettings) -> list[str]:
    limits = msgspec.structs.replace(now, services=wanted.services)
    pairs = [(one, _of(wanted, one.model)) for one in now.services]
    return [
        *(f"{_changed(one, new)} of {one.model}" for one, new in pairs if new and new != one),
        *([_changed(limits, wanted)] if limits != wanted else []),
    ]


def _changed(old: msgspec.Struct, new: msgspec.Struct) -> str:
    return ", ".join(
        f"{name} {getattr(old, name)} to {getattr(new, name)}"
        for name in old.__struct_fields__
        if getattr(old, name) != getattr(new, name)
    )
