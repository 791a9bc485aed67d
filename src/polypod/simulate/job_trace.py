"""Jobs over time: read from a trace file, or drawn.

Our own format is CSV with a header, or JSON lines; `submit_s`, `cards` and `minutes` (of work) are needed, the rest may be left out:

    kind                a kind of card, or several in order, as nvidia-h20|huawei-ascend-910c; none: any
    group, within       groups of so many cards each inside one node; node, rack, island (the default) or fleet
    tenant, priority    the higher first
    limit_minutes       the most work it may do; left out: `minutes` times `limit_ratio`
    checkpoint_minutes, checkpoint_cost_s, restart_s
    preemptible         true (the default) or false
    retries             after failures

Published traces are told by their columns, and converted so; what they do not say (kinds, priorities, checkpoints) is left at its default:

    Helios              cluster_log.csv: gpu_num cards from submit_time for `duration` s, tenant vc; on node_num nodes, evenly where it divides. Jobs without GPUs are left out.
                        https://github.com/S-Lab-System-Group/HeliosData
    Philly              cluster_job_log (JSON): the cards of the first attempt that says which, evenly on its servers where they have the same number; the work of all attempts together.
                        https://github.com/msr-fiddle/philly-traces
    Alibaba 2020        pai_task_table.csv (it has no header): a task is a job; inst_num times plan_gpu percent of a card, rounded up; from its start (the table
                        has no time of submission). https://github.com/alibaba/clusterdata/tree/master/cluster-trace-gpu-v2020
    Alibaba 2023        openb_pod_list_*.csv: num_gpu cards in one node, a part of a card counted as one; from creation_time, for as long as it ran; tenant qos.
                        https://github.com/alibaba/clusterdata/tree/master/cluster-trace-gpu-v2023
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from polypod.errors import FileError, InputError, TraceError
from polypod.policy.job_events import JobSubmitted, Within

Positive = Annotated[int, msgspec.Meta(ge=1)]
More = Annotated[float, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job to be. `work_s` is what it takes: the driver knows, the scheduler does not."""

    asked: JobSubmitted
    work_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """Jobs in the order they are submitted, the first at second 0; and what was left out, by reason."""

    name: str
    jobs: tuple[Job, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)


class _Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    submit_s: float
    cards: Positive
    minutes: Annotated[float, msgspec.Meta(gt=0)]
    kind: str = ""
    group: Positive = 1
    within: Within = "island"
    tenant: str = ""
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    limit_minutes: Annotated[float, msgspec.Meta(gt=0)] | None = None
    checkpoint_minutes: Annotated[float, msgspec.Meta(gt=0)] | None = None
    checkpoint_cost_s: More = 0.0
    restart_s: More = 0.0
    preemptible: bool = True
    retries: Annotated[int, msgspec.Meta(ge=0)] = 0


_NO_CARD: Final = "without a card"
_NOT_ENDED: Final = "that never ran or had not ended"
_NO_TIME: Final = "that took no time"


class _LeftOut(Exception):
    """Why a row of a published trace is no job for cards."""


