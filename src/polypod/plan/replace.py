"""What replaces what: the fewest cards of other chips that hold the same traffic inside the same limits, and the way there.

The traffic is what was said, or what the chips that go serve today at most. Every chip that may come is tried alone, and all of them together, beside
what stays (`plan.fleet`, fewest new cards). A migration goes in waves: new replicas are started and checked, then as many old ones drained as the demand
allows, so that what is up never serves less than it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from polypod.catalog.interop import EngineAnswer, engines_on, events_of, regimes_of
from polypod.catalog.market_schema import Event, Regime
from polypod.errors import InfeasibleError, InputError
from polypod.plan.fleet import Aim, Chosen, Objective, Short, Used, choose
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
    until: str | None = None,
) -> Replaced:
    """`fleet` is what goes and what stays; `chips` may come.

    Raises `InfeasibleError` where the traffic that was said is more than today's fleet serves, `InputError` for several models without rates.
    """
    goes, stays = fleet
    questions, today = _today(questions, [*goes, *stays], aim)
    asked = [*(((chip,)) for chip in chips), *([tuple(chips)] if len(chips) > 1 else [])]
    options = [_option(questions, today, fleet, names, aim) for names in asked]
    if stays:
        options.append(_option(questions, today, fleet, (), aim))
    concerned = dict.fromkeys([*(one.rank.chip for one in goes), *chips])
    return Replaced(
        questions=tuple(questions),
        today=today,
        speeds=speeds(questions, today),
        stays=tuple(stays),
        options=tuple(sorted(options, key=lambda one: one.cards)),
        risks=tuple(_risk(chip, until) for chip in concerned),
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
    aim: Aim,
) -> Option:
    goes, stays = fleet
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
    )


def _island(name: str, chip: str, most: int) -> Island:
    """So many loose cards of a chip, or as many as its fabric is known to join."""
    while most > 1:
        try:
            return island(name, Source(accelerator=chip, count=most))
        except InputError:
            most //= 2
    return island(name, Source(accelerator=chip, count=1))


def speeds(questions: Sequence[Question], found: Chosen) -> tuple[Speed, ...]:
    """By model, the slowest of what is used."""
    each = []
    for m in range(len(questions)):
        mine = [one.shape for one in found.used if one.model == m]
        each.append(
            Speed(
                ttft_s=max((one.ttft_s for one in mine), default=0.0),
                tpot_s=max((one.tpot_s for one in mine), default=0.0),
            )
        )
    return tuple(each)


def _risk(chip: str, until: str | None) -> Risk:
    return Risk(
        chip=chip,
        events=tuple(events_of(chip, until)),
        regimes=tuple(regimes_of(chip)),
        engines=tuple(engines_on(chip)),
    )


# ---- the way there


def migration(
    questions: Sequence[Question], today: Chosen, after: Chosen, stays: Sequence[Island]
) -> tuple[Step, ...]:
    """Waves of new replicas, each followed by as many drained ones as the demand allows."""
    names = {one.name for one in stays}
    old, new = list(today.used), [one for one in after.used if one.shape.island.name not in names]
    remain = [(one, one.replicas) for one in after.used if one.shape.island.name in names]
    if not new:
        return ()
    steps: list[Step] = []
    drained = [0] * len(old)
    for wave in range(1, WAVES + 1):
        started = [round(one.replicas * wave / WAVES) for one in new]
        before = [round(one.replicas * (wave - 1) / WAVES) for one in new]
        if started == before:
            continue
        added = _words([(one, now - then) for one, now, then in zip(new, started, before, strict=True)])  # fmt: skip
        share = _share(questions, [*_left(old, drained), *_part(new, started)])
        steps.append(Step(what=f"start {added}; check their answers and their TPOT against the plan", share=share))  # fmt: skip
        steps += _drain(questions, (old, drained), [*_part(new, started), *remain])
    return tuple(steps)


def _drain(
    questions: Sequence[Question],
    out: tuple[list[Used], list[int]],
    standing: Sequence[tuple[Used, int]],
) -> list[Step]:
    """Drain what is no longer needed, one replica at a time, those of the largest pools first; changes the counts in `out`."""
    old, drained = out
    gone = [0] * len(old)
    for number in sorted(range(len(old)), key=lambda n: -old[n].replicas):
        while drained[number] < old[number].replicas:
            drained[number] += 1
            if _share(questions, [*_left(old, drained), *standing]) < 1 - 1e-9:
                drained[number] -= 1
                break
            gone[number] += 1
    if not any(gone):
        return []
    words = _words(list(zip(old, gone, strict=True)))
    share = _share(questions, [*_left(old, drained), *standing])
    return [Step(what=f"send no more to {words}; take them down when they are empty", share=share)]


def _left(old: Sequence[Used], drained: Sequence[int]) -> list[tuple[Used, int]]:
    return [(one, one.replicas - gone) for one, gone in zip(old, drained, strict=True)]


def _part(new: Sequence[Used], started: Sequence[int]) -> list[tuple[Used, int]]:
    return list(zip(new, started, strict=True))


def _words(several: Sequence[tuple[Used, int]]) -> str:
    named = [f"{count} {'replicas' if count > 1 else 'replica'} on {one.shape.island.rank.chip} ({one.shape.role})" for one, count in several if count]  # fmt: skip
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
