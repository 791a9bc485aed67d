"""Jobs on a virtual clock, against queueing theory, hand-worked runs and laws of fair sharing; and traces as they are published."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polypod.errors import FileError, InputError, TraceError
from polypod.policy.job_events import JobSubmitted, PreemptJob, ServiceWants, StartJob
from polypod.policy.job_fleet import Fleet, IslandCards, JobRules, Tenant
from polypod.policy.job_kernels import PLAIN, compiled, has_numba
from polypod.simulate.job_trace import Drawn, Job, draw_jobs, read_jobs
from polypod.simulate.jobs import CardFault, JobRun, JobScenario, play_jobs


def fleet(cards: int, node: int = 8) -> Fleet:
    return Fleet(islands=(IslandCards(name="a", kind="x", cards=cards, node_cards=node),))


def job(number: int, cards: int, at_s: float, work_s: float, **more: Any) -> Job:
    limit_s = more.pop("limit_s", work_s)
    asked = JobSubmitted(at_s=at_s, job=number, cards=cards, limit_s=limit_s, **more)
    return Job(asked=asked, work_s=work_s)


def played(cards: int, *jobs: Job, **more: Any) -> JobRun:
    return play_jobs(JobScenario(fleet=fleet(cards), jobs=jobs, **more), is_keeping=True)


# ---- a queue of known mean


def erlang_c(servers: int, offered: float) -> float:
    """The share of arrivals that wait in M/M/c; offered load in servers (Erlang 1917; Kleinrock, Queueing Systems I, 3.5)."""
    terms = [offered**n / math.factorial(n) for n in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last)


def test_jobs_of_one_card_wait_as_erlang_says() -> None:
    """Ten cards, exponential gaps and times, load 0.8: the mean of 16 runs of 1,500 jobs, within 2.95 standard errors (Student's t, 15 degrees of freedom, 99 %)."""
    servers, load, mean_s = 10, 0.8, 100.0
    means = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        at_s = np.cumsum(rng.exponential(mean_s / (servers * load), 1500))
        work_s = rng.exponential(mean_s, 1500)
        jobs = [job(n, 1, float(at_s[n]), float(work_s[n])) for n in range(1500)]
        run = play_jobs(JobScenario(fleet=fleet(servers), jobs=tuple(jobs)))
        means.append(np.mean([life.wait_s for life in run.lives[200:]]))
    expected_s = erlang_c(servers, servers * load) * mean_s / (servers * (1 - load))
    assert expected_s == pytest.approx(20.46, abs=0.01)
    error_s = float(np.std(means, ddof=1)) / math.sqrt(len(means))
    assert abs(float(np.mean(means)) - expected_s) < 2.95 * error_s
    assert error_s < 0.12 * expected_s


def test_no_card_is_idle_while_a_job_of_one_card_waits() -> None:
    rng = np.random.default_rng(3)
    at_s, work_s = np.cumsum(rng.exponential(8, 300)), rng.exponential(100, 300)
    run = played(10, *[job(n, 1, float(at_s[n]), float(work_s[n])) for n in range(300)])
    assert max(sample.waiting_jobs for sample in run.samples) > 10
    assert all(sample.free_cards == 0 for sample in run.samples if sample.waiting_jobs)


# ---- worked by hand


def test_a_queue_with_backfill_worked_by_hand() -> None:
    """1 has 6 of 10 cards to 100, 2 waits for 8 until then; 3 goes past on 4 to 90; 4 cannot, and starts after 2."""
    run = played(10, job(1, 6, 0, 100), job(2, 8, 1, 50), job(3, 4, 2, 88), job(4, 4, 3, 99))
    starts_s = [life.first_start_s for life in run.lives]
    assert starts_s == [0, 100, 2, 150]
    assert [life.is_backfilled for life in run.lives] == [False, False, True, False]
    assert run.end_s == 249
    assert run.window_s == 3
    assert run.job_card_s == 6 * 3 + 4 * 1


def test_lost_work_and_restarts_are_counted_by_hand() -> None:
    """A job of 100 s with a checkpoint of 2 s after every 10 loses a card at 30: 2 cycles of 12 saved, 6 s lost. It goes on at 40 for 5 + 80 + 7 * 2 s."""
    own = {"checkpoint_every_s": 10.0, "checkpoint_cost_s": 2.0, "restart_s": 5.0}
    faults = (CardFault(at_s=30, cards=(1,), what="lost"), CardFault(at_s=40, cards=(1,), what="back"))  # fmt: skip
    [life] = played(2, job(1, 2, 0, 100, **own), faults=faults).lives
    assert (life.lost_s, life.preemptions, life.runs) == (6, 1, 2)
    assert life.end_s == 40 + 5 + 80 + 14


def test_what_the_scheduler_says_is_lost_is_what_the_driver_counts() -> None:
    jobs = draw_jobs(Drawn(count=300, load_ratio=1.5, seed=4, most_cards=16), 32).jobs
    jobs = tuple(Job(asked=urgent(j.asked), work_s=j.work_s) for j in jobs)
    run = played(32, *jobs)
    said_s = sum(a.lost_s for _, actions in run.steps for a in actions if isinstance(a, PreemptJob))
    assert said_s == pytest.approx(sum(life.lost_s for life in run.lives))
    assert said_s > 0


def urgent(asked: JobSubmitted) -> JobSubmitted:
    given = {name: getattr(asked, name) for name in asked.__struct_fields__}
    return JobSubmitted(**given | {"priority": int(asked.job % 5 == 0)})


def test_a_run_that_may_not_last_so_long_is_ended() -> None:
    [life] = played(1, job(1, 1, 0, 100, limit_s=60)).lives
    assert (life.outcome, life.end_s) == ("time_limit", 60)


def test_a_job_that_waits_for_cards_that_never_come_back_is_said_to_wait() -> None:
    run = played(2, job(1, 2, 5, 10), faults=(CardFault(at_s=0, cards=(0,), what="lost"),))
    assert run.lives[0].outcome == "waiting"


def test_a_service_that_grows_by_day_leaves_the_night_to_jobs() -> None:
    wants = tuple(ServiceWants(at_s=at_s, service="chat", replicas=n, cards=4) for at_s, n in ((0, 2), (100, 1), (200, 2)))  # fmt: skip
    own = {"checkpoint_every_s": 10.0}
    run = played(8, job(1, 4, 50, 150, **own), job(2, 1, 300, 1), services=wants)
    life = run.lives[0]
    assert (life.first_start_s, life.preemptions, life.lost_s) == (100, 1, 0)
    assert run.service_card_s == 8 * 100 + 4 * 100 + 8 * 100


# ---- laws


def test_over_a_long_backlog_tenants_get_cards_by_their_weights() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 5.0}
    tenants = tuple(Tenant(name=name, fair_share=weight) for name, weight in weights.items())
    rules = JobRules(tenants=tenants, period_s=50, half_life_s=10_000, ageing_s=1e9)
    rng = np.random.default_rng(0)
    jobs = []
    for n in range(2400):
        name = "abc"[n % 3]  # all ask for the same
        jobs.append(job(n, int(rng.integers(1, 5)), 0.0, float(rng.exponential(100)), tenant=name))
    jobs.append(job(2400, 1, 2500.0, 1.0))  # while all still have a backlog
    run = play_jobs(JobScenario(fleet=fleet(16), jobs=tuple(jobs), rules=rules))
    total = sum(run.tenant_card_s.values())
    shares = {name: run.tenant_card_s[name] / total for name in weights}
    assert shares == pytest.approx({"a": 1 / 8, "b": 2 / 8, "c": 5 / 8}, abs=0.03)


