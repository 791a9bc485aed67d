"""polypod emit as a person meets it: files and where they go, nothing overwritten in silence, nothing half written."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from polypod.catalog import parsed
from polypod.cli.main import main
from polypod.plan.spec import read_plan

Cli = Callable[..., tuple[int, str, str]]

PLAN = """\
polypod: 1
fleet: {a: {accelerator: nvidia-h200-sxm, count: 8}, b: {accelerator: huawei-ascend-910c, count: 8}}
services:
  - model: Qwen/Qwen3-32B
    context: 16384
    pools:
      - {role: both, on: a, layout: {tp: 2}, replicas: 4, precision: {weights: bf16, kv: bf16}, state: launchable}
      - {role: both, on: b, layout: {tp: 8}, replicas: 2, precision: {weights: bf16, kv: bf16}, state: launchable}
"""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN, encoding="utf-8")
    return str(path)


def test_files_are_written_and_named_and_scripts_are_executable(
    cli: Cli, plan: str, tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "launch"
    code, out, err = cli("emit", plan, "--engine", "vllm", "--engine", "b=mindie", "-o", str(folder))  # fmt: skip
    assert (code, err) == (0, "")
    names = ["README.md", "pool0.0-both.sh", "pool0.1-both.json", "pool0.1-both.sh"]
    assert out.splitlines() == [str(folder / name) for name in names]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [name for name in names if os.access(folder / name, os.X_OK)] == [names[1], names[3]]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "1. `bash pool0.0-both.sh REPLICA` for every REPLICA from 0 to 3." in readme


def test_one_json_object_names_the_files(cli: Cli, plan: str, tmp_path: Path) -> None:
    code, out, _ = cli("emit", plan, "--engine", "vllm", "-o", str(tmp_path / "x"), "--json")
    assert code == 0
    assert json.loads(out) == {
        "folder": str(tmp_path / "x"),
        "files": ["README.md", "pool0.0-both.sh", "pool0.1-both.sh"],
    }


def test_what_is_there_is_replaced_only_when_asked_and_then_it_is_said(
    cli: Cli, plan: str, tmp_path: Path
) -> None:
    folder = tmp_path / "launch"
    asked = ("emit", plan, "--engine", "vllm", "-o", str(folder))
    assert cli(*asked)[0] == 0
    assert cli(*asked)[0] == 0  # the same again changes nothing
    mine = folder / "pool0.0-both.sh"
    mine.write_text("mine\n", encoding="utf-8")
    (folder / "README.md").unlink()
    code, _, err = cli(*asked)
    assert code == 2
    assert "pool0.0-both.sh: is there and says something else; nothing was written" in err
    assert mine.read_text(encoding="utf-8") == "mine\n"
    assert not (folder / "README.md").exists()
    code, _, err = cli(*asked, "--overwrite")
    assert (code, err) == (0, f"replaced {mine}\n")
    assert "exec vllm serve" in mine.read_text(encoding="utf-8")


def test_a_full_disk_leaves_no_half_file(
    cli: Cli, plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(parsed.ParsedTexts, "save", lambda _: None)
    folder = tmp_path / "launch"
    code, _, err = cli("emit", plan, "--engine", "vllm", "-o", str(folder))
    assert code == 2
    assert "cannot be written: No space left on device" in err
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_a_file_is_named(cli: Cli, plan: str, tmp_path: Path) -> None:
    code, _, err = cli("emit", plan, "--engine", "vllm", "-o", plan)
    assert code == 2
    assert "Traceback" not in err
    assert plan in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--engine", "mindie"), "MindIE on nvidia-h200-sxm is unknown"),
        (("--engine", "vllm", "--node-ranks", "0"), "--node-ranks 0 is no number of devices"),
        (("--engine", "a=vllm"), "no engine is given for pool 'pool0.1' on 'b'"),
    ],
)
def test_what_cannot_be_launched_is_refused_and_nothing_is_written(
    cli: Cli, plan: str, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    code, out, err = cli("emit", plan, *arguments, "-o", str(tmp_path / "x"))
    assert (code, out) == (2, "")
    assert says in err
    assert not (tmp_path / "x").exists()


def test_planning_writes_the_plan_and_its_launch_files_in_one_folder(
    cli: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "launch"
    asked = ("plan", "llama-3.1-8b", "--on", "nvidia-h200-sxm:8", "--emit", "sglang")
    code, out, err = cli(*asked, "-o", str(folder))
    assert code == 0
    assert "nvidia-hgx-h200), launchable" in out
    assert err == f"wrote README.md, plan.yaml, pool0.0-both.sh in {folder}\n"
    (pool,) = read_plan(folder / "plan.yaml").services[0].pools
    script = (folder / "pool0.0-both.sh").read_text(encoding="utf-8")
    assert f"--max-running-requests {pool.max_sequences} " in script
    code, _, err = cli(*asked)
    assert code == 2
    assert "--emit writes a folder; say which, with -o DIR" in err
    code, _, err = cli(*asked[:4], "-o", str(folder), "--overwrite")
    assert code == 2
    assert "--force, --overwrite and --node-ranks are of launch files; say --emit ENGINE too" in err


def test_planning_into_a_folder_with_another_plan_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("mine\n", encoding="utf-8")
    code, _, err = cli("plan", "llama-3.1-8b", "--on", "nvidia-h200-sxm:8", "--emit", "vllm", "-o", str(tmp_path))  # fmt: skip
    assert code == 2
    assert "plan.yaml: is there and says something else; nothing was written" in err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]
