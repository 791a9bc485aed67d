"""What `up` and `devices` say, in 80 columns."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from polypod import units
from polypod.cost.calibration import Case
from polypod.plan.host import RequestTime
from polypod.plan.spec import Plan, Pool, Spread
from polypod.report.tables import entry, table
from polypod.serve.ask import Asked
from polypod.serve.devices.cpu import HostCpu
from polypod.serve.devices.measure import HostMeasurement
from polypod.serve.node import WarmUp
from polypod.serve.nodes import Cleaned
from polypod.workload.model import Model, parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """The cache of a prompt on its way between two replicas, by the engines' own clocks."""

    size_bytes: int
    save_s: float
    restore_s: float
    predicted_restore_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One replica's answer to the question, with what was predicted for a request of that very length."""

    asked: Asked
    predicted: RequestTime
    warm_up: WarmUp
    handover: "HandedOver | None" = None

    @property
    def corrected_ttft_s(self) -> float:
        return self.predicted.ttft_s["likely"] * self.warm_up.prefill_ratio

    @property
    def corrected_tpot_s(self) -> float:
        return self.predicted.tpot_s["likely"] * self.warm_up.decode_ratio


def machine_text(cpu: HostCpu, measured: HostMeasurement) -> str:
    """The CPU and what it measured."""
    cores = "1 core" if cpu.usable_cores == 1 else f"{cpu.usable_cores} cores"
    nodes = f" on {len(cpu.groups)} NUMA nodes" if len(cpu.groups) > 1 else ""
    features = [
        one
        for one in ("amx_int8", "amx_bf16", "avx512_vnni", "avx512f", "avx2", "sve", "neon")
        if one in cpu.features
    ]
    lines = [
        entry(
            "machine",
            f"{cpu.model}, {cores}{nodes}, {units.show(cpu.usable_memory_bytes, 'bytes')} free",
        ),
        entry("", ", ".join(features[:4]) or "no vector unit that we know"),
        *[entry("", note) for note in cpu.notes],
        entry("measured", f"{measured.at:%Y-%m-%d %H:%M} UTC, kind: measured"),
    ]
    lines += [entry("", text) for text in rates(measured)]
    return "\n".join(lines)


def rates(measured: HostMeasurement) -> list[str]:
    """GEMM per type and memory traffic, on one core and on all."""
    threads = sorted({rate.threads for rate in measured.gemm})
    found = []
    for count in threads:
        gemm = [
            f"{rate.dtype} {units.show(rate.flops_per_s.median, 'flops_per_s')}"
            for rate in measured.gemm
            if rate.threads == count
        ]
        reads = [
            f"{units.show(rate.bytes_per_s.median, 'bytes_per_s')} from {units.show(rate.buffer_bytes, 'bytes')}"
            for rate in measured.bandwidth
            if rate.threads == count and rate.kind == "read"
        ]
        cores = "1 core:  " if count == 1 else f"{count} cores: "
        found.append(f"{cores}GEMM {', '.join(gemm)}; read {', '.join(reads)}")
    return found + [f"{dtype} not measured: {why}" for dtype, why in measured.absent.items()]


def model_text(plan: Plan, model: Model) -> str:
    """The model that is served."""
    service = plan.services[0]
    form = service.pools[0].precision.weights
    return entry(
        "model",
        f"{service.model}, {parameters(model) / 1e6:.1f} M parameters, {form}, context {service.context or '?'}",
    )


def plan_text(plan: Plan) -> str:
    """The pools, and what is predicted of each before anything has run."""
    service = plan.services[0]
    rows = [_pool_row(plan, pool) for pool in service.pools]
    lines = [
        entry(
            "plan",
            f"{len(rows)} {'replica' if len(rows) == 1 else 'replicas'} behind one endpoint; predicted, with the band in brackets:",
        ),
        "",
    ]
    lines.append(table(["replica", "cores", "TTFT", "TPOT", "full batch"], rows))
    lines += ["", *[entry("", note) for note in plan.notes]]
    return "\n".join(lines)


def warm_up_text(news: WarmUp) -> str:
    """The correction, on one line."""
    start = "" if news.epoch == 1 else f" (start {news.epoch})"
    return (
        f"warm-up       {news.replica}{start}: prefill took {news.prefill_ratio:.2f} x, decode {news.decode_ratio:.2f} x "
        f"the predicted time"
    )


def cleaned_text(cleaned: Cleaned) -> str:
    """What a crashed node had left, and what became of it."""
    node, pids = cleaned.node, ", ".join(map(str, cleaned.ended))
    left = f"its processes {pids} were still running and are ended" if pids else "nothing of it was running"  # fmt: skip
    return f"an earlier node (process {node.pid}, {node.url}) crashed; {left}"