def read_jobs(path: Path | str, *, limit_ratio: float = 1.0) -> Jobs:
    """Read a trace of jobs. A job without a limit of its own may work `limit_ratio` times as long as it does.

    Raises `TraceError` with the line for a broken row, `FileError` for a file that cannot be read, is of no known format, or has no job.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"cannot be read: {error}") from error
    rows: list[_Row] = []
    left_out: dict[str, int] = {}
    for line, make, raw in _raw(path, text):
        try:
            rows.append(make(raw))
        except _LeftOut as reason:
            left_out[str(reason)] = left_out.get(str(reason), 0) + 1
        except (msgspec.ValidationError, ValueError, KeyError, TypeError, IndexError) as error:
            raise TraceError(path, line, _problem(error)) from error
    if not rows:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise FileError(path, f"holds no job{f' ({why})' if why else ''}")
    return Jobs(name=path.name, jobs=_in_order(rows, limit_ratio), left_out=left_out)


def _problem(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)


def _in_order(rows: list[_Row], limit_ratio: float) -> tuple[Job, ...]:
    rows = sorted(rows, key=lambda row: row.submit_s)
    first_s = rows[0].submit_s
    return tuple(_job(number, row, first_s, limit_ratio) for number, row in enumerate(rows, 1))


def _job(number: int, row: _Row, first_s: float, limit_ratio: float) -> Job:
    every = row.checkpoint_minutes
    asked = JobSubmitted(
        at_s=row.submit_s - first_s,
        job=number,
        cards=row.cards,
        kinds=tuple(kind for kind in row.kind.split("|") if kind),
        group=row.group,
        within=row.within,
        tenant=row.tenant,
        priority=row.priority,
        limit_s=60.0 * (row.limit_minutes or row.minutes * limit_ratio),
        checkpoint_every_s=None if every is None else 60.0 * every,
        checkpoint_cost_s=row.checkpoint_cost_s,
        restart_s=row.restart_s,
        is_preemptible=row.preemptible,
        retries=row.retries,
    )
    return Job(asked=asked, work_s=60.0 * row.minutes)


# ---- formats

_Make = Callable[[Any], _Row]
_ALIBABA_2020: Final = (
    "job_name", "task_name", "inst_num", "status", "start_time", "end_time", "plan_cpu", "plan_mem", "plan_gpu", "gpu_type",
)  # fmt: skip


def _raw(path: Path, text: str) -> list[tuple[int, _Make, Any]]:
    """Each row with its line and what makes a job of it."""
    if text.lstrip().startswith("["):
        try:
            jobs = json.loads(text)
        except json.JSONDecodeError as error:
            raise TraceError(path, error.lineno, f"is not JSON: {error.msg}") from error
        return [(place, _philly, job) for place, job in enumerate(jobs, start=1)]
    if path.suffix in {".json", ".jsonl"}:
        return [
            (line, _own_json, content)
            for line, content in enumerate(text.splitlines(), start=1)
            if content.strip()
        ]
    return _csv(path, text)


def _csv(path: Path, text: str) -> list[tuple[int, _Make, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise TraceError(path, reader.line_num, f"is not CSV: {error}") from error
    if not lines:
        raise FileError(path, "holds no job")
    header = lines[0][1]
    if len(header) == len(_ALIBABA_2020) and set(header) != set(_ALIBABA_2020):
        return [
            (line, _alibaba_2020, dict(zip(_ALIBABA_2020, row, strict=False)))
            for line, row in lines
        ]
    for needed, make in _FORMATS.items():
        if set(needed) <= set(header):
            return [(line, make, _named(path, line, header, row)) for line, row in lines[1:]]
    known = "; ".join(", ".join(needed) for needed in _FORMATS)
    raise FileError(path, f"has the columns {', '.join(header)}, which are of no known trace; known are those with {known}")  # fmt: skip


def _named(path: Path, line: int, header: list[str], row: list[str]) -> dict[str, str]:
    if len(row) != len(header):
        raise TraceError(path, line, f"has {len(row)} fields, the header has {len(header)}")
    return dict(zip(header, row, strict=True))


def _own_json(content: str) -> _Row:
    return msgspec.json.decode(content, type=_Row)


def _own(raw: dict[str, str]) -> _Row:
    given = {name: value for name, value in raw.items() if value != ""}
    return msgspec.convert(given, _Row, strict=False)


def _helios(raw: dict[str, str]) -> _Row:
    cards, nodes, work_s = int(raw["gpu_num"]), int(raw["node_num"]), float(raw["duration"])
    if cards < 1:
        raise _LeftOut(_NO_CARD)
    return _converted(
        _moment_s(raw["submit_time"]),
        cards,
        work_s,
        {"tenant": raw["vc"], **_over_nodes(cards, nodes)},
    )


def _philly(raw: dict[str, Any]) -> _Row:
    attempts = [a for a in raw["attempts"] if a.get("start_time") and a.get("end_time")]
    servers = next(([len(s["gpus"]) for s in a["detail"]] for a in attempts if a["detail"]), [])
    cards = sum(servers)
    if not attempts:
        raise _LeftOut(_NOT_ENDED)
    if cards < 1:
        raise _LeftOut(_NO_CARD)
    work_s = sum(_moment_s(a["end_time"]) - _moment_s(a["start_time"]) for a in attempts)
    shape = _over_nodes(cards, len(servers) if len(set(servers)) == 1 else 0)
    return _converted(
        _moment_s(raw["submitted_time"]), cards, work_s, {"tenant": raw["vc"], **shape}
    )


def _alibaba_2020(raw: dict[str, str]) -> _Row:
    if not (raw["start_time"] and raw["end_time"]):
        raise _LeftOut(_NOT_ENDED)
    if not raw["plan_gpu"] or float(raw["plan_gpu"]) <= 0:
        raise _LeftOut(_NO_CARD)
    cards = math.ceil(float(raw["inst_num"]) * float(raw["plan_gpu"]) / 100)
    start_s = float(raw["start_time"])
    return _converted(start_s, cards, float(raw["end_time"]) - start_s, {})


def _alibaba_2023(raw: dict[str, str]) -> _Row:
    cards = int(raw["num_gpu"])
    if cards < 1:
        raise _LeftOut(_NO_CARD)
    if not (raw["scheduled_time"] and raw["deletion_time"]):
        raise _LeftOut(_NOT_ENDED)
    work_s = float(raw["deletion_time"]) - float(raw["scheduled_time"])
    return _converted(
        float(raw["creation_time"]), cards, work_s, {"tenant": raw["qos"], "within": "node"}
    )


def _over_nodes(cards: int, nodes: int) -> dict[str, Any]:
    """The shape of a gang that ran on so many nodes; 0: not known, or unevenly."""
    if nodes == 1:
        return {"within": "node"}
    return {"group": cards // nodes} if nodes and cards % nodes == 0 else {}


def _converted(submit_s: float, cards: int, work_s: float, more: dict[str, Any]) -> _Row:
    if not work_s > 0:
        raise _LeftOut(_NO_TIME)
    return msgspec.convert(
        {"submit_s": submit_s, "cards": cards, "minutes": work_s / 60.0, **more}, _Row
    )


def _moment_s(text: str) -> float:
    return datetime.fromisoformat(text.strip()).replace(tzinfo=UTC).timestamp()


_FORMATS: Final[dict[tuple[str, ...], _Make]] = {
    ("submit_s", "cards", "minutes"): _own,
    ("gpu_num", "node_num", "submit_time", "duration", "vc"): _helios,
    ("num_gpu", "creation_time", "deletion_time", "scheduled_time", "qos"): _alibaba_2023,
    _ALIBABA_2020: _alibaba_2020,
}


# ---- drawn


class Drawn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Jobs drawn from a Poisson process that asks for `load_ratio` times the cards there are.

    Sizes are powers of two up to `most_cards`, each half as likely as the one before; work is log-normal with this median and a sigma of 1;
    limits are one to three times the work. An assumption, not a fit of a trace.
    """

    count: Positive = 1000
    load_ratio: Annotated[float, msgspec.Meta(gt=0)] = 0.9
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    median_s: Annotated[float, msgspec.Meta(gt=0)] = 1800.0
    most_cards: Positive = 64
    tenants: tuple[str, ...] = ("a", "b")
    checkpoint_s: Annotated[float, msgspec.Meta(gt=0)] | None = 600.0