@pytest.mark.parametrize("reservations", [1, 8])
def test_no_backfilled_job_puts_off_a_reserved_one(reservations: int) -> None:
    """With true limits, first come first served: every job starts no later than without backfill it would, the first in line at each moment."""
    jobs = draw_jobs(Drawn(count=250, load_ratio=1.3, seed=2, most_cards=16), 24).jobs
    rules = JobRules(reservations=reservations, is_preempting=False, ageing_s=1e12, half_life_s=1.0, period_s=1e12)  # fmt: skip
    scenario = JobScenario(fleet=fleet(24), jobs=jobs, rules=rules)
    run = play_jobs(scenario, is_keeping=True)
    assert sum(life.is_backfilled for life in run.lives) > 20
    promised = promises(scenario)
    late = {
        life.job.asked.job: (life.first_start_s, promised[life.job.asked.job])
        for life in run.lives
        if life.job.asked.job in promised
        and (life.first_start_s or 0) > promised[life.job.asked.job]
    }
    assert len(promised) > 20
    assert late == {}


def promises(scenario: JobScenario) -> dict[int, float]:
    """The first time that each job was promised."""
    from polypod.policy.jobs import Scheduler

    run = play_jobs(scenario, is_keeping=True)
    scheduler = Scheduler(scenario.fleet, scenario.rules)
    first: dict[int, float] = {}
    for event, actions in run.steps:
        assert tuple(scheduler.handle(event)) == actions
        for number, at_s in scheduler.reserved_s.items():
            first.setdefault(number, at_s)
    return first


