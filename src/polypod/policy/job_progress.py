"""How much work a run of a job has done, and how much of it outlives the run."""

import math

from polypod.policy.job_events import JobSubmitted


def wall_s(job: JobSubmitted, work_s: float, *, is_restart: bool) -> float:
    """Seconds that a run takes for so much work: restart, work, and a checkpoint after every full interval but the last.

    >>> job = JobSubmitted(at_s=0, job=1, cards=1, limit_s=100.0, checkpoint_every_s=10.0, checkpoint_cost_s=1.0, restart_s=5.0)
    >>> wall_s(job, 30, is_restart=False), wall_s(job, 30, is_restart=True), wall_s(job, 31, is_restart=False)
    (32.0, 37.0, 34.0)
    """
    begin_s = job.restart_s if is_restart else 0.0
    if job.checkpoint_every_s is None:
        return begin_s + float(work_s)
    checkpoints = max(0, math.ceil(work_s / job.checkpoint_every_s) - 1)
    return begin_s + work_s + checkpoints * job.checkpoint_cost_s


def done_s(job: JobSubmitted, ran_s: float, *, is_restart: bool) -> tuple[float, float]:
    """Work done, and the part of it that a checkpoint holds, in a run that was stopped after `ran_s`.

    A checkpoint that is being written when the run stops holds nothing.

    >>> job = JobSubmitted(at_s=0, job=1, cards=1, limit_s=100.0, checkpoint_every_s=10.0, checkpoint_cost_s=1.0, restart_s=5.0)
    >>> done_s(job, 25, is_restart=False), done_s(job, 10.5, is_restart=False), done_s(job, 18, is_restart=True)
    ((23.0, 20.0), (10.0, 0.0), (12.0, 10.0))
    """
    running_s = max(0.0, ran_s - (job.restart_s if is_restart else 0.0))
    if job.checkpoint_every_s is None:
        return running_s, 0.0
    cycle_s = job.checkpoint_every_s + job.checkpoint_cost_s
    cycles = math.floor(running_s / cycle_s)
    saved_s = cycles * job.checkpoint_every_s
    return saved_s + min(running_s - cycles * cycle_s, job.checkpoint_every_s), saved_s
