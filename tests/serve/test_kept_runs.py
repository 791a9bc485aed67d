"""What earlier runs take is said once it is much, with where it is; what is removed of it is a node's own and in nobody's use."""

import os
import time
from calendar import timegm
from pathlib import Path
from time import strptime
from typing import Any

import msgspec

from polypod import record
from polypod.policy import PolicySettings
from polypod.record import Header
from polypod.serve import nodes
from polypod.serve.kept_runs import Run, kept_runs, remove, runs, said_of_runs, to_go


def test_runs_are_counted_with_the_bytes_of_their_files(tmp_path):
    assert kept_runs(tmp_path) == (0, 0)
    for number in range(3):
        folder = tmp_path / "runs" / f"run-{number}"
        folder.mkdir(parents=True)
        (folder / "record.jsonl").write_bytes(b"x" * 1000)

    assert kept_runs(tmp_path) == (3, 3000)
    assert said_of_runs(tmp_path) == ""
    said = said_of_runs(tmp_path, worth_bytes=3000)
    assert "3 earlier runs take 3 kB" in said
    assert str(tmp_path / "runs") in said


NOW_S = timegm(strptime("20261201", "%Y%m%d"))


def run_of(
    state: Path, name: str, *, days: float = 10.0, plan: Any = None, **files: str | None
) -> Path:
    """A folder of a run that ended so many days ago, with a record and these files."""
    folder = state / "runs" / name
    folder.mkdir(parents=True)
    header = Header(kind="live", polypod="0", policy=PolicySettings(services=()), plan=plan)
    files = {"record.jsonl": record.encode(header).decode()} | files
    for file, text in files.items():
        if text is not None:
            (folder / file).write_text(text)
    ended_s = NOW_S - days * 86400
    for path in (*folder.iterdir(), folder):
        os.utime(path, (ended_s, ended_s))
    return folder


def names(some: list[Run]) -> list[str]:
    return [one.name for one in some]


def test_runs_are_those_that_a_node_named_the_latest_first(tmp_path):
    plan = {"services": [{"model": "m"}, {"model": "n"}]}
    run_of(tmp_path, "20261101-120000-ab12", plan=plan)
    run_of(tmp_path, "20261103-120000-ab12", **{"ghosts-0.json": "{}", "ghosts-0.log": "x" * 1000})
    run_of(tmp_path, "20261102-120000-ab12", **{"record.jsonl": None, "plan.yaml": ""})
    run_of(tmp_path, "mine")
    (tmp_path / "runs" / "20261104-120000-ab12").symlink_to(tmp_path)
    (tmp_path / "runs" / "20261105-120000-ab12").write_text("")
    found = runs(tmp_path, NOW_S)

    assert names(found) == [f"202611{day}-120000-ab12" for day in ("03", "02", "01")]
    assert [one.kind for one in found] == ["ghosts", "no record", "engines"]
    assert [one.models for one in found] == [(), (), ("m", "n")]
    assert found[0].size_bytes == sum(file.stat().st_size for file in found[0].folder.iterdir())
    assert found[0].began_s == NOW_S - 27.5 * 86400
    assert runs(tmp_path / "nowhere", NOW_S) == []


def test_what_goes_is_neither_among_the_latest_nor_changed_since_nor_in_use(tmp_path):
    for day in range(1, 6):
        run_of(tmp_path, f"2026110{day}-120000-ab12", days=30 - 5 * day)
    fresh = run_of(tmp_path, "20261010-120000-ab12", days=0.001)  # 86 s
    found = runs(tmp_path, NOW_S)

    def goes(keep=None, older_days=None):
        before_s = None if older_days is None else NOW_S - older_days * 86400
        return [name[6:8] for name in names(to_go(found, keep=keep, before_s=before_s))]

    assert found[-1].folder == fresh
    assert found[-1].is_in_use
    assert goes(keep=3) == ["02", "01"]
    assert goes(keep=0) == ["05", "04", "03", "02", "01"]
    assert goes(older_days=12) == ["03", "02", "01"]
    assert goes(keep=4, older_days=12) == ["01"]


def test_a_node_s_folder_stays_while_it_runs_or_may_run_elsewhere(tmp_path):
    folder = run_of(tmp_path, "20261101-120000-ab12")
    pid, ticks, boot_id = nodes.this_process()
    node = nodes.NodeFile(pid=pid, started_ticks=ticks, boot_id=boot_id, run="r", folder=str(folder), url="u", sockets=str(tmp_path / "s"), control="c")  # fmt: skip

    def left(**over: Any) -> str | None:
        nodes.register(tmp_path, msgspec.structs.replace(node, **over))
        (found,) = runs(tmp_path, NOW_S)
        why = remove(found, tmp_path, NOW_S)
        assert folder.exists() == (why is not None) == found.is_in_use
        return why

    assert left() == "it is in use"
    assert left(boot_id="another machine's") == "it is in use"
    assert left(started_ticks=ticks + 1) is None  # it crashed


def test_nothing_goes_that_no_node_wrote_and_nothing_beyond_the_folder(tmp_path):
    other = tmp_path / "precious"
    other.mkdir()
    (other / "record.jsonl").write_text("x")
    noted = run_of(tmp_path, "20261101-120000-ab12", **{"notes.txt": "mine", "a-0.log": "x"})
    linked = run_of(tmp_path, "20261102-120000-ab12")
    (linked / "a-0.log").symlink_to(other / "record.jsonl")
    within = run_of(tmp_path, "20261103-120000-ab12")
    (within / "a-1.log").mkdir()
    ours = run_of(tmp_path, "20261104-120000-ab12", **dict.fromkeys(("plan.yaml", "plan-2.yaml", "prompts.jsonl", "a-0.log", "a-0.log.earlier", "a-0.log.previous", "ghosts-0.json", "a-0.mindie.json"), "x"))  # fmt: skip
    later_s = time.time() + 10_000
    why = {one.name[6:8]: remove(one, tmp_path, later_s) for one in runs(tmp_path, later_s)}

    assert why == {
        "01": "it has notes.txt, which no node wrote",
        "02": "it has a-0.log, which no node wrote",
        "03": "it has a-1.log, which no node wrote",
        "04": None,
    }
    assert (noted / "a-0.log").exists()
    assert (other / "record.jsonl").read_text() == "x"
    assert [one.exists() for one in (noted, linked, within, ours)] == [True, True, True, False]


def test_one_that_came_into_use_since_it_was_listed_stays(tmp_path):
    folder = run_of(tmp_path, "20261101-120000-ab12")
    (found,) = runs(tmp_path, NOW_S)
    os.utime(folder / "record.jsonl", (NOW_S, NOW_S))

    assert remove(found, tmp_path, NOW_S + 1) == "it is in use"
    assert folder.exists()
