"""What a deployment draws while it serves, from what its steps spend their seconds on.

A kernel of `t` seconds that moves bytes for `m` of them and multiplies for `c` draws, as a fraction of the design power,

    idle + (memory - idle) * m / t + (compute - idle) * c / t + (launch - idle) * fixed / t          never above 1

an exchange `link`, the engine's own share of a step `launch`; ranks that wait for another's prompt draw as in an exchange. The fractions are data
(`data/power.toml`), each low, likely and high, so every figure made of them has these three ends. Ends are added end to end: the true figure lies further
inside than they say.

Beside the accelerator stand its host, network and fans, from the pod's own power where it states one, and the site's PUE.
"""

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final, Self

from polypod import units
from polypod.catalog.load import load_accelerator
from polypod.catalog.schema import Pod
from polypod.cost.calibration import of
from polypod.cost.deployment import Deployment
from polypod.cost.roofline import OpTime
from polypod.cost.step import Part
from polypod.plan.confirm import Confirmed
from polypod.plan.place import Island
from polypod.plan.search import Question
from polypod.workload.forward import Op

ENDS: Final = ("low", "likely", "high")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its two ends.

    >>> Estimate(1, 2, 3) + Estimate.exactly(1), Estimate(1, 2, 3) * 2, Estimate(6, 6, 6) / Estimate(1, 2, 3)
    (Estimate(low=2, likely=3, high=4), Estimate(low=2, likely=4, high=6), Estimate(low=2.0, likely=3.0, high=6.0))
    """

    low: float
    likely: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Self:
        """One that is known."""
        return cls(value, value, value)

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def __mul__(self, other: "Estimate | float") -> "Estimate":
        by = other if isinstance(other, Estimate) else Estimate.exactly(other)
        return Estimate(self.low * by.low, self.likely * by.likely, self.high * by.high)

    def __truediv__(self, other: "Estimate | float") -> "Estimate":
        by = other if isinstance(other, Estimate) else Estimate.exactly(other)
        return Estimate(self.low / by.high, self.likely / by.likely, self.high / by.low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Fractions of the design power: of an idle accelerator, of a busy one by what it is busy with, and of its host."""

    idle: Estimate
    memory: Estimate
    compute: Estimate
    launch: Estimate
    link: Estimate
    host: Estimate
    of_nameplate: Estimate  # that a host draws of what the pod's own power leaves for it


@cache
def shares() -> Shares:
    """The fractions on record."""
    raw = tomllib.loads(
        resources.files("polypod.plan").joinpath("data", "power.toml").read_text("utf-8")
    )
    of_host = Estimate(*raw["host"]["of_nameplate"])
    return Shares(of_nameplate=of_host, **{key: Estimate(*raw[key]["fraction"]) for key in raw})


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A replica at work: what a mean step of it does, on one data-parallel rank."""

    deployment: Deployment
    sequences: float
    context_tokens: float
    chunk_tokens: float = 0.0  # of a prompt, in the steps that carry one
    pairs: float = 0.0  # that the chunk attends to
    chunk_share: float = 0.0  # of a rank's steps that carry one of its own prompts
    drafts: float = 0.0
    busy_fraction: float = 1.0  # of the time, with a step on


def serving(question: Question, confirmed: Confirmed) -> Serving:
    """A confirmed candidate at the rate it was confirmed at: fewer sequences run than its batch holds."""
    candidate, outcome = confirmed.candidate, confirmed.outcome
    tpot_s = float(outcome.tpot_s.mean())
    running = min(outcome.rate_per_s * question.output_tokens * tpot_s, candidate.sequences)
    return serving_at(
        question,
        candidate.deployment,
        sequences=running / candidate.deployment.layout.dp,
        chunk_tokens=candidate.chunk_tokens,
        busy_fraction=min(outcome.busy_fraction, 1.0),
    )


def serving_at(
    question: Question,
    deployment: Deployment,
    *,
    sequences: float,
    chunk_tokens: float,
    busy_fraction: float = 1.0,
) -> Serving:
    """A replica at so many sequences a rank, its prompts in chunks of so many tokens beside them."""
    output = float(question.output_tokens)
    chunk = min(max(chunk_tokens, 1.0), question.fresh_tokens)
    given = float(question.given(deployment.layout.dp * sequences))
    return Serving(
        deployment=deployment,
        sequences=sequences,
        context_tokens=question.input_tokens + output / 2,
        chunk_tokens=chunk,
        pairs=float(question.pairs(chunk)),
        chunk_share=min(sequences * given / output * math.ceil(question.fresh_tokens / chunk), 1.0),
        drafts=question.decoding()[0],
        busy_fraction=busy_fraction,
    )


def drawn_fraction(run: Serving, fractions: Shares | None = None) -> Estimate:
    """What an accelerator draws in the mean, over its design power: between `idle` and 1."""
    at = fractions or shares()
    ends = [_drawn(run, at, end) for end in ENDS]
    return Estimate(*ends)


def likely_fraction(run: Serving) -> float:
    """Its likely figure alone."""
    return _drawn(run, shares(), "likely")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """A rank's steps without and with a prompt: seconds of each, joules over the design power, and the share of steps with one."""

    decode_s: float
    decode_joules_per_w: float
    prompt_s: float
    prompt_joules_per_w: float
    prompt_share: float  # of the steps, with a prompt of any rank

    @property
    def step_s(self) -> float:
        """Mean."""
        return self.decode_s + self.prompt_share * (self.prompt_s - self.decode_s)

    @property
    def drawn_fraction(self) -> float:
        """Mean over the time with a step on."""
        longer = self.prompt_share * (self.prompt_joules_per_w - self.decode_joules_per_w)
        return (self.decode_joules_per_w + longer) / self.step_s