@pytest.mark.timeout(600)  # compiles, where nothing is cached yet
@pytest.mark.skipif(not has_numba(), reason="Numba is an optional extra")
def test_a_run_is_the_same_with_plain_and_with_compiled_rules_and_every_time() -> None:
    jobs = draw_jobs(Drawn(count=200, load_ratio=1.2, seed=7, most_cards=16), 32).jobs
    faults = (CardFault(at_s=4000, cards=(0, 9), what="lost"), CardFault(at_s=9000, cards=(0, 9), what="back"))  # fmt: skip
    wants = tuple(ServiceWants(at_s=3000.0 * n, service="s", replicas=n % 3, cards=4) for n in range(5))  # fmt: skip
    scenario = JobScenario(fleet=fleet(32), jobs=jobs, faults=faults, services=wants)
    runs = [play_jobs(scenario, loops=loops, is_keeping=True) for loops in (PLAIN, compiled(), PLAIN)]  # fmt: skip
    assert runs[0] == runs[1] == runs[2]


def test_cards_are_counted_once_at_every_moment() -> None:
    jobs = draw_jobs(Drawn(count=200, load_ratio=1.2, seed=1, most_cards=16), 32).jobs
    run = played(32, *jobs, faults=(CardFault(at_s=100, cards=(3, 4, 5), what="lost"),))
    for sample in run.samples:
        parts = (sample.job_cards, sample.service_cards, sample.lost_cards, sample.free_cards)
        assert sum(parts) == 32
        assert sample.fragmented_cards <= sample.free_cards
    assert sum(run.tenant_card_s.values()) == pytest.approx(run.job_card_s)


def test_jobs_with_the_same_number_are_an_error() -> None:
    with pytest.raises(InputError, match=r"several jobs have the same number"):
        played(2, job(1, 1, 0, 1), job(1, 1, 0, 1))


# ---- traces


def read(tmp_path: Path, name: str, text: str) -> Any:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_jobs(tmp_path / name)


def test_our_own_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    csv = "submit_s,cards,minutes,kind,tenant,priority,preemptible,checkpoint_minutes\n10,8,30,x|y,a,2,false,5\n4,1,2,,,,,\n"
    lines = '{"submit_s": 10, "cards": 8, "minutes": 30, "kind": "x|y", "tenant": "a", "priority": 2, "preemptible": false, "checkpoint_minutes": 5}\n{"submit_s": 4, "cards": 1, "minutes": 2}\n'
    jobs = read(tmp_path, "a.csv", csv).jobs
    assert jobs == read(tmp_path, "a.jsonl", lines).jobs
    asked = jobs[1].asked
    assert (asked.at_s, asked.cards, asked.kinds, asked.limit_s) == (6, 8, ("x", "y"), 1800)
    assert (asked.tenant, asked.priority, asked.is_preemptible, asked.checkpoint_every_s) == ("a", 2, False, 300)  # fmt: skip


def test_a_helios_log_is_read_as_its_readme_says(tmp_path: Path) -> None:
    """The first two rows are the README's example (https://github.com/S-Lab-System-Group/HeliosData)."""
    text = """job_id,user,vc,gpu_num,cpu_num,node_num,state,submit_time,start_time,end_time,duration,queue
1425511,uXBbc,vcJkd,1,1,1,COMPLETED,2020-06-09 18:41:01,2020-06-09 18:41:01,2020-06-10 04:55:09,36848,0
1425512,uVMrF,vchbv,4,16,1,FAILED,2020-06-09 18:41:27,2020-06-09 18:41:27,2020-06-09 18:45:36,249,0
1,u,v,16,1,2,COMPLETED,2020-06-09 18:42:01,2020-06-09 18:42:01,2020-06-10 04:55:09,60,0
2,u,v,0,1,1,COMPLETED,2020-06-09 18:42:01,2020-06-09 18:42:01,2020-06-10 04:55:09,60,0
"""
    trace = read(tmp_path, "cluster_log.csv", text)
    found = [(j.asked.at_s, j.asked.cards, j.work_s, j.asked.tenant, j.asked.within, j.asked.group) for j in trace.jobs]  # fmt: skip
    assert found == [
        (0, 1, 36848, "vcJkd", "node", 1),
        (26, 4, pytest.approx(249), "vchbv", "node", 1),
        (60, 16, 60, "v", "island", 8),
    ]
    assert trace.left_out == {"without a card": 1}


