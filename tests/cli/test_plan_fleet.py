"""`polypod plan` over a fleet and `polypod replace`, as a person asks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from polypod.cli.main import main
from polypod.plan.spec import read_plan

LIMITS = ("--ttft", "2s", "--tpot", "50ms", "--input", "2048", "--output", "512")
TWO = ("plan", "qwen3-32b:rate=2/s", "llama-3.1-8b:rate=4/s,tpot=30ms", "--on", "nvidia-h100-sxm:8+amd-mi300x:8", *LIMITS)  # fmt: skip


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_two_models_share_a_fleet_of_two_vendors(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = asked(capsys, *TWO, "-o", str(tmp_path / "plan.yaml"))
    assert [one["served_per_s"] >= one["asked_per_s"] for one in found["models"]] == [True, True]
    assert found["objective"]["gap_fraction"] < 1e-4
    pools = [pool for one in found["models"] for pool in one["pools"]]
    assert sum(pool["accelerators"] for pool in pools) == pytest.approx(found["objective"]["value"], rel=1e-3)  # fmt: skip
    plan = read_plan(tmp_path / "plan.yaml")
    assert [service.model for service in plan.services] == ["Qwen/Qwen3-32B", "meta-llama/Llama-3.1-8B"]  # fmt: skip
    assert {pool.name for service in plan.services for pool in service.pools} == {pool.name for service in plan.services for pool in service.pools if pool.name}  # fmt: skip


def test_the_text_says_who_serves_what_and_how_sure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TWO]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    for part in ("proven best", "one card", "a fifth less", "80 % band", "runner-up", "island"):
        assert part in words


def test_excluding_a_vendor_never_helps(capsys: pytest.CaptureFixture[str]) -> None:
    whole = asked(capsys, *TWO)["objective"]["value"]
    without = asked(capsys, *TWO, "--exclude", "amd")["objective"]["value"]
    assert without >= whole - 1e-9


def test_fewest_cards_of_a_vendor_uses_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, *TWO, "--fewest", "nvidia")
    chips = {pool["chip"] for one in found["models"] for pool in one["pools"]}
    assert chips == {"amd-mi300x"}


def test_least_money_is_told_in_usd_an_hour_with_what_it_rests_on(capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert main([*TWO, "--objective", "cost"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for part in ("USD an hour, proven best", "output tokens:", "a fifth more for electricity", "price buy-"):  # fmt: skip
        assert part in out


def test_energy_is_least_where_watts_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, *TWO, "--objective", "energy")
    assert found["objective"]["value"] > 100  # watts


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--max-share", "nvidia=10%", "--max-share", "amd=20%"), 2, "--max-share nvidia=10% and --max-share amd=20% contradict each other"),
        (("--max-share", "intel=10%"), 2, "nothing of the fleet is intel's; there are amd, nvidia"),
        (("--max-share", "nvidia"), 2, "is no share of a vendor"),
        (("--exclude", "intel"), 2, "--exclude intel: nothing of the fleet is of it"),
        (("--exclude", "amd", "--exclude", "nvidia"), 2, "leave nothing: every part of the fleet is excluded"),
        (("--apart", "--together"), 2, "--apart and --together contradict each other"),
        (("--spare", "row"), 2, "--spare 'row' is nothing to keep free"),
        (("--spare", "rack"), 2, "no source on record says which cards of a (nvidia-h100-sxm) share a rack"),
        (("--afd", "--together"), 2, "--afd and --together contradict each other"),
        (("--afd", "--frontier"), 2, "--frontier is of one model"),
        (("--fewest", "nvidia", "--objective", "cost"), 2, "--fewest nvidia and --objective cost contradict each other"),
        (("--max-share", "nvidia=0%", "--max-share", "amd=0.1"), 2, "contradict each other: all cards are of these vendors"),
        (("--afd",), 2, "Qwen/Qwen3-32B and meta-llama/Llama-3.1-8B: no experts to put apart"),
    ],
)  # fmt: skip
def test_constraints_that_cannot_be_are_named(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, says: str
) -> None:
    assert main([*TWO, *words]) == code
    assert says in capsys.readouterr().err


def test_too_much_exits_1_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "qwen3-32b:rate=999/s", "--on", "nvidia-h100-sxm:8", *LIMITS]) == 1
    err = capsys.readouterr().err
    assert "of every demand at once at most" in err
    assert "of 999 /s" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("qwen3-32b:speed=2", "--on", "nvidia-h100-sxm:8"), "'speed=2' is nothing that a model is asked for"),
        (("qwen3-32b", "llama-3.1-8b", "--on", "nvidia-h100-sxm:8"), "2 models share the fleet; say how much of each"),
        (("qwen3-32b:rate=1/s", "llama-3.1-8b", "--on", "nvidia-h100-sxm:8"), "has no rate and others have"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_a_message(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert main(["plan", *words]) == 2
    assert says in capsys.readouterr().err


AFD = ("plan", "deepseek-v3", "--on", "nvidia-h20:48+nvidia-l40s:64", "--afd", "--fabric", "200Gb/s", "--ttft", "4s", "--tpot", "60ms", "--input", "2048", "--output", "512")  # fmt: skip


def test_attention_and_experts_on_two_islands_are_shown_and_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "plan.yaml"
    assert main([*AFD, "-o", str(path)]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "nvidia-h20 (a) for attention, experts on 64 nvidia-l40s (b)" in words
    assert "micro-batches" in words
    assert "decode waits for" in words
    assert "of a layer and micro-batch attention" in words
    assert "activations between a (nvidia-h20) and b (nvidia-l40s): reported" in words
    assert "no engine in the catalog is on record with it" in words
    (pool,) = [one for one in read_plan(path).services[0].pools if one.experts_on]
    assert (pool.on, pool.experts_on, pool.expert_ranks, pool.state) == ("a", "b", 64, "modelled")
    assert (pool.link, pool.kv_link) == ("25 GB/s", "25 GB/s")


def played(capsys: pytest.CaptureFixture[str], path: Path, rate: str) -> dict[str, Any]:
    """The plan file played at a rate."""
    capsys.readouterr()
    text = path.read_text(encoding="utf-8")
    path.write_text(
        re.sub(r"( +)(output: \d+)\n", rf"\1\2\n\1rate: {rate}\n", text), encoding="utf-8"
    )
    assert main(["simulate", str(path), "--requests", "1000", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("words", "ttft_s", "tpot_s"),
    [
        (("qwen3-32b", "--on", "nvidia-h100-sxm:16", "--apart", "--input", "4096"), 2.0, 0.015),
        (("qwen3-32b", "--on", "nvidia-h20:32+huawei-ascend-910c:16", "--apart", "--unproven", "--fabric", "400Gb/s", "--input", "4096"), 2.0, 0.040),
        (("deepseek-v3", "--on", "nvidia-h20:48+nvidia-l40s:64", "--afd", "--fabric", "200Gb/s", "--input", "2048"), 4.0, 0.060),
    ],
    ids=["one vendor", "two vendors", "experts apart too"],
)  # fmt: skip
def test_workers_apart_are_played_inside_the_limits_at_the_rate_they_were_planned_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...], ttft_s: float, tpot_s: float
) -> None:  # fmt: skip
    """The plan's emulation gives every worker arrivals of its own; the router, which sees their queues, has requests wait less."""
    path = tmp_path / "plan.yaml"
    limits = ("--ttft", f"{ttft_s:g}s", "--tpot", f"{1000 * tpot_s:g}ms", "--output", "512")
    planned = asked(capsys, "plan", *words, *limits, "-o", str(path))["models"][0]["served_per_s"]
    plan = read_plan(path)
    assert {"prefill", "decode"} <= {pool.role for pool in plan.services[0].pools}
    found = played(capsys, path, f"{planned} /s")

    assert found["finished"] == 1000
    assert found["goodput"]["fraction"] >= 0.99
    assert found["ttft"]["p99_s"] < ttft_s
    assert 0.5 * tpot_s < found["tpot"]["p50_s"] < tpot_s
    retried = found["retries"]
    assert retried == 0


