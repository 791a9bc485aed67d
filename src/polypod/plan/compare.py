"""One model on several pods, each planned by itself for the same question, side by side.

A pod's figures are those of `plan.compose.plan_model` on it: every layout in closed form, the best `TRIED` emulated, the best of these taken. A candidate
whose closed form promises no more than an emulated one gives is not emulated. Replicas whose steps, batch and load are the same give the same, so one
outcome serves pods of one chip that differ in size alone. With `tried=1` only the closed form's best layout is emulated, in a third of the time: another layout may then be
a little better, and the answer says so.

A pod that cannot be planned is kept with the reason: the fact that is missing, or what its layouts fail at.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from polypod.cost.bands import Band
from polypod.cost.deployment import Deployment, native_precision
from polypod.errors import InputError, LayoutError
from polypod.plan.compose import CONFIRMED, bounds, nearest
from polypod.plan.confirm import Confirmed, confirm
from polypod.plan.energy import Estimate, serving
from polypod.plan.money import Output, Running, Site, running
from polypod.plan.place import Island, island
from polypod.plan.search import Question, Search, layouts, own_scale, search
from polypod.plan.served import band_under, own_of
from polypod.plan.spec import Source
from polypod.workload.layout import Layout, check_layout
from polypod.workload.precision import Precision

By = Literal["accelerator", "kw", "usd", "pod", "stream"]
BYS: Final[tuple[By, ...]] = get_args(By)

TRIED: Final = CONFIRMED
"""As many layouts are emulated as `plan` emulates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One sequence alone, on the layout that is fastest for it."""

    layout: Layout
    tpot_s: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The best plan on one pod. Rates are output tokens/s; what rests on an unknown power or price is None."""

    name: str
    island: Island
    confirmed: Confirmed
    evidence: str  # of every time, and of the rates made of them
    tokens_per_s: Estimate
    per_accelerator: Estimate
    per_kw_it: Estimate | None
    per_kw_site: Estimate | None
    per_usd_h: Estimate | None
    running: Running
    stream: Stream | None
    context_tokens: float | None  # that one sequence may have on a replica; None: any
    bound: Mapping[str, str]  # what prefill and decode wait for
    band: Band  # of TPOT
    looked_at: int

    @property
    def accelerators(self) -> float:
        """In use."""
        return self.confirmed.candidate.accelerators


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A pod without a plan, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Pods by what was asked, the best first, and those without a plan."""

    question: Question
    by: By
    tried: int
    placed: tuple[Placed, ...]
    missing: tuple[Missing, ...]


def compare(
    question: Question,
    places: Mapping[str, Source],
    at: Site,
    by: By = "accelerator",
    tried: int = TRIED,
) -> Comparison:
    """Plan every place by itself and put them in order; places are given by the name to show."""
    placed, missing = [], []
    for name, source in places.items():
        try:
            where = island(name, source, question.backend)
            precision = native_precision(question.model, where.rank)
            found = search(question, where, precision)
            best = _best(question, found, tried)
        except InputError as error:
            missing.append(Missing(name=name, why=str(error)))
            continue
        if best is None:
            missing.append(Missing(name=name, why=_why(question, where, found)))
            continue
        placed.append(_placed(question, where, best, found, at))
    placed.sort(key=lambda one: -worth(one, by))
    return Comparison(
        question=question, by=by, tried=tried, placed=tuple(placed), missing=tuple(missing)
    )


def worth(one: Placed, by: By) -> float:
    """What a pod is ranked by, more being better; what is not known comes last."""
    value = {
        "accelerator": one.per_accelerator,
        "kw": one.per_kw_site,
        "usd": one.per_usd_h,
        "pod": one.tokens_per_s,
        "stream": None if one.stream is None else Estimate.exactly(1.0) / one.stream.tpot_s,
    }[by]
    return -1.0 if value is None else value.likely


def _best(question: Question, found: Search, tried: int) -> Confirmed | None:
    best: Confirmed | None = None
    for candidate in found.ranked()[:tried]:
        promised = candidate.tokens_per_s / question.output_tokens
        if best is not None and promised <= best.goodput_per_s:
            break  # they are in order: no later one promises more
        one = confirm(question, candidate)
        if one is not None and (best is None or one.goodput_per_s > best.goodput_per_s):
            best = one
    return best


def _why(question: Question, where: Island, found: Search) -> str:
    """The link whose bandwidth nobody published where the model fits only beyond it, else what its layouts fail at."""
    beyond = next((tier.name for tier in where.rank.tiers if tier.bytes_per_s is None), None)
    reach = where.rank.reach
    if found.misses or beyond is None or reach is None or reach >= where.ranks:
        return nearest(question, [found])
    before = "on one rank alone" if reach == 1 else f"on the {reach} ranks before it"
    return f"no bandwidth of its {beyond!r} tier on record; {before} {question.model.name} and one request do not fit"


def _placed(question: Question, where: Island, best: Confirmed, found: Search, at: Site) -> Placed:
    candidate = best.candidate
    deployment = candidate.deployment
    evidence = where.rank.calibration.evidence
    band = band_under(own_of(deployment, question.backend), evidence, "agg", "tpot")
    tokens_per_s = best.goodput_per_s * question.output_tokens
    each = Estimate.exactly(tokens_per_s) / Estimate(band.low, 1.0, band.high)
    output = Output(
        accelerators=candidate.accelerators,
        tokens_per_s=tokens_per_s / candidate.accelerators,
        band=band,
    )
    run = running(where, serving(question, best), output, at)
    return Placed(
        name=where.name,
        island=where,
        confirmed=best,
        evidence=evidence,
        tokens_per_s=each,
        per_accelerator=each / candidate.accelerators,
        per_kw_it=None if run.it_w is None else each / run.it_w * 1e3,
        per_kw_site=None if run.site_w is None else each / run.site_w * 1e3,
        per_usd_h=None if run.usd_per_h is None else each / run.usd_per_h,
        running=run,
        stream=_stream(question, where, deployment.precision, band),
        context_tokens=largest_context(deployment),
        bound={str(phase): why for phase, why in bounds(question, candidate).items()},
        band=band,
        looked_at=found.looked_at,
    )


def largest_context(deployment: Deployment) -> float | None:
    """Tokens that one sequence alone may have on a replica, windows and states full; None where its cache does not grow.

    The cache of a sequence is on one data-parallel rank's group; the model's own limit is not looked at.
    """
    memory = deployment.memory()
    if memory.kv_bytes_per_token <= 0:
        return None
    room = memory.kv_bytes - memory.fixed_bytes(float("inf"))
    return max(room, 0.0) / memory.kv_bytes_per_token


def _stream(question: Question, where: Island, precision: Precision, band: Band) -> Stream | None:
    """The fastest layout for one sequence alone: one data-parallel rank, in no more than one stage where the model fits in one."""
    for stages in (range(1, 2), range(2, 17)):
        found = [
            (_alone_s(question, deployment), deployment.layout)
            for deployment in _alone(question, where, precision, stages)
        ]
        if found:
            tpot_s, layout = min(found, key=lambda one: (one[0], one[1].world))
            return Stream(layout=layout, tpot_s=Estimate(band.low, 1.0, band.high) * tpot_s)
    return None


def _alone(
    question: Question, where: Island, precision: Precision, stages: range
) -> Iterable[Deployment]:
    whole = question.input_tokens + question.output_tokens
    scale = own_scale(question, where, precision)
    for layout in layouts(question.model, where):
        if layout.dp > 1 or layout.pp not in stages:
            continue
        try:
            check_layout(question.model, layout)
            deployment = Deployment.make(question.model, layout, precision, where.rank, scale)
        except LayoutError:
            continue
        if deployment.memory(whole).tokens_of(whole) >= whole:
            yield deployment


def _alone_s(question: Question, deployment: Deployment) -> float:
    """Seconds a token takes one sequence, half of its answer given."""
    drafts, longer = question.decoding()
    step_s = deployment.step_s(
        sequences=1.0,
        kv_tokens=question.input_tokens + question.output_tokens / 2,
        drafts=drafts,
    )
    return float(step_s * longer / question.given(1.0))
