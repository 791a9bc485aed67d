"""`polypod runs`: what is kept, and what goes, as a user sees it."""

import json
from pathlib import Path

import pytest

from polypod.cli.main import main
from tests.serve.test_kept_runs import run_of


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs of years ago, one of them with a user's file."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    found = tmp_path / "polypod"
    for n, more in enumerate(({}, {"notes.txt": "mine"}, {"a-0.log": "x" * 5000})):
        run_of(found, f"2020010{n + 1}-120000-ab12", days=2000, plan={"services": [{"model": f"a-model-{n}"}]}, **more)  # fmt: skip
    return found


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["runs", *arguments]) == 0
    return capsys.readouterr().out


def test_runs_are_listed_within_80_columns(state, capsys):
    lines = said(capsys).splitlines()

    assert lines[1].split() == ["20200103-120000-ab12", "2020-01-03", "12:00", "engines", lines[1].split()[4], "kB", "a-model-2"]  # fmt: skip
    assert len(lines) == 6
    assert lines[-1].startswith("3 runs, ")
    assert str(state / "runs") in lines[-1]
    assert max(map(len, lines[:-1])) <= 80
    (latest, *_) = json.loads(said(capsys, "--json"))["runs"]
    assert (latest["run"], latest["began_utc"], latest["models"], latest["in_use"]) == ("20200103-120000-ab12", "2020-01-03T12:00:00Z", ["a-model-2"], False)  # fmt: skip


def test_what_goes_is_said_and_a_dry_run_removes_nothing(state, capsys):
    def there():
        return sorted(one.name[7] for one in (state / "runs").iterdir())

    dry = said(capsys, "--prune", "--keep", "0", "--dry-run").splitlines()
    assert there() == ["1", "2", "3"]
    assert [line.split()[:3] for line in dry[:2]] == [["would", "go", "20200103-120000-ab12"], ["would", "go", "20200101-120000-ab12"]]  # fmt: skip
    assert dry[2] == "left  20200102-120000-ab12: it has notes.txt, which no node wrote"
    assert dry[3].startswith("2 runs would go, ")

    assert said(capsys, "--prune", "--keep", "3").startswith("0 runs removed, 0 B; 3 runs left, ")
    assert said(capsys, "--prune", "--older-than", "20000d").startswith("0 runs removed")
    lines = said(capsys, "--prune", "--keep", "1", "--older-than", "30d").splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["removed", "20200101-120000-ab12"], ["left", "20200102-120000-ab12:"]]  # fmt: skip
    assert lines[2].startswith("1 run removed, ")
    assert there() == ["2", "3"]
    found = json.loads(said(capsys, "--prune", "--keep", "0", "--json"))
    assert found["removed"] == ["20200103-120000-ab12"]
    assert found["left"] == {"20200102-120000-ab12": "it has notes.txt, which no node wrote"}
    assert there() == ["2"]


def test_nothing_kept_is_said_with_where(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    assert said(capsys) == f"no run is kept in {tmp_path / 'polypod' / 'runs'}\n"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--prune", "--prune needs to know what stays: say --keep N, --older-than TIME as 30d, or both"),
        ("--keep 3", "are of --prune; without it nothing goes"),
        ("--dry-run", "are of --prune"),
        ("--prune --keep -1", "--keep '-1' is no number"),
        ("--prune --older-than 30", "has no unit"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_nothing_goes(state, capsys, flags, says):
    assert main(["runs", *flags.split()]) == 2
    assert says in capsys.readouterr().err
    assert len(list((state / "runs").iterdir())) == 3