def phases(run: Serving, end: str = "likely", fractions: Shares | None = None) -> Phases:
    """The two kinds of a rank's steps, at one end. In one with a prompt of another rank it waits, which draws as an exchange does."""
    at = fractions or shares()
    decode_s, decode_j = _step(run, at, end, chunk=False)
    if run.chunk_share <= 0:
        return Phases(decode_s=decode_s, decode_joules_per_w=decode_j, prompt_s=decode_s, prompt_joules_per_w=decode_j, prompt_share=0.0)  # fmt: skip
    mixed_s, mixed_j = _step(run, at, end, chunk=True)
    ranks_share = 1 - math.exp(-run.deployment.layout.dp * run.chunk_share)
    own = min(run.chunk_share / ranks_share, 1.0)
    longer_s = max(mixed_s - decode_s, 0.0)
    above_j = own * (mixed_j - decode_j) + (1 - own) * longer_s * float(getattr(at.link, end))
    return Phases(
        decode_s=decode_s,
        decode_joules_per_w=decode_j,
        prompt_s=decode_s + longer_s,
        prompt_joules_per_w=decode_j + above_j,
        prompt_share=ranks_share,
    )


def _drawn(run: Serving, at: Shares, end: str) -> float:
    """Mean power over the design power, of steps with and without a prompt and of the time between them."""
    busy = phases(run, end, at).drawn_fraction
    return run.busy_fraction * busy + (1 - run.busy_fraction) * float(getattr(at.idle, end))


def _step(run: Serving, at: Shares, end: str, *, chunk: bool) -> tuple[float, float]:
    """One step's seconds, and its joules per watt of design power."""
    deployment = run.deployment
    ops = deployment.ops(
        sequences=run.sequences,
        kv_tokens=run.sequences * run.context_tokens,
        prompt_tokens=run.chunk_tokens if chunk else 0.0,
        pairs=run.pairs if chunk else 0.0,
        drafts=run.drafts,
    )
    return step_energy(deployment, ops, run.sequences, at, end)


def step_energy(
    deployment: Deployment, ops: list[Op], sequences: float, at: Shares, end: str
) -> tuple[float, float]:
    """Seconds of a step, and joules over the design power in watts.

    Idle power flows through the whole step, what the parts draw above it through theirs.
    """
    cost = deployment.cost(ops)
    engine = deployment.served.calibration.engine
    waits_s = float(cost.stages * cost.engine_s + of(engine.sequence_s, "likely") * sequences)
    whole_s = float(cost.total_s + of(engine.sequence_s, "likely") * sequences)
    idle = float(getattr(at.idle, end))
    above = cost.stages * sum(_above(part, at, end) for part in cost.parts)
    above += (float(getattr(at.launch, end)) - idle) * waits_s
    return whole_s, min(idle * whole_s + above, whole_s)