def test_experts_apart_are_an_object_of_a_pool(capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, *AFD)
    pools = found["models"][0]["pools"]
    (apart,) = [one for one in pools if one["experts_apart"]]
    assert apart["experts_apart"]["chip"] == "nvidia-l40s"
    assert apart["experts_apart"]["ranks"] == 64
    assert apart["experts_apart"]["free_bytes_per_rank"] >= 0
    assert apart["accelerators"] > 64
    assert all(one["experts_apart"] is None for one in pools if one["role"] == "prefill")


def test_what_was_offered_and_not_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "mixtral-8x7b", "--on", "nvidia-h100-sxm:4", "--afd", *LIMITS)
    found = asked(capsys, *words)
    assert all(one["experts_apart"] is None for one in found["models"][0]["pools"])
    assert any("offered, and serve no more" in note for note in found["assumptions"])
    assert main([*words, "--frontier"]) == 2
    assert "--frontier is of co-located layouts" in capsys.readouterr().err


REPLACE = ("replace", "qwen3-32b", "--from", "nvidia-h20:8", "--with", "amd-mi300x,huawei-ascend-910c", *LIMITS)  # fmt: skip


def test_what_replaces_what_is_counted_and_dated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REPLACE, "--by", "2025-12"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "new cards" in out
    assert "step 1" in out
    assert "2026-01-15" not in out  # after the date
    found = asked(capsys, *REPLACE, "--keep", "4")
    kept = next(one for one in found["options"] if one["chips"] == [])
    assert kept["holds"] is False
    assert all(step["share_of_demand"] >= 0.999 for one in found["options"] if one["holds"] for step in one["steps"])  # fmt: skip