def answers_text(question: str, answers: Sequence[Answered]) -> str:
    """The question, every replica's answer, and predicted, corrected and measured times side by side."""
    lines = ["", entry("question", question)]
    lines += [
        entry(one.asked.replica or "?", one.asked.text.strip().replace("\n", " "))
        for one in answers
    ]
    rows = []
    for one in answers:
        predicted, asked = one.predicted, one.asked
        lengths = f"({asked.input_tokens} tokens in, {asked.output_tokens} out)"
        rows += [
            [
                asked.replica or "?",
                "TTFT",
                _banded(predicted.ttft_s),
                units.show(one.corrected_ttft_s, "s"),
                units.show(asked.ttft_s, "s"),
            ],
            [
                f"  {lengths}",
                "TPOT",
                _banded(predicted.tpot_s),
                units.show(one.corrected_tpot_s, "s"),
                units.show(asked.tpot_s, "s"),
            ],
        ]
    lines += [
        "",
        table(["", "", "predicted [band]", "corrected", "measured"], rows, right=[2, 3, 4]),
    ]
    lines += ["", *map(_handover_text, handed)] if (handed := _handed(answers)) else []
    return "\n".join(lines)


def _handed(answers: Sequence[Answered]) -> list[HandedOver]:
    return [one.handover for one in answers if one.handover is not None]


def _handover_text(one: HandedOver) -> str:
    save, restore, predicted = (
        units.show(seconds, "s") for seconds in (one.save_s, one.restore_s, one.predicted_restore_s)
    )
    size = units.show(one.size_bytes, "bytes")
    return entry("cache", f"{size}, saved in {save}, restored in {restore}; {predicted} predicted")


def up_object(
    plan: Plan,
    endpoint: str,
    warm_ups: Sequence[WarmUp],
    question: str,
    answers: Sequence[Answered],
) -> dict[str, Any]:
    """What `up --json` prints."""
    return {
        "endpoint": endpoint,
        "plan": {"polypod": plan.polypod, **msgspec.to_builtins(plan)},
        "warm_up": [msgspec.to_builtins(one) for one in warm_ups],
        "question": question,
        "answers": [
            {
                **msgspec.to_builtins(one.asked),
                "predicted": {"ttft_s": one.predicted.ttft_s, "tpot_s": one.predicted.tpot_s},
                "corrected": {"ttft_s": one.corrected_ttft_s, "tpot_s": one.corrected_tpot_s},
                "handover": None if one.handover is None else asdict(one.handover),
            }
            for one in answers
        ],
    }


def _pool_row(plan: Plan, pool: Pool) -> list[str]:
    cores = _places(plan, pool)
    predicted = pool.predicted
    if predicted is None:
        return [f"{pool.name}-0", cores, "?", "?", "?"]
    full = f"{units.significant(predicted.tokens_per_s_per_accelerator)} tokens/s"
    return [f"{pool.name}-0", cores, _spread(predicted.ttft), _spread(predicted.tpot), full]


def _places(plan: Plan, pool: Pool) -> str:
    """The cores, and of a pipeline how many layers are on which."""
    cores = plan.fleet[pool.on].cores
    if cores is None:
        return f"{pool.layout.world} of {pool.on}"
    if not pool.stages:
        return _cores(cores)
    return " + ".join(
        f"{_cores(plan.fleet[stage.on].cores or ())} ({stage.layers} layers)"
        for stage in pool.stages
    )


def _cores(cores: Sequence[int]) -> str:
    if len(cores) > 2 and list(cores) == list(range(cores[0], cores[-1] + 1)):
        return f"{cores[0]}-{cores[-1]}"
    return ",".join(map(str, cores))


def _spread(spread: Spread | None) -> str:
    return "?" if spread is None else banded(spread.p50, *spread.band)


def _banded(seconds: dict[Case, float]) -> str:
    return banded(*(units.show(seconds[case], "s") for case in ("likely", "fast", "slow")))


def banded(likely: str, fast: str, slow: str) -> str:
    """A quantity and its band, the unit said once where it is the same.

    >>> banded("114 ms", "90 ms", "179 ms"), banded("0.9 s", "700 ms", "1.2 s")
    ('114 [90, 179] ms', '0.9 s [700 ms, 1.2 s]')
    """
    numbers, suffixes = zip(*(one.rsplit(" ", 1) for one in (likely, fast, slow)), strict=True)
    if len(set(suffixes)) == 1:
        return f"{numbers[0]} [{numbers[1]}, {numbers[2]}] {suffixes[0]}"
    return f"{likely} [{fast}, {slow}]"
