"""`polypod plan` over a fleet and `polypod replace`, as a person asks."""

import json
from pathlib import Path
from typing import Any

import pytest

from polypod.cli.main import main
from polypod.plan.spec import read_plan

LIMITS = ("--ttft", "2s", "--tpot", "50ms", "--input", "2048", "--output", "512")
TWO = ("plan", "qwen3-32b:rate=2/s", "llama-3.1-8b:rate=4/s,tpot=30ms", "--on", "nvidia-h100-sxm:8+amd-mi300x:8", *LIMITS)  # fmt: skip


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


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
        (("--objective", "cost"), 2, "not on record"),
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


REPLACE = ("replace", "qwen3-32b", "--from", "nvidia-h20:16", "--with", "amd-mi300x,huawei-ascend-910c", *LIMITS)  # fmt: skip


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