def test_a_whole_vendor_gone_leaves_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("replace", "qwen3-32b:rate=3/s", "--what-if", "nvidia=0", "--on", "nvidia-h20:8+amd-mi300x:8", *LIMITS)  # fmt: skip
    found = asked(capsys, *words)
    (option,) = found["options"]
    assert (option["chips"], option["holds"], option["new_cards"]) == ([], True, {})


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--with", "amd-mi300x"), 2, "say what goes: --from CHIP:N"),
        (("--from", "nvidia-h20:8"), 2, "nothing stays and nothing may come"),
        (("--from", "nvidia-h20:8", "--with", "nvidia-h20"), 2, "is what goes; name chips that may come"),
        (("--from", "nvidia-h20:8", "--with", "amd-mi300x", "--keep", "8"), 2, "--keep 8 of 8: keep from 0 to 7"),
        (("--from", "nvidia-h20:8+amd-mi300x:8", "--with", "amd-mi325x"), 2, "names 2 parts"),
        (("--what-if", "intel=0", "--on", "nvidia-h20:8"), 2, "nothing of the fleet is of intel; there are NVIDIA"),
        (("--what-if", "nvidia", "--on", "nvidia-h20:8"), 2, "write VENDOR=0"),
        (("--from", "nvidia-h20:8", "--with", "amd-mi300x", "--by", "soon"), 2, "soon"),
    ],
)  # fmt: skip
def test_replace_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, says: str
) -> None:
    assert main(["replace", "qwen3-32b", *words, *LIMITS]) == code
    assert says in capsys.readouterr().err