def draw_jobs(drawn: Drawn, cards: int) -> Jobs:
    """Draw jobs for a fleet of so many cards. The same seed gives the same jobs.

    >>> jobs = draw_jobs(Drawn(count=3, seed=1), 64).jobs
    >>> [(job.asked.cards, round(job.work_s)) for job in jobs]
    [(2, 489), (16, 4451), (1, 2813)]

    Raises `InputError` where the fleet is smaller than the largest job.
    """
    if drawn.most_cards > cards:
        msg = f"jobs of up to {drawn.most_cards} cards are drawn, and the fleet has {cards}; set most_cards lower"
        raise InputError(msg)
    rng = np.random.default_rng(drawn.seed)
    powers = int(math.log2(drawn.most_cards)) + 1
    chances = 0.5 ** np.arange(powers)
    sizes = 2 ** rng.choice(powers, drawn.count, p=chances / chances.sum())
    minutes = drawn.median_s / 60.0 * rng.lognormal(0.0, 1.0, drawn.count)
    ratios = rng.uniform(1.0, 3.0, drawn.count)
    tenants = rng.integers(len(drawn.tenants), size=drawn.count)
    gap_s = 60.0 * float((sizes * minutes).mean()) / (drawn.load_ratio * cards)
    submit_s = np.cumsum(rng.exponential(gap_s, drawn.count))
    rows = [
        _Row(
            submit_s=float(submit_s[n]),
            cards=int(sizes[n]),
            minutes=float(minutes[n]),
            limit_minutes=float(minutes[n] * ratios[n]),
            tenant=drawn.tenants[int(tenants[n])],
            checkpoint_minutes=None if drawn.checkpoint_s is None else drawn.checkpoint_s / 60.0,
        )
        for n in range(drawn.count)
    ]
    return Jobs(name=f"{drawn.count} jobs drawn, seed {drawn.seed}", jobs=_in_order(rows, 1.0))
