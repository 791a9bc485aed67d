"""`polypod simulate PLAN --jobs FILE`: batch and training jobs on the cards that the plan's services leave."""

import argparse
import json
from pathlib import Path
from typing import Any, Final

from polypod import units
from polypod.cli.asking import note
from polypod.plan.spec import Plan
from polypod.policy.job_kernels import PLAIN, compiled, has_numba
from polypod.report.tables import entry, table
from polypod.simulate.job_plan import job_scenario
from polypod.simulate.job_summary import summary
from polypod.simulate.job_trace import Jobs
from polypod.simulate.jobs import play_jobs

COMPILED_FROM: Final = 2000
"""Jobs from which on compiled loops are worth their start; the decisions are the same."""


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """What `polypod simulate` asks about jobs."""
    parser.add_argument(
        "--jobs",
        metavar="FILE",
        help="play batch and training jobs beside the plan's services: a trace (CSV, JSON lines, Helios, Philly, Alibaba) or a YAML file with tenants, rules and faults",
    )


def run_jobs(plan: Plan, path: Path, *, is_json: bool) -> int:
    """Play the jobs of a file on the plan's fleet and print what came of it; the exit code.

    Raises `InputError` as `job_scenario` and `play_jobs` do.
    """
    scenario, jobs = job_scenario(plan, path)
    is_large = len(scenario.jobs) >= COMPILED_FROM
    run = play_jobs(scenario, loops=compiled() if is_large and has_numba() else PLAIN)
    weights = {tenant.name: tenant.fair_share for tenant in scenario.rules.tenants}
    found = summary(run, weights) | {"left_out": dict(jobs.left_out)}
    for life in run.lives:
        if life.outcome == "rejected":
            note(f"job {life.job.asked.job}: {life.reason}")
    print(json.dumps(found, indent=2) if is_json else job_text(found, jobs))
    return 0


def job_text(found: dict[str, Any], jobs: Jobs) -> str:
    """The summary for people."""
    ends = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in found["jobs"].items())  # fmt: skip
    left = "".join(f"; {count} {reason} left out" for reason, count in jobs.left_out.items())
    used = (
        f"{found['used_fraction']:.1%} of {found['cards']:,} cards over {units.show(found['window_s'], 's')}: "
        f"jobs {found['job_fraction']:.1%}, services {found['service_fraction']:.1%}; broken {found['broken_fraction']:.1%}"
    )
    lines = [
        entry("jobs", f"{jobs.name}: {ends}{left}"),
        entry("used", used),
        entry("waiting", f"{found['waiting_jobs_mean']:.1f} jobs on average; {found['backfilled_fraction']:.1%} went past a reserved one"),
        entry("stopped", f"{found['preemptions']} times, {units.show(found['lost_card_s'] / 3600, 'tokens')} card-hours of work lost"),
        entry("free cards", f"{found['fragmented_fraction']:.1%} of them on nodes that are partly used"),
        entry("fairness", f"{found['jain_of_use_by_weight']:.3f} (Jain, of use by weight)"),
    ]  # fmt: skip
    if found["unserved_replicas"]:
        lines.append(entry("services", f"{found['unserved_replicas']} replicas still wait for cards"))  # fmt: skip
    rows = [
        *_rows("", found["waits"]),
        *_rows("tenant ", found["waits_by_tenant"]),
        *_rows("cards ", found["waits_by_cards"]),
    ]
    header = ["waits of", "jobs", "mean", "p50", "p95", "most", "slowdown"]
    return "\n".join([*lines, "", table(header, rows, right=range(1, 7))])


def _rows(label: str, groups: dict[str, dict[str, float]]) -> list[list[str]]:
    return [
        [
            label + (name or "(none)"),
            f"{of['jobs']:,}",
            *(units.show(of[key], "s") for key in ("mean_s", "p50_s", "p95_s", "most_s")),
            f"{of['slowdown_mean']:.2f}",
        ]
        for name, of in groups.items()
    ]