def split_fraction() -> Estimate:
    """What both sides of attention and experts apart draw at work: they wait for memory or for the exchange."""
    at = shares()
    return Estimate(min(at.link.low, at.memory.low), at.memory.likely, at.memory.high)


def prefill_fraction(question: Question, deployment: Deployment, step_tokens: float) -> Estimate:
    """What a rank that only computes prompts draws while it does, so many tokens a step."""
    ops = deployment.ops(prompt_tokens=step_tokens, pairs=question.pairs(step_tokens))
    found = [step_energy(deployment, ops, 0.0, shares(), end) for end in ENDS]
    return Estimate(*(joules / step_s for step_s, joules in found))


def _above(part: Part, at: Shares, end: str) -> float:
    """Joules of one part above idle, over the design power."""
    idle = float(getattr(at.idle, end))
    total_s = float(part.total_s)
    time = part.time
    if not isinstance(time, OpTime):
        return (float(getattr(at.link, end)) - idle) * total_s
    each_s = float(time.total_s)
    if each_s <= 0:
        return 0.0
    spent = {"memory": time.memory_s, "compute": time.compute_s, "launch": time.fixed_s}
    drawn = sum(
        (float(getattr(getattr(at, what), end)) - idle) * float(seconds) / each_s
        for what, seconds in spent.items()
    )
    return min(drawn, 1 - idle) * total_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Nameplate:
    """What one accelerator and its part of the rest may draw at most, and what the host is taken to draw."""

    accelerator_w: float
    host_w: Estimate
    most_w: float  # both, as provisioned
    evidence: str  # of the design power
    note: str = ""


def nameplate(island: Island) -> Nameplate | str:
    """The design power of an island's accelerators and of what stands beside each; else in words what is not known."""
    chip = load_accelerator(island.rank.chip)
    each_w = _pod_w(island.pod)
    at = shares()
    if chip.power_w is None and each_w is None:
        where = f" nor of {island.pod.id}" if island.pod else ""
        return f"no power of {chip.id}{where} on record"
    if chip.power_w is None:
        assert each_w is not None
        design_w = each_w / (1 + at.host.likely)
        note = f"{chip.id}: no design power on record; {units.show(design_w, 'w')} taken, its pod's share of {units.show(each_w, 'w')} less a host"
        rest_w = each_w - design_w
        return Nameplate(
            accelerator_w=design_w,
            host_w=at.of_nameplate * rest_w,
            most_w=each_w,
            evidence="estimated",
            note=note,
        )
    design_w = chip.power_w.value
    if each_w is None or each_w <= design_w:
        host_w = at.host * design_w
        note = f"{chip.id}: no power of its pod on record; host and network taken at {at.host.likely:.0%} of its design power"
        return Nameplate(
            accelerator_w=design_w,
            host_w=host_w,
            most_w=design_w + host_w.likely,
            evidence=chip.power_w.kind,
            note=note,
        )
    return Nameplate(
        accelerator_w=design_w,
        host_w=at.of_nameplate * (each_w - design_w),
        most_w=each_w,
        evidence=chip.power_w.kind,
    )


def _pod_w(pod: Pod | None) -> float | None:
    """A pod's power over its accelerators."""
    return None if pod is None or pod.power_w is None else pod.power_w.value / pod.accelerators


@dataclass(frozen=True, slots=True, kw_only=True)
class Watts:
    """What one accelerator of a deployment draws in the mean, with its part of the rest."""

    plate: Nameplate
    accelerator_w: Estimate
    pue: Estimate

    @property
    def it_w(self) -> Estimate:
        """With host and network."""
        return self.accelerator_w + self.plate.host_w

    @property
    def site_w(self) -> Estimate:
        """With cooling and losses of the building too."""
        return self.it_w * self.pue


def watts(run: Serving, plate: Nameplate, pue: Estimate) -> Watts:
    """The power of a replica at work, for each of its accelerators."""
    return watts_at(drawn_fraction(run), plate, pue)


def watts_at(drawn: Estimate, plate: Nameplate, pue: Estimate) -> Watts:
    """The same at a fraction of the design power."""
    return Watts(plate=plate, accelerator_w=drawn * plate.accelerator_w, pue=pue)
