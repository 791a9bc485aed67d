"""`polypod estimate`: one configuration, and what it serves."""

import json
from pathlib import Path
from typing import Any

import pytest

from polypod.catalog.load import CALIBRATIONS, own_folders
from polypod.cli.main import main

QWEN = ("estimate", "Qwen/Qwen3-32B", "--on", "nvidia-h100-sxm:4", "--tp", "4")
SERVED = (*QWEN, "--concurrency", "64", "--backend", "vllm", "--input", "4000", "--output", "500")


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_what_is_served_has_its_band_and_tells_what_nobody_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = asked(capsys, *SERVED)["served"]
    low, high = found["tpot_band_s"]
    assert low < found["tpot_s"] < high
    assert high / low <= 1.6
    assert found["ttft_band_s"][1] / found["ttft_band_s"][0] <= 3
    assert found["evidence"] == "own kernels"
    assert "prefix_hits" in [one["setting"] for one in found["unsaid"]]
    # Little's law: clients over a whole answer
    whole_s = found["ttft_s"] + 500 * found["tpot_s"]
    assert found["output_tokens_per_s"] == pytest.approx(64 * 500 / whole_s)


def test_the_text_fits_a_terminal_and_names_the_band(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SERVED]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "80 % band" in out
    assert "unsaid        cold_start_s = 30 would make TTFT" in out


def test_said_settings_move_the_answer_and_are_no_longer_unsaid(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = asked(capsys, *SERVED)["served"]
    said = asked(capsys, *SERVED, "--engine-args", "prefix_hits=0.5 cold_start_s=0")["served"]
    assert said["ttft_s"] < plain["ttft_s"]
    assert {"prefix_hits", "cold_start_s"}.isdisjoint(one["setting"] for one in said["unsaid"])


def test_workers_apart_decode_uninterrupted_and_hand_the_cache_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    together = asked(capsys, *SERVED, "--workers", "2")["served"]
    apart = asked(capsys, *SERVED, "--prefill", "1:tp4")["served"]
    assert apart["accelerators"] == together["accelerators"] == 8
    assert apart["tpot_s"] < together["tpot_s"]


def test_operators_of_several_kinds_of_layers_are_summed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # half of gpt-oss's layers attend to a window: both kinds have experts
    found = asked(capsys, "estimate", "openai/gpt-oss-120b", "--on", "nvidia-b200-hgx:1", "--batch", "64", "--backend", "trtllm")["phases"]["decode"]  # fmt: skip
    assert sum(found["parts_s"].values()) == pytest.approx(found["step_s"]["likely"], rel=0.2)


@pytest.mark.usefixtures("own_catalog")
def test_a_calibration_of_ones_own_corrects_what_is_served(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = asked(capsys, *SERVED)["served"]
    path = own_folders("model")[-1].parent / CALIBRATIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '[[fits]]\nchip = "nvidia-h100-sxm"\nmodel = "Qwen/Qwen3-32B"\nengine = "vllm"\nprecision = "bf16"\n'
        "[fits.tpot]\nrows = 5\nfactor = 1.5\nlog_low = -0.1\nlog_high = 0.1\n",
        encoding="utf-8",
    )
    after = asked(capsys, *SERVED)["served"]
    assert after["tpot_s"] == pytest.approx(1.5 * before["tpot_s"])
    assert after["ttft_s"] == before["ttft_s"]
    assert after["evidence"] == "calibrated"
    assert after["tpot_band_s"][1] == pytest.approx(after["tpot_s"] * 1.10517, rel=1e-3)
    # and what a plan promises
    assert main(["plan", "Qwen/Qwen3-32B", "--on", "nvidia-h100-sxm:4", "--backend", "vllm", "--tpot", "200ms"]) == 0  # fmt: skip
    assert "steps take 1.5 times as long as predicted" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--engine-args", "prefix_hits=0.5"), "--engine-args is of a service with requests in flight; say how many with --concurrency N"),
        (("--prefill", "1:tp4"), "--prefill is of a service with requests in flight"),
        (("--concurrency", "8", "--prefill", "tp4"), "--prefill 'tp4' is no number of workers with a layout; write 2:tp4"),
        (("--concurrency", "8", "--prefill", "0:tp4"), "--prefill '0:tp4' is no number of workers"),
        (("--concurrency", "8", "--prefill", "1:tp3"), "tp=3 does not divide the 64 attention heads"),
        (("--concurrency", "8", "--workers", "0"), "--workers 0 is no number of replicas"),
        (("--concurrency", "none"), "--concurrency 'none' is no number; give a whole one"),
        (("--concurrency", "8", "--engine-args", "speed=2"), "'speed' is no setting that moves a prediction"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_a_message(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert main([*QWEN, *words]) == 2
    assert says in capsys.readouterr().err


def test_a_plan_takes_the_engines_settings_and_writes_those_it_plays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, drafting = tmp_path / "plain.yaml", tmp_path / "drafting.yaml"
    words = ("plan", "Qwen/Qwen3-32B", "--on", "nvidia-h100-sxm:4", "--tpot", "50ms", "--ttft", "2s", "--backend", "vllm")  # fmt: skip
    assert main([*words, "-o", str(plain), "--json"]) == 0
    before = json.loads(capsys.readouterr().out)
    said = "num_speculative_tokens=2 acceptance=0.8 max_num_batched_tokens=2048"
    assert main([*words, "-o", str(drafting), "--json", "--engine-args", said]) == 0
    after = json.loads(capsys.readouterr().out)
    assert after["pools"][0]["goodput_per_s"] > before["pools"][0]["goodput_per_s"]
    pool = after["plan"]["services"][0]["pools"][0]
    assert pool["engine_args"] == {"num_speculative_tokens": 2, "acceptance": 0.8}
    assert pool["max_step_tokens"] == 2048
    trace = Path(__file__).parents[2] / "examples" / "traces" / "azure-conv-1000.csv"
    for plan in (plain, drafting):
        assert main(["simulate", str(plan), "--trace", str(trace)]) == 0
    assert main([*words, "--engine-args", "cold_start_s=30"]) == 2
    assert "cold_start_s moves no plan" in capsys.readouterr().err


def test_a_plan_file_with_a_setting_that_is_not_played_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.yaml"
    words = ("plan", "Qwen/Qwen3-32B", "--on", "nvidia-h100-sxm:4", "-o", str(path))
    assert main([*words]) == 0
    before, rest = path.read_text(encoding="utf-8").split("max_sequences:")
    indent = before.rpartition("\n")[2]
    text = f"{before}engine_args:\n{indent}  stream_interval: 10\n{indent}max_sequences:{rest}"
    path.write_text(text, encoding="utf-8")
    trace = Path(__file__).parents[2] / "examples" / "traces" / "azure-conv-1000.csv"
    assert main(["simulate", str(path), "--trace", str(trace)]) == 2
    err = capsys.readouterr().err
    assert "stream_interval is not played by the emulation" in err
    assert "$.services[0].pools[0].engine_args.stream_interval" in err
