"""polypod traffic, and the same flags of polypod simulate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polypod.cli.main import main
from polypod.cli.traffic_words import arrivals_of, tenants_of
from polypod.workload.traffic_arrivals import Diurnal
from polypod.workload.traffic_tenants import Tenant

ROOT = Path(__file__).parents[2]
AZURE = str(ROOT / "examples/traces/azure-conv-1000.csv")
MOONCAKE = str(ROOT / "examples/traces/mooncake-conversation-300.jsonl")

Cli = Callable[..., tuple[int, str, str]]

POOL = {
    "role": "both", "on": "a", "layout": {"tp": 1}, "replicas": 2, "precision": {"weights": "bf16", "kv": "bf16"},
    "state": "modelled",
}  # fmt: skip


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def write_plan(path: Path, *services: dict[str, Any]) -> str:
    """JSON is YAML."""
    plan = {
        "polypod": 1,
        "fleet": {"a": {"accelerator": "nvidia-h200-sxm", "count": 8}},
        "services": services,
        "predicted": {"goodput": "40 /s"},
    }
    path.write_text(json.dumps(plan))
    return str(path)


def service(model: str, name: str, rate: str = "5 /s") -> dict[str, Any]:
    return {
        "model": model,
        "traffic": {"input": 1000, "output": 100, "rate": rate},
        "pools": [POOL | {"name": name}],
    }


LLAMA, QWEN = "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B"


@pytest.fixture
def plan(tmp_path: Path) -> str:
    return write_plan(tmp_path / "plan.yaml", service(LLAMA, "one"))


@pytest.fixture
def both(tmp_path: Path) -> str:
    return write_plan(tmp_path / "both.yaml", service(LLAMA, "one"), service(QWEN, "two", "15 /s"))


def told(cli: Cli, *arguments: str) -> dict[str, Any]:
    code, out, err = cli(*arguments, "--json")
    assert (code, err.count("Traceback")) == (0, 0)
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_trace_is_described_without_a_plan(cli: Cli) -> None:
    found = told(cli, "traffic", "--trace", MOONCAKE)

    assert (found["requests"], found["sessions"], found["blocks"]) == (300, 279, 8490)
    assert found["reused_fraction"] == pytest.approx(676 / 8490)
    assert found["plan"] is None
    _, out, _ = cli("traffic", "--trace", MOONCAKE)
    assert "8,490 blocks, 8.0% of them in an earlier prompt" in out
    assert max(map(len, out.splitlines())) <= 80


def test_four_times_the_sessions_are_four_times_the_requests_and_the_same_reuse(cli: Cli) -> None:
    found = told(cli, "traffic", "--trace", MOONCAKE, "--scale", "4x")

    assert (found["requests"], found["sessions"]) == (1200, 4 * 279)
    assert found["reused_fraction"] == pytest.approx(676 / 8490)


def test_a_month_of_tokens_is_a_rate_and_so_many_plans(cli: Cli, plan: str) -> None:
    found = told(cli, "traffic", plan, "--tokens-per-month", "480T", "--duration", "10s")

    # 480e12 tokens / (30 * 86400 s) / (1000 + 100) tokens
    assert found["rate_per_s"] == pytest.approx(168_350, rel=0.002)
    assert found["month_tokens"] == pytest.approx(480e12, rel=0.002)
    assert found["plan"]["copies"] == pytest.approx(168_350 / 40, rel=0.002)
    assert found["plan"]["accelerators"] == 2
    assert found["plan"]["copies_accelerators"] == 2 * found["plan"]["copies"]


def test_services_are_asked_at_their_rates_or_their_shares_of_another(cli: Cli, both: str) -> None:
    own = told(cli, "traffic", both, "--requests", "20000")
    other = told(cli, "traffic", both, "--requests", "20000", "--rate", "200/s")

    assert own["rate_per_s"] == pytest.approx(20, rel=0.03)
    assert other["rate_per_s"] == pytest.approx(200, rel=0.03)
    for found in (own, other):
        assert found["requests_of_model"][QWEN] / 20_000 == pytest.approx(0.75, abs=0.01)


def test_drawn_traffic_is_as_it_was_asked_for(cli: Cli, plan: str) -> None:
    asked = ("--arrivals", "gamma:cv=3", "--lengths", "lognormal:cv=1", "--tenants", "a=3:5,b=1", "--requests", "50000")  # fmt: skip
    found = told(cli, "traffic", plan, *asked)

    assert found["gap_cv_ratio"] == pytest.approx(3, rel=0.06)
    assert found["input"]["mean_tokens"] == pytest.approx(1000, rel=0.03)
    assert found["input"]["p50_tokens"] == pytest.approx(1000 / 2**0.5, rel=0.03)
    assert found["requests_of_tenant"]["a"] / 50_000 == pytest.approx(0.75, abs=0.01)


def test_lengths_are_drawn_from_a_trace(cli: Cli, plan: str) -> None:
    trace = told(cli, "traffic", "--trace", AZURE)
    found = told(cli, "traffic", plan, "--lengths", AZURE, "--requests", "50000")

    for what in ("input", "output"):
        mean = trace[what]["mean_tokens"]
        assert found[what]["mean_tokens"] == pytest.approx(mean, rel=0.03)


def test_conversations_find_what_was_said(cli: Cli, plan: str) -> None:
    asked = ("--turns", "5", "--think", "30s", "--system", "2k", "--block-tokens", "256", "--requests", "5000")  # fmt: skip
    found = told(cli, "traffic", plan, *asked)

    assert found["reused_fraction"] > 0.6
    assert found["in_sessions"] == 5000
    assert found["plan"]["copies"] is None  # its prompts are longer than those the plan is for
    _, out, _ = cli("traffic", plan, *asked)
    assert f"plan again with --input {found['input']['mean_tokens']:.0f} --output 100" in " ".join(out.split())  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "requests"),
    [
        (("--trace", AZURE, "--scale", "0.25x"), 250),
        (("--trace", MOONCAKE, "--scale", "2x", "--requests", "100"), 100),
        (("--arrivals", "gamma:cv=4", "--tenants", "a=1:3,b=1", "--requests", "150"), 150),
    ],
)
def test_traffic_is_simulated_and_twice_the_same(
    cli: Cli, plan: str, flags: tuple[str, ...], requests: int
) -> None:
    once, again = (told(cli, "simulate", plan, *flags) for _ in range(2))

    assert once == again
    assert once["requests"] == requests
    assert once["finished"] + sum(once["rejected"].values()) == requests


def test_requests_of_several_services_are_simulated(cli: Cli, both: str, tmp_path: Path) -> None:
    assert told(cli, "simulate", both, "--requests", "200")["finished"] == 200

    trace = tmp_path / "trace.csv"
    rows = "".join(f"{n},100,10,{(LLAMA, QWEN)[n % 2]}\n" for n in range(20))
    trace.write_text("arrival_s,input_tokens,output_tokens,model\n" + rows)
    assert told(cli, "simulate", both, "--trace", str(trace))["finished"] == 20


def test_it_is_said_that_a_trace_begins_again(cli: Cli, plan: str) -> None:
    _, _, err = cli("simulate", plan, "--trace", MOONCAKE, "--duration", "5min", "--json")

    assert "has 300 requests; played are so many as fit in 5 min" in err
    assert "copies with fresh prefixes, begun again every 1.71 min" in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--arrivals", "closed:x"), "says no number of users; give one from 1 on, as closed:64"),
        (("--arrivals", "gama"), "--arrivals 'gama' is not known; give one of poisson, gamma:cv=4"),
        (("--arrivals", "gamma:sv=3"), "'sv' is not known; gamma takes cv"),
        (("--arrivals", "gamma:cv=x"), "cv='x' is no value of it"),
        (("--arrivals", "poisson:cv=1"), "'cv' is not known; poisson takes nothing"),
        (("--arrivals", "diurnal:at=14"), "'14' has no unit"),
        (("--lengths", "uniform:input=1..5"), "lacks a range; give both"),
        (("--lengths", "uniform:input=5,output=1..2"), "input='5' is no value of it; examples: fixed"),
        (("--lengths", "/no/file"), "--lengths '/no/file' is neither known nor a file"),
        (("--tenants", "a=1,a=2"), "names a twice"),
        (("--tenants", "a"), "--tenants 'a' is no tenant; give NAME=SHARE"),
        (("--tenants", "a=1.2.3"), "is no tenant"),
        (("--scale", "2x"), "--scale means nothing without --trace"),
        (("--trace", AZURE, "--rate", "3/s"), "--rate means nothing beside --trace"),
        (("--trace", AZURE, "--scale", "many"), "--scale 'many' is no number of times; give a positive one, as 40x or 0.5x"),
        (("--trace", AZURE, "--scale", "0x"), "--scale '0x' is no number of times"),
        (("--rate", "3/s", "--tokens-per-month", "1T"), "--tokens-per-month means nothing beside --rate"),
        (("--system", "1k"), "--system means nothing without --turns"),
        (("--think", "1s"), "--think means nothing without --turns"),
        (("--block-tokens", "16"), "--block-tokens means nothing without --turns"),
        (("--arrivals", "closed:4", "--rate", "3/s"), "--rate means nothing beside --arrivals closed:4"),
        (("--turns", "3", "--tokens-per-month", "1T"), "means nothing beside --turns, whose prompts grow; say --rate"),
        (("--seed", "-1"), "seed=-1 is no seed; give 0 or more"),
        (("--requests", "0"), "--requests '0' is no number"),
        (("--trace", AZURE, "--duration", "0s"), "duration_s=0.0 plays nothing"),
    ],
)  # fmt: skip
def test_traffic_that_cannot_be_is_a_message_before_anything_runs(
    cli: Cli, plan: str, flags: tuple[str, ...], says: str
) -> None:
    code, out, err = cli("simulate", plan, *flags)

    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_a_model_that_the_plan_does_not_serve_is_named_with_its_line(
    cli: Cli, both: str, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        f"arrival_s,input_tokens,output_tokens,model\n0,1,1,{QWEN}\n1,1,1,Qwen/Qwen3-8\n"
    )
    code, _, err = cli("simulate", both, "--trace", str(trace))
    assert code == 2
    assert f"line 3: model is 'Qwen/Qwen3-8', accepted is a model that is served; nearest: {QWEN}" in err  # fmt: skip

    code, _, err = cli("simulate", both, "--trace", AZURE)
    assert code == 2
    assert f"the plan serves {LLAMA}, {QWEN}; give it a column model" in err


def test_lines_out_of_order_are_refused_or_sorted(cli: Cli, plan: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n1,1,1\n0,1,1\n")

    code, _, err = cli("simulate", plan, "--trace", str(trace))
    assert (code, "line 3: arrival_s is '0'" in err) == (2, True)
    assert told(cli, "simulate", plan, "--trace", str(trace), "--sort")["finished"] == 2


def test_drawn_traffic_and_loops_are_not_described_without_what_they_need(
    cli: Cli, plan: str
) -> None:
    assert "give a plan, or a trace" in cli("traffic")[2]
    assert "has no rate" in cli("traffic", plan, "--arrivals", "closed:3")[2]
    assert "--tenants means nothing beside --arrivals closed:3" in cli("traffic", plan, "--arrivals", "closed:3", "--tenants", "a=1")[2]  # fmt: skip


def test_two_dies_in_a_package_are_one_accelerator(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(path, service(LLAMA, "one") | {"pools": [POOL | {"layout": {"tp": 4}}]})
    path.write_text(path.read_text().replace("nvidia-h200-sxm", "huawei-ascend-910c"))

    assert told(cli, "traffic", str(path))["plan"]["accelerators"] == 2 * 4 / 2


def test_tenants_are_shares_and_priorities() -> None:
    assert tenants_of("chat=3:10, batch=0.5,low=1:-2") == (
        Tenant(name="chat", share=3.0, priority=10),
        Tenant(name="batch", share=0.5),
        Tenant(name="low", share=1.0, priority=-2),
    )


def test_a_day_is_told_by_its_peak_or_its_hours() -> None:
    assert arrivals_of("diurnal:peak=3,at=14h,start=30min") == Diurnal(peak_ratio=3.0, peak_at_s=50_400.0, start_s=1800.0)  # fmt: skip
    hours = "/".join(str(hour) for hour in range(24))
    assert arrivals_of(f"diurnal:hours={hours}") == Diurnal(hours=tuple(map(float, range(24))))
    assert arrivals_of("closed:64") == 64
