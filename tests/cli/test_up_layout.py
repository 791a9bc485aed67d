"""Ways to lay the cores out that contradict each other."""

import pytest

from polypod.cli.main import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stages", "--apart"], "--stages and --apart each lay the cores out"),
        (["--apart", "--plan", "plan.yaml"], "--apart and --plan each lay the cores out"),
        (["--stages", "--plan", "plan.yaml"], "--stages and --plan each lay the cores out"),
    ],
)
def test_two_at_once_are_refused_before_anything_starts(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    assert main(["up", "--port", "0", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
