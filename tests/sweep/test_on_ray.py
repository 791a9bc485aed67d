"""Ray at its edge; scripts/sweep_ray.py runs a cluster and kills parts of it."""

import os
import socket
import sys
from pathlib import Path

import pytest

from polypod.errors import InputError, RunError
from polypod.plan.sweep import Point, answer
from polypod.plan.version import data_version
from polypod.sweep import on_ray
from polypod.sweep.on_ray import RayRunner, _absolute, _Aside, answers, task, wait_for_head
from polypod.sweep.work import _sent


def test_without_ray_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'polypod\[ray\]', or leave --ray out"):
        RayRunner("auto")


def test_where_no_cluster_is_the_message_says_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(RunError, match=r"--ray auto: no cluster answers there .*ray start --head"):
        next(RayRunner("auto")([Point(model="a", on="x")]))


def test_a_head_that_answers_is_waited_for_no_longer_and_one_that_is_gone_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        assert answers(address)
        wait_for_head(address, patience_s=0)
    assert not answers(address)
    assert not answers("127.0.0.1:port")
    with pytest.raises(RunError, match=rf"head of the Ray cluster, {address}, has not answered for 0.5 s; .*same command again"):  # fmt: skip
        wait_for_head(address, patience_s=0.5)


def test_an_address_where_nothing_listens_is_said_at_once() -> None:
    pytest.importorskip("ray")
    with pytest.raises(RunError, match=r"--ray 127.0.0.1:1: nothing listens there"):
        next(RayRunner("127.0.0.1:1")([Point(model="a", on="x")]))


def test_a_node_answers_only_from_the_same_data() -> None:
    point = Point(model="llama-3.1-8b", on="nvidia-h200-sxm:1", tpot_limit_s=1e-6)
    assert task(point, "of another version") is None
    row = task(point, data_version())
    assert row is not None
    assert row["reason"] == answer(point)["reason"]


def test_a_models_own_file_is_sent_by_its_whole_path_and_a_name_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "llama-3.1-8b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert _sent(Point(model="mine", on="x")).model == str((tmp_path / "mine").resolve())
    assert _sent(Point(model="llama-3.1-8b", on="x")).model == "llama-3.1-8b"
    assert _sent(Point(model="nowhere", on="x")).model == "nowhere"
    assert _absolute(f"a{os.pathsep}/b") == f"{tmp_path / 'a'}{os.pathsep}/b"


def test_what_ray_prints_goes_to_stderr_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print("a node died\n  page\n  after page", file=_Aside())
    out, err = capsys.readouterr()
    assert (out, err) == ("", "a node died\n")
    assert sys.stdout is not sys.stderr