def test_a_philly_log_is_read_as_its_readme_says(tmp_path: Path) -> None:
    """The README's example, two attempts on one server of eight (https://github.com/msr-fiddle/philly-traces)."""
    gpus = ", ".join(f'"gpu{n}"' for n in range(8))
    text = f"""[{{"status": "Pass", "vc": "ee9e8c", "jobid": "application_1506638472019_14199", "submitted_time": "2017-10-07 01:11:39", "user": "ce2f4c",
 "attempts": [{{"start_time": "2017-10-07 01:12:09", "end_time": "2017-10-07 01:13:23", "detail": [{{"ip": "m47", "gpus": [{gpus}]}}]}},
              {{"start_time": "2017-10-07 01:13:30", "end_time": "2017-10-09 06:53:12", "detail": [{{"ip": "m412", "gpus": [{gpus}]}}]}}]}},
 {{"status": "Killed", "vc": "ee9e8c", "jobid": "x", "submitted_time": "2017-10-07 01:11:39", "user": "u", "attempts": []}}]"""
    trace = read(tmp_path, "cluster_job_log", text)
    [one] = trace.jobs
    assert (one.asked.cards, one.asked.within, one.asked.tenant) == (8, "node", "ee9e8c")
    assert one.work_s == pytest.approx(74 + 2 * 86400 + 5 * 3600 + 39 * 60 + 42)
    assert trace.left_out == {"that never ran or had not ended": 1}


def test_alibaba_tables_are_read_as_their_readmes_say(tmp_path: Path) -> None:
    """The READMEs' example rows (https://github.com/alibaba/clusterdata)."""
    table = "4f057009a5d481acec67b088,tensorflow,1.0,Terminated,1739162.0,1739200.0,600.0,29.296875,50.0,MISC\nj,worker,3.0,Failed,1739262.0,1739300.0,600.0,29.2,50.0,V100\nj,ps,1.0,Terminated,1739262.0,1739300.0,600.0,29.2,,\n"
    trace = read(tmp_path, "pai_task_table.csv", table)
    assert [(j.asked.at_s, j.asked.cards, j.work_s) for j in trace.jobs] == [(0, 1, pytest.approx(38)), (100, 2, pytest.approx(38))]  # fmt: skip
    assert trace.left_out == {"without a card": 1}
    pods = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\nopenb-pod-0017,88000,327680,8,1000,,Burstable,Succeeded,9437497,10769854,9437497\nopenb-pod-0022,4000,15258,1,220,,BE,Running,9679175,9973826,9679175\n"
    trace = read(tmp_path, "openb_pod_list_default.csv", pods)
    assert [(j.asked.cards, j.work_s, j.asked.tenant) for j in trace.jobs] == [
        (8, pytest.approx(1332357), "Burstable"),
        (1, pytest.approx(294651), "BE"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "error", "problem"),
    [
        ("a.csv", "submit_s,cards,minutes\n0,0,1\n", TraceError, r"line 2: .*`int` >= 1 - at `\$.cards`"),
        ("a.csv", "submit_s,cards,minutes\n0,1\n", TraceError, r"line 2: has 2 fields, the header has 3"),
        ("a.csv", "submit_s,cards,minutes,colour\n0,1,1,red\n", TraceError, r"line 2: .*unknown field `colour`"),
        ("a.csv", "when,what\n0,1\n", FileError, r"has the columns when, what, which are of no known trace; known are those with submit_s, cards, minutes"),
        ("a.csv", "", FileError, r"holds no job"),
        ("a.jsonl", '{"submit_s": 0, "cards": 1}\n', TraceError, r"line 1: .*missing required field `minutes`"),
        ("a.csv", "gpu_num,node_num,submit_time,duration,vc\n0,1,2020-01-01 00:00:00,5,v\n", FileError, r"holds no job \(1 without a card\)"),
        ("a.csv", "gpu_num,node_num,submit_time,duration,vc\n1,1,yesterday,5,v\n", TraceError, r"line 2: Invalid isoformat string: 'yesterday'"),
    ],
)  # fmt: skip
def test_a_broken_trace_is_refused_with_its_line(
    tmp_path: Path, name: str, text: str, error: type[FileError], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        read(tmp_path, name, text)


def test_drawn_jobs_ask_for_the_load_they_say_and_are_the_same_from_the_same_seed() -> None:
    drawn = Drawn(count=20_000, load_ratio=0.7, seed=9)
    jobs = draw_jobs(drawn, 512).jobs
    asked = sum(one.asked.cards * one.work_s for one in jobs) / jobs[-1].asked.at_s
    assert asked == pytest.approx(0.7 * 512, rel=0.03)
    assert draw_jobs(drawn, 512).jobs == jobs
    with pytest.raises(InputError, match=r"jobs of up to 64 cards are drawn, and the fleet has 32"):
        draw_jobs(drawn, 32)


def test_every_job_ends_once_and_is_answered_once() -> None:
    jobs = draw_jobs(Drawn(count=150, load_ratio=2.0, seed=3, most_cards=16), 16).jobs
    run = played(16, *jobs)
    assert {life.outcome for life in run.lives} == {"finished"}
    starts = [a.job for _, actions in run.steps for a in actions if isinstance(a, StartJob)]
    assert len(set(starts)) == len(jobs)
