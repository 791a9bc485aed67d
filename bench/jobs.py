"""How fast the job scheduler decides, at 10,240 cards with thousands of jobs waiting. Run: python bench/jobs.py [jobs] [reservations]

A decision is an answer about one job: a submission taken in (started, queued or refused), a waiting job started, a run ended or stopped. CPU seconds are of
the scheduler alone, the driver's left out. Beside it stands what a peer says of its own: ten thousand jobs a second, on hardware not stated.
"""

import heapq
import sys
import time
from typing import NamedTuple

import numpy as np

from polypod.policy.actions import WakeAt
from polypod.policy.events import Woke
from polypod.policy.job_events import JobFinished, JobSubmitted, PreemptJob, StartJob
from polypod.policy.job_fleet import Fleet, IslandCards, JobRules
from polypod.policy.job_kernels import compiled
from polypod.policy.jobs import Scheduler

CARDS = 10_240
CLAIM_PER_S = 10_000.0


def jobs(
    count: int, cards: int, backlog: int, seed: int = 0
) -> tuple[list[JobSubmitted], np.ndarray]:
    """The first `backlog` jobs are all there at second 0, then more come as fast as the fleet can run them."""
    rng = np.random.default_rng(seed)
    sizes = 2 ** rng.choice(8, count, p=[0.30, 0.15, 0.15, 0.25, 0.07, 0.05, 0.02, 0.01])
    work_s = rng.lognormal(7.0, 1.0, count)
    gap_s = float((sizes * work_s).mean()) / cards
    at_s = np.concatenate([np.zeros(backlog), np.cumsum(rng.exponential(gap_s, count - backlog))])
    limit_s = work_s * rng.uniform(1.0, 3.0, count)
    return [
        JobSubmitted(
            at_s=float(at_s[n]),
            job=n,
            cards=int(sizes[n]),
            kinds=((), ("x",), ("y", "x"))[n % 3],
            limit_s=float(limit_s[n]),
            tenant="abcdefgh"[n % 8],
        )
        for n in range(count)
    ], work_s


class Played(NamedTuple):
    decisions: int
    events: int
    waiting: list[int]
    cpu_s: float


def play(fleet: Fleet, asked: list[JobSubmitted], work_s: np.ndarray, reservations: int) -> Played:
    """All jobs from submission to end; the scheduler's CPU alone."""
    scheduler = Scheduler(fleet, JobRules(reservations=reservations), loops=compiled())
    agenda: list[tuple[float, int, int, object]] = [(a.at_s, 2, n, a) for n, a in enumerate(asked)]
    entries, decisions, events, waiting, cpu_s = len(asked), 0, 0, [], 0.0
    while agenda and len(scheduler.live) + len(agenda) > 0:
        at_s, _, _, event = heapq.heappop(agenda)
        begin_s = time.process_time()
        actions = scheduler.handle(event)  # type: ignore[arg-type]
        cpu_s += time.process_time() - begin_s
        events += 1
        decisions += not isinstance(event, Woke)
        if events % 100 == 0:
            waiting.append(len(scheduler.waiting))
        is_new = isinstance(event, JobSubmitted)
        for action in actions:
            entries += 1
            if isinstance(action, StartJob):
                decisions += not (is_new and action.job == event.job)
                end_s = at_s + float(work_s[action.job])
                heapq.heappush(agenda, (end_s, 0, entries, JobFinished(at_s=end_s, job=action.job, run=action.run)))  # fmt: skip
            elif isinstance(action, PreemptJob):
                decisions += 1
            elif isinstance(action, WakeAt) and (scheduler.live or agenda):
                heapq.heappush(agenda, (max(at_s, action.at_s), 1, entries, Woke(at_s=max(at_s, action.at_s))))  # fmt: skip
    return Played(decisions, events, waiting, cpu_s)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
    reservations = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    fleet = Fleet(
        islands=tuple(
            IslandCards(name=kind, kind=kind, cards=CARDS // 2, node_cards=8, rack_cards=64)
            for kind in "xy"
        )
    )
    backlog = min(4_000, count // 4)
    play(fleet, *jobs(2_000, CARDS, 1_000), reservations)  # compile, or read what was compiled
    found = play(fleet, *jobs(count, CARDS, backlog), reservations)
    print(f"cards               {CARDS:,} of two kinds, in nodes of 8 and racks of 64")
    print(
        f"jobs                {count:,}, {backlog:,} of them at second 0; {reservations} reservations kept"
    )
    print(f"waiting             {np.mean(found.waiting):,.0f} on average, {max(found.waiting):,} at most")  # fmt: skip
    print(f"CPU                 {found.cpu_s:.2f} s for {found.events:,} events")
    print(f"decisions           {found.decisions / found.cpu_s:,.0f} a CPU second (bound: 20,000)")
    print(
        f"jobs from submission to end  {count / found.cpu_s:,.0f} a CPU second; a peer says {CLAIM_PER_S:,.0f} a second"
    )


if __name__ == "__main__":
    main()
