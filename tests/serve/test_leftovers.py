"""What outlives a crash is found by its mark, ended, and never mistaken for anything else."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polypod.errors import FileError
from polypod.serve import leftovers, watch
from polypod.serve.nodes import NodeFile, clean_up, register, running, this_process

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
# Starts a grandchild in a session of its own, says its pid, and stays.
FAMILY = [
    sys.executable,
    "-c",
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)",
]


def is_running(pid: int) -> bool:
    return leftovers.started_ticks(pid) is not None


def until(is_so: Callable[[], bool]) -> None:
    for _ in range(500):
        if is_so():
            return
        time.sleep(0.01)
    pytest.fail("it did not come about in 5 s")


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    begun: list[subprocess.Popen[str]] = []

    def start(command: list[str], **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | variables)  # fmt: skip
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_a_mark_goes_down_the_family_and_ends_with_its_members(begin) -> None:
    parent = begin(FAMILY, **leftovers.environment("run-1", "a"))
    child = int(parent.stdout.readline())
    other = begin(SLEEP, **leftovers.environment("run-1", "b"))
    stranger = begin(SLEEP, **leftovers.environment("run-12", "a"))
    plain = begin(SLEEP)
    until(lambda: len(leftovers.marked("run-1")) == 3)

    assert set(leftovers.marked("run-1", "a")) == {parent.pid, child}
    assert set(leftovers.end_marked("run-1", "a")) == {parent.pid, child}
    assert not is_running(child)
    assert [is_running(one.pid) for one in (parent, other, stranger, plain)] == [False, True, True, True]  # fmt: skip
    assert leftovers.end_marked("run-1") == [other.pid]
    assert is_running(stranger.pid)
    assert leftovers.end_marked("run-1") == []


def test_a_pid_names_a_process_only_with_its_start(begin) -> None:
    process = begin(SLEEP)
    ticks = leftovers.started_ticks(process.pid)
    assert ticks == leftovers.started_ticks(process.pid)
    assert ticks != leftovers.started_ticks(os.getpid())
    process.kill()
    until(lambda: leftovers.started_ticks(process.pid) is None)  # a zombie is no process any more


def test_the_guardian_ends_everything_when_nothing_was_said_and_nothing_when_it_was(begin) -> None:
    for word, survives in ((leftovers.ALL_WELL, True), (b"", False)):
        process = begin(SLEEP, **leftovers.environment("run-2", "a"))
        until(lambda: leftovers.marked("run-2") != [])
        guardian = subprocess.Popen(leftovers.command("run-2"), stdin=subprocess.PIPE)
        guardian.communicate(word, timeout=20)
        assert guardian.returncode == 0
        assert is_running(process.pid) is survives
        process.kill()
        process.wait()


def a_node(folder: Path, **more) -> NodeFile:
    pid, ticks, boot = this_process()
    known = {"pid": pid, "started_ticks": ticks, "boot_id": boot, "run": "run-3", "folder": str(folder), "url": "http://127.0.0.1:1", "sockets": str(folder / "sockets"), "control": "c"}  # fmt: skip
    return NodeFile(**known | more)


def test_what_a_crashed_node_left_is_ended_and_its_sockets_go(begin, tmp_path: Path) -> None:
    process = begin(SLEEP, **leftovers.environment("run-3", "a"))
    until(lambda: leftovers.marked("run-3") != [])
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(sockets / "a.sock"))
    pid, ticks, _ = this_process()
    path = register(tmp_path, a_node(tmp_path, started_ticks=ticks + 1))  # the pid is another's now

    assert running(tmp_path) == []
    (cleaned,) = clean_up(tmp_path)
    assert (cleaned.node.pid, cleaned.ended) == (pid, (process.pid,))
    assert not path.exists()
    assert not sockets.exists()
    assert is_running(pid), "whose pid the crashed node had"
    assert clean_up(tmp_path) == []


def test_a_node_that_runs_is_left_alone(begin, tmp_path: Path) -> None:
    process = begin(SLEEP, **leftovers.environment("run-3", "a"))
    until(lambda: leftovers.marked("run-3") != [])
    path = register(tmp_path, a_node(tmp_path))

    assert [node.pid for node in running(tmp_path)] == [os.getpid()]
    assert clean_up(tmp_path) == []
    assert path.exists()
    assert path.stat().st_mode & 0o077 == 0
    assert is_running(process.pid)


def test_after_another_boot_only_files_are_left(begin, tmp_path: Path) -> None:
    process = begin(SLEEP, **leftovers.environment("run-3", "a"))
    until(lambda: leftovers.marked("run-3") != [])
    register(tmp_path, a_node(tmp_path, boot_id="an earlier one"))
    (cleaned,) = clean_up(tmp_path)
    assert cleaned.ended == ()
    assert is_running(process.pid)


def test_caches_that_a_crashed_node_held_in_memory_are_freed(tmp_path: Path) -> None:
    for name in ("polypod-kv-x", "precious"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cache").write_bytes(b"x")
        register(tmp_path, a_node(tmp_path, started_ticks=1, caches=str(tmp_path / name)))
        clean_up(tmp_path)
    assert not (tmp_path / "polypod-kv-x").exists()
    assert (tmp_path / "precious" / "cache").exists()


def test_a_folder_with_other_things_in_it_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "sockets").mkdir()
    (tmp_path / "sockets" / "precious").touch()
    register(tmp_path, a_node(tmp_path, started_ticks=1))
    clean_up(tmp_path)
    assert (tmp_path / "sockets" / "precious").exists()


def test_a_state_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "nodes").touch()
    with pytest.raises(FileError, match="what ends its engines after a crash"):
        register(tmp_path, a_node(tmp_path))


def test_memory_is_counted_over_the_family_and_without_files(begin, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"x" * (64 << 20))
    program = (
        "import mmap, os, time\n"
        f"held = mmap.mmap(os.open({str(large)!r}, os.O_RDONLY), 0, prot=mmap.PROT_READ)\n"
        "read = sum(held[at] for at in range(0, len(held), 4096))\n"
        "if os.fork() == 0:\n"
        "    block = bytearray(os.urandom(1 << 20) * 48)\n"
        "    print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = begin([sys.executable, "-c", program])
    process.stdout.readline()
    # 48 MiB in the child; its 64 MiB of a file are left out, and two interpreters have some of their own
    assert 48 << 20 <= watch.used_bytes(process.pid) < 100 << 20
    for pid in watch._tree(process.pid):
        os.kill(pid, signal.SIGKILL)


def test_a_log_is_cut_and_its_end_kept_while_it_is_written(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("ab", buffering=0) as file:
        file.write(b"first line\n")
        watch.bound_log(log)
        assert log.read_bytes() == b"first line\n"
        file.write(b"x" * watch.MOST_LOG_BYTES + b"\nlast words\n")
        watch.bound_log(log)
        assert log.stat().st_size == 0
        file.write(b"more\n")
    assert log.read_bytes() == b"more\n"
    kept = watch.earlier(log).read_bytes()
    assert kept.endswith(b"\nlast words\n")
    assert len(kept) < watch.MOST_LOG_BYTES


def test_only_orphans_of_known_sessions_are_buried() -> None:
    async def scene() -> None:
        process = await asyncio.create_subprocess_exec(*SLEEP, start_new_session=True)
        process.kill()
        watch.reap_orphans({process.pid}, {process.pid})
        assert await process.wait() == -9, "whoever waits for it gets its status"

    asyncio.run(scene())
