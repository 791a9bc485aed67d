"""What replaces what: the fewest cards of other chips that hold the same traffic inside the same limits, and the way there.

The traffic is what was said, or what the chips that go serve today at most. Every chip that may come is tried alone, and all of them together, beside
what stays (`plan.fleet`, fewest new cards). A migration goes in waves: new replicas are started and checked, then as many old ones drained as the demand
allows, so that what is up never serves less than it; what stays is cut anew as cards of it become free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from polypod.catalog.dates import parse_date
from polypod.catalog.interop import EngineAnswer, engines_on, events_of, regimes_of
from polypod.catalog.market_schema import Event, Regime
from polypod.cost.calibration import for_chip
from polypod.errors import InfeasibleError, InputError
from polypod.plan.fleet import Chosen, Short, Used, choose
from polypod.plan.fleet_cost import Load, load_of, used_running
from polypod.plan.fleet_offers import Aim, Objective
from polypod.plan.launchable import LaunchState, state_of
from polypod.plan.money import Running, Site, added
from polypod.plan.place import Island, island
from polypod.plan.search import Question
from polypod.plan.spec import Source

MOST_TIMES: Final = 8
"""Cards of a chip that are tried, over those that go."""

WAVES: Final = 4

_KEPT: Final = 1e-3
"""What a card that stays counts beside a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a request of one model sees: of workers together or apart, the slowest of those used."""

    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Risk:
    """What is on record of supply and policy of a chip: events up to a date, newest first, and how it stands."""

    chip: str
    events: tuple[Event, ...]
    regimes: tuple[Regime, ...]
    engines: tuple[EngineAnswer, ...]
    models: tuple[
        tuple[str, LaunchState, str], ...
    ]  # each model: whether an engine on record runs it there, and why
    kernels: str  # what its step times rest on


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a migration, and what is up after it as a share of each model's demand; the least counts."""

    what: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to do without: chips that come, or why they do not do."""

    chips: tuple[str, ...]
    found: Chosen | Short
    new_cards: Mapping[str, float]
    speeds: tuple[Speed, ...] = ()
    steps: tuple[Step, ...] = ()
    running: Running | None = None  # of the new cards alone, per million of all tokens

    @property
    def holds(self) -> bool:
        return isinstance(self.found, Chosen)

    @property
    def cards(self) -> float:
        """New ones; infinite where they do not do."""
        return sum(self.new_cards.values()) if self.holds else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """The question, what is there today, and the options by the number of new cards."""

    questions: tuple[Question, ...]
    today: Chosen
    speeds: tuple[Speed, ...]
    stays: tuple[Island, ...]
    options: tuple[Option, ...]
    risks: tuple[Risk, ...]


def replaced(
    questions: Sequence[Question],
    fleet: tuple[Sequence[Island], Sequence[Island]],
    chips: Sequence[str],
    aim: Aim,
    at: Site,
    until: str | None = None,
) -> Replaced:  # what is served, by what, with what, and what is told of it
    """`fleet` is what goes and what stays; `chips` may come.

    Raises `InfeasibleError` where the traffic that was said is more than today's fleet serves, `InputError` for several models without rates.
    """
    goes, stays = fleet
    questions, today = _today(questions, [*goes, *stays], aim)
    asked = [*(((chip,)) for chip in chips), *([tuple(chips)] if len(chips) > 1 else [])]
    options = [_option(questions, today, fleet, names, (aim, at)) for names in asked]
    if stays:
        options.append(_option(questions, today, fleet, (), (aim, at)))
    concerned = dict.fromkeys([*(one.rank.chip for one in goes), *chips])
    return Replaced(
        questions=tuple(questions),
        today=today,
        speeds=speeds(questions, today),
        stays=tuple(stays),
        options=tuple(sorted(options, key=lambda one: one.cards)),
        risks=tuple(_risk(chip, questions, until) for chip in concerned),
    )


def _today(questions: Sequence[Question], islands: Sequence[Island], aim: Aim) -> tuple[list[Question], Chosen]:  # fmt: skip
    """What is served today, with a rate in every question."""
    rated = [question.rate_per_s is not None for question in questions]
    if len(questions) > 1 and not all(rated):
        msg = f"{len(questions)} models share the fleet; say how much of each, as {questions[0].model.name}:rate=20/s"
        raise InputError(msg)
    objective: Objective = "cards" if all(rated) else "throughput"
    now = replace(aim, objective=objective, card_costs={}, most_shares={})
    found = choose(questions, islands, now)
    if isinstance(found, Short):
        reason = "; ".join(found.reasons.values()) or f"{found.fraction:.0%} of it at most"
        msg = f"today's fleet does not serve this inside its limits: {reason}"
        raise InfeasibleError(msg)
    served = zip(questions, found.served_per_s, strict=True)
    return [one if one.rate_per_s is not None else replace(one, rate_per_s=rate) for one, rate in served], found  # fmt: skip


def _option(
    questions: Sequence[Question],
    today: Chosen,
    fleet: tuple[Sequence[Island], Sequence[Island]],
    chips: tuple[str, ...],
    how: tuple[Aim, Site],
) -> Option:
    goes, stays = fleet
    aim, at = how
    most = MOST_TIMES * sum(one.accelerators for one in goes)
    new = [_island(f"new-{chip}", chip, most) for chip in chips]
    costs = {one.rank.chip: _KEPT for one in stays} | dict.fromkeys(chips, 1.0)
    found = choose(questions, [*stays, *new], replace(aim, objective="cards", card_costs=costs))
    if isinstance(found, Short):
        return Option(chips=chips, found=found, new_cards={})
    cards = {
        one.rank.chip: sum(used.accelerators for used in found.used if used.shape.island is one)
        for one in new
    }
    return Option(
        chips=chips,
        found=found,
        new_cards={chip: count for chip, count in cards.items() if count},
        speeds=speeds(questions, found),
        steps=migration(questions, today, found, stays),
        running=_running(questions, found, new, at),
    )


def _running(questions: Sequence[Question], found: Chosen, new: Sequence[Island], at: Site) -> Running | None:  # fmt: skip
    """Of what runs on the new cards."""
    loads = [load_of(q, rate) for q, rate in zip(questions, found.served_per_s, strict=True)]
    tokens = sum(load * rate * q.output_tokens for load, rate, q in zip(loads, found.served_per_s, questions, strict=True))  # fmt: skip
    parts = [
        (1.0, used_running(questions[one.model], one, Load(tokens, loads[one.model]), at))
        for one in found.used
        if one.shape.island in new
    ]
    return added(parts) if parts else None


def _island(name: str, chip: str, most: int) -> Island:
    """So many loose cards of a chip, or as many as its fabric is known to join."""
    while most > 1:
        try:
            return island(name, Source(accelerator=chip, count=most))
        except InputError:
            most //= 2
    return island(name, Source(accelerator=chip, count=1))


def speeds(questions: Sequence[Question], found: Chosen) -> tuple[Speed, ...]:
    """By model, the slowest median of what is used."""
    each = []
    for m in range(len(questions)):
        mine = [one.shape for one in found.used if one.model == m]
        firsts_s = [one.ttft_s for one in mine if one.role == "both"]
        firsts_s += [float(np.median(seen_s)) for (of, *_), seen_s in found.flows_ttft_s.items() if of == m]  # fmt: skip
        each.append(
            Speed(
                ttft_s=max(firsts_s, default=0.0),
                tpot_s=max((one.tpot_s for one in mine), default=0.0),
            )
        )
    return tuple(each)


def _risk(chip: str, questions: Sequence[Question], until: str | None) -> Risk:
    return Risk(
        chip=chip,
        events=tuple(events_of(chip, until)),
        regimes=tuple(one for one in regimes_of(chip) if _was_known(one, until)),
        engines=tuple(engines_on(chip)),
        models=tuple((one.model.name, *state_of(chip, one.model)) for one in questions),
        kernels=f"{(fits := for_chip(chip)).evidence} ({fits.id})",
    )


def _was_known(regime: Regime, until: str | None) -> bool:
    """Whether all that a regime rests on had been seen by a date; what bears no date was not."""
    if until is None:
        return True
    last = parse_date(until).last
    return all(one.date is not None and parse_date(one.date).last <= last for one in regime.sources)


# ---- the way there


def migration(
    questions: Sequence[Question], today: Chosen, after: Chosen, stays: Sequence[Island]
) -> tuple[Step, ...]:
    """Waves of new replicas, each followed by as many drained ones as the demand allows; then what stays is cut anew, as cards of it become free."""
    move = _Move.of(questions, today, after, stays)
    steps: list[Step] = []
    for wave in range(1, WAVES + 1):
        steps += move.start([_wave(one, wave) if one.shape.island.name not in move.room else 0 for one in move.new])  # fmt: skip
        if steps:
            steps += move.drain()
    while move.pending():
        begun = move.start(move.fitting())
        if not begun:
            cards = sum(one.shape.accelerators for one in move.pending())
            steps.append(Step(what=f"what stays has no card free for {_words([(one, 1) for one in move.pending()])}: have {cards:g} more for a while, or let it go below the demand", share=move.share()))  # fmt: skip
            return tuple(steps)
        steps += [*begun, *move.drain()]
    return tuple(steps)


def _wave(one: Used, wave: int) -> int:
    return round(one.replicas * wave / WAVES) - round(one.replicas * (wave - 1) / WAVES)


@dataclass(slots=True, kw_only=True)
class _Move:
    """What is up on the way: old replicas left, new ones started, and the cards of what stays, by island."""

    questions: Sequence[Question]
    old: list[Used]
    left: list[int]
    new: list[Used]
    started: list[int]
    room: Mapping[str, float]

    @classmethod
    def of(cls, questions: Sequence[Question], today: Chosen, after: Chosen, stays: Sequence[Island]) -> "_Move":  # fmt: skip
        """What is the same before and after on cards that stay is left alone."""
        names = {one.name for one in stays}
        before = {_key(one): one.replicas for one in today.used if one.shape.island.name in names}
        same = {_key(one): min(one.replicas, before.get(_key(one), 0)) for one in after.used}
        return cls(
            questions=questions,
            old=list(today.used),
            left=[one.replicas - same.get(_key(one), 0) for one in today.used],
            new=list(after.used),
            started=[same[_key(one)] for one in after.used],
            room={one.name: float(one.accelerators) for one in stays},
        )

    def share(self) -> float:
        up = [*zip(self.old, self.left, strict=True), *zip(self.new, self.started, strict=True)]
        return _share(self.questions, up)

    def free(self, island: str) -> float:
        up = [*zip(self.old, self.left, strict=True), *zip(self.new, self.started, strict=True)]
        return self.room[island] - sum(count * one.shape.accelerators for one, count in up if one.shape.island.name == island)  # fmt: skip

    def pending(self) -> list[Used]:
        return [one for one, count in zip(self.new, self.started, strict=True) if count < one.replicas]  # fmt: skip

    def fitting(self) -> list[int]:
        """Replicas of each new pool for which what stays has free cards now."""
        taken = dict.fromkeys(self.room, 0.0)
        counts = []
        for one, started in zip(self.new, self.started, strict=True):
            name = one.shape.island.name
            room = self.free(name) - taken[name] if name in self.room else 0.0
            count = min(one.replicas - started, int(room / one.shape.accelerators + 1e-9))
            counts.append(max(count, 0))
            if name in taken:
                taken[name] += counts[-1] * one.shape.accelerators
        return counts

    def start(self, counts: Sequence[int]) -> list[Step]:
        if not any(counts):
            return []
        self.started = [was + more for was, more in zip(self.started, counts, strict=True)]
        words = _words(list(zip(self.new, counts, strict=True)))
        return [Step(what=f"start {words}; check their answers and their TPOT against the plan", share=self.share())]  # fmt: skip

    def drain(self) -> list[Step]:
        """Drain what is no longer needed, one replica at a time: first where cards are waited for, then the largest pools."""
        wanted = {one.shape.island.name for one in self.pending()}
        order = sorted(range(len(self.old)), key=lambda n: (self.old[n].shape.island.name not in wanted, -self.left[n]))  # fmt: skip
        gone = [0] * len(self.old)
        for number in order:
            while self.left[number]:
                self.left[number] -= 1
                if self.share() < 1 - 1e-9:
                    self.left[number] += 1
                    break
                gone[number] += 1
        if not any(gone):
            return []
        words = _words(list(zip(self.old, gone, strict=True)))
        return [Step(what=f"send no more to {words}; take them down when they are empty", share=self.share())]  # fmt: skip


def _key(one: Used) -> tuple[object, ...]:
    shape = one.shape
    return (
        one.model,
        shape.role,
        shape.island.name,
        shape.deployment.layout,
        shape.narrowest_bytes_per_s,
    )


def _words(several: Sequence[tuple[Used, int]]) -> str:
    total: dict[tuple[str, str], int] = {}
    for one, count in several:
        key = (one.shape.island.rank.chip, one.shape.role)
        total[key] = total.get(key, 0) + count
    named = [f"{count} {'replicas' if count > 1 else 'replica'} on {chip} ({role})" for (chip, role), count in total.items() if count]  # fmt: skip
    return ", ".join(named) or "nothing"


def _share(questions: Sequence[Question], up: Sequence[tuple[Used, int]]) -> float:
    """What these serve of the demand, of the model that is served worst: prefill and decode workers as far as both go."""
    shares = []
    for m, question in enumerate(questions):
        able = {"both": 0.0, "prefill": 0.0, "decode": 0.0}
        for one, count in up:
            if one.model == m:
                able[one.shape.role] += count * one.shape.rate_per_s
        total = able["both"] + min(able["prefill"], able["decode"])
        shares.append(total / (question.rate_per_s or 1.0))
    return min(shares)