def test_engine_settings_move_a_fleet_and_a_frontier_and_what_moves_no_plan_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("plan", "qwen3-32b", "--on", "nvidia-h100-sxm:1", *LIMITS)
    said = ("--engine-args", "prefix_hits=0.5")
    plain, cached = (asked(capsys, *words, "--apart", *more) for more in ((), said))
    assert cached["models"][0]["served_per_s"] > 1.1 * plain["models"][0]["served_per_s"]
    assert any(one["setting"] == "prefix_hits" for one in plain["models"][0]["unsaid"])
    assert all(one["setting"] != "prefix_hits" for one in cached["models"][0]["unsaid"])
    pools = cached["plan"]["services"][0]["pools"]
    assert {pool["engine_args"]["prefix_hits"] for pool in pools} == {0.5}
    fastest = [min(one["ttft_s"] for one in asked(capsys, *words, "--frontier", *more)) for more in ((), said)]  # fmt: skip
    assert fastest[1] < 0.7 * fastest[0]
    assert main([*words, "--apart", "--engine-args", "cold_start_s=3"]) == 2
    assert "cold_start_s moves no plan" in capsys.readouterr().err


def test_what_a_frontier_does_not_take_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "qwen3-32b", "--on", "nvidia-h100-sxm:2", "--frontier")
    for said in (("--objective", "cost"), ("--spare", "card"), ("--fabric", "400Gb/s"), ("--together",)):  # fmt: skip
        assert main([*words, *said]) == 2
        assert f"{said[0]} does not move; give one of them" in capsys.readouterr().err


def test_a_demand_that_a_share_forbids_names_both(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("plan", "qwen3-32b:rate=10/s", "--on", "nvidia-h100-sxm:16+amd-mi300x:4", *LIMITS, "--max-share", "nvidia=20%")  # fmt: skip
    assert main([*words]) == 1
    assert "the demand and --max-share nvidia=20% contradict each other here: without it the demand is met" in capsys.readouterr().err  # fmt: skip


def test_goodput_serves_what_it_can_of_a_demand_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    words = ("plan", "qwen3-32b:rate=50/s", "--on", "nvidia-h100-sxm:4", *LIMITS, "--objective", "goodput")  # fmt: skip
    assert main([*words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "of 50 asked requests/s" in out
    assert "requests/s inside the limits, proven best" in out


def test_a_chip_without_an_engine_is_planned_and_the_nearest_engine_named(capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    found = asked(capsys, "plan", "llama-3.1-8b", "--on", "nvidia-l40s:1", "--apart", *LIMITS)
    (note,) = [one for one in found["assumptions"] if "modelled only" in one]
    assert "no engine on nvidia-l40s is on record; nearest is " in note
    assert {pool["state"] for pool in found["plan"]["services"][0]["pools"]} == {"modelled"}
    alone = asked(capsys, "plan", "llama-3.1-8b", "--on", "nvidia-l40s:1", *LIMITS)
    assert any("nearest is " in one for one in alone["assumptions"])


@pytest.mark.parametrize("more", [(), ("--frontier",), ("--stages",), ("--rate", "1/s"), ("--objective", "goodput")])  # fmt: skip
def test_cores_of_a_host_in_a_fleet_are_refused_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, more: tuple[str, ...]
) -> None:
    path = tmp_path / "fleet.yaml"
    for rest, way in (("  b: {accelerator: nvidia-h100-sxm, count: 2}\n", "plan b here"), ("", "name pods or accelerators")):  # fmt: skip
        path.write_text(f"fleet:\n  a: {{host: bench, cores: [0, 1]}}\n{rest}")
        assert main(["plan", "llama-3.1-8b", "--on", str(path), *more]) == 2
        err = capsys.readouterr().err
        assert "'a' is cores of host 'bench', which polypod up plans" in err
        assert way in err
    path.write_text("fleet:\n  a: {host: bench, cores: [0, 1]}\n")
    assert main(["replace", "llama-3.1-8b", "--what-if", "nvidia=0", "--on", str(path), "--with", "amd-mi300x"]) == 2  # fmt: skip
    assert "'a' is cores of host 'bench'" in capsys.readouterr().err
