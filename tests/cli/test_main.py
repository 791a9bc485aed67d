"""The command line as a person meets it: exit codes, messages instead of tracebacks, one JSON object on stdout."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from polypod.cli.main import VERBS, main

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse's own way out
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_help_names_every_verb_and_fits_the_terminal(cli: Cli) -> None:
    code, out, _ = cli("--help")
    assert code == 0
    assert all(verb in out for verb in VERBS)
    lines = [line for line in out.splitlines() if not line.startswith("  polypod plan ")]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_says_what_it_takes(cli: Cli, verb: str) -> None:
    code, out, _ = cli(verb, "--help")
    assert code == 0
    with_actions = {"catalog": "show", "keys": "create"}
    assert "--json" in (cli(verb, with_actions[verb], "--help")[1] if verb in with_actions else out)
    assert f"polypod {verb}" in out


def test_an_unknown_verb_is_bad_input(cli: Cli) -> None:
    code, _, err = cli("serve")
    assert code == 2
    assert "invalid choice: 'serve'" in err


def test_estimate_prints_reasons_and_one_json_object(cli: Cli) -> None:
    asked = ("estimate", "llama-3.1-8b", "--on", "nvidia-h200-sxm", "--tp", "2", "--batch", "16")
    code, out, _ = cli(*asked)
    assert code == 0
    assert "decode waits" in out
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = cli(*asked, "--json")
    answer = json.loads(out)
    assert code == 0
    decode = answer["phases"]["decode"]
    assert decode["floor_s"] < decode["step_s"]["fast"] < decode["step_s"]["likely"]
    assert sum(decode["waits_for"].values()) == pytest.approx(1.0)


def test_plan_writes_a_file_that_simulate_plays_the_same_twice(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    code, out, err = cli(
        *("plan", "llama-3.1-8b", "--on", "nvidia-h200-sxm:2", "--tpot", "30ms", "--ttft", "1s"),
        *("--rate", "3 /s", "-o", str(file)),
    )
    assert (code, "wrote" in err) == (0, True)
    assert max(map(len, out.splitlines())) <= 80

    for run in ("one", "two"):
        code, out, _ = cli(
            "simulate", str(file), "--requests", "200", "-o", str(tmp_path / run), "--json"
        )
        assert code == 0
        assert json.loads(out)["finished"] == 200
    records = [(tmp_path / run / "record.jsonl").read_bytes() for run in ("one", "two")]
    assert records[0] == records[1]

    code, out, _ = cli("replay", str(tmp_path / "one" / "record.jsonl"))
    assert code == 0
    assert "every decision is the same" in out


def test_a_record_that_was_tampered_with_does_not_replay(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    cli("plan", "llama-3.1-8b", "--on", "nvidia-h200-sxm:2", "--rate", "3 /s", "-o", str(file))
    cli("simulate", str(file), "--requests", "20", "-o", str(tmp_path))
    record = tmp_path / "record.jsonl"
    record.write_text(record.read_text().replace('"attempt":1', '"attempt":2', 1))
    code, out, _ = cli("replay", str(record))
    assert code == 1
    assert "differs" in out


def test_a_trace_is_played_through_a_plan(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    cli("plan", "llama-3.1-8b", "--on", "nvidia-h200-sxm:1", "--tpot", "30ms", "-o", str(file))
    trace = Path(__file__).parents[2] / "examples" / "traces" / "azure-conv-1000.csv"
    code, out, _ = cli("simulate", str(file), "--trace", str(trace), "--json")
    summary = json.loads(out)
    assert code == 0
    assert summary["finished"] == summary["requests"] == 1000
    assert summary["goodput"]["fraction"] > 0.5


def test_faults_are_played_and_cost_no_request_that_had_not_begun(cli: Cli, tmp_path: Path) -> None:
    file, faults = tmp_path / "plan.yaml", tmp_path / "faults.json"
    cli(
        "plan",
        "llama-3.1-8b",
        "--on",
        "nvidia-h200-sxm:2",
        "--tpot",
        "30ms",
        "--rate",
        "20 /s",
        "-o",
        str(file),
    )
    faults.write_text('{"faults": [{"at_s": 5, "replica": "pool0.0-0", "what": "down"}]}')
    code, out, _ = cli(
        "simulate", str(file), "--requests", "300", "--faults", str(faults), "--json"
    )
    summary = json.loads(out)
    assert code == 0
    assert summary["finished"] + sum(summary["rejected"].values()) == 300


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("plan", "llama-3.1-8b", "--on", "nvidia-hgx-h201"), 2, "nvidia-hgx-h200, "),
        (("plan", "llama-4", "--on", "nvidia-hgx-h200"), 2, "no model is called 'llama-4'; nearest: "),
        (("plan", "llama-3.1-8b", "--on", "nvidia-hgx-h200", "--ttft", "2"), 2, "'2' has no unit"),
        (("plan", "llama-3.1-8b", "--on", "nvidia-hgx-h200", "--input", "-4"), 2, "-4"),
        (("plan", "llama-3.1-8b", "--on", "nvidia-hgx-h200", "--percentile", "100"), 2, "--percentile 100"),
        (("plan", "llama-3.1-8b", "--on", "nvidia-hgx-h200", "--tpot", "1us"), 1, "nearest is"),
        (("plan", "deepseek-v3", "--on", "nvidia-h200-sxm:1"), 1, "do not fit in memory"),
        (("plan", "llama-3.1-8b", "--on", "nvidia-h200-sxm:1", "-o", "/no/where.yaml"), 2, "cannot be written"),
        (("estimate", "llama-3.1-8b", "--on", "nvidia-h200-sxm", "--tp", "3"), 2, "tp=3 does not divide"),
        (("estimate", "llama-3.1-8b", "--on", "nvidia-h200-sxm", "--tp", "0"), 2, "--tp 0"),
        (("estimate", "deepseek-v3", "--on", "nvidia-h200-sxm"), 1, "raise tp, pp or ep"),
        (("estimate", "llama-3.1-8b", "--on", "nvidia-h200-sxm", "--backend", "x"), 2, "no calibration are called 'x'"),
        (("estimate", "llama-3.1-8b", "--on", "nvidia-h200-sxm", "--precision", "fp3"), 2, "fp3"),
        (("simulate", "/no/plan.yaml"), 2, "cannot be read"),
        (("replay", "/no/record.jsonl"), 2, "cannot be read"),
        (("up", "/no/model.gguf", "--port", "0"), 2, "does not exist"),
        (("up", "--port", "99999"), 2, "--port 99999"),
        (("up", "--engine", "vlm", "--port", "0"), 2, "no engine is called 'vlm'; nearest: vllm"),
        (("up", "--engine", "vllm", "--port", "0"), 2, "engine 'vllm' reads safetensors, not gguf"),
        (("up", "--stages", "--apart", "--port", "0"), 2, "--stages and --apart"),
        (("up", "--engine-url", "x=http://a.example/v1", "--port", "0"), 2, "over http a host is an address"),
    ],
)  # fmt: skip
def test_bad_input_is_a_message_and_an_exit_code(
    cli: Cli, arguments: tuple[str, ...], code: int, says: str
) -> None:
    got, _, err = cli(*arguments)
    assert says in err
    assert got == code
    assert "Traceback" not in err


def test_an_estimate_says_whose_kernels_it_used(cli: Cli) -> None:
    arguments = ("estimate", "llama-3.1-8b", "--on", "nvidia-h100-sxm", "--backend", "vllm")
    code, out, _ = cli(*arguments)
    assert code == 0
    assert "own kernels (nvidia-h100-sxm vllm)" in out
    _, out, _ = cli(*arguments, "--json")
    assert '"evidence": "own kernels"' in out.replace('":"', '": "')


def test_a_broken_line_of_a_trace_is_named_and_nothing_is_played(cli: Cli, tmp_path: Path) -> None:
    file, trace = tmp_path / "plan.yaml", tmp_path / "trace.csv"
    cli("plan", "llama-3.1-8b", "--on", "nvidia-h200-sxm:1", "-o", str(file))
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.9,many,7\n"
    )
    code, out, err = cli("simulate", str(file), "--trace", str(trace))
    assert (code, out) == (2, "")
    assert f"{trace}: line 3:" in err
    assert "nothing was played" in err
