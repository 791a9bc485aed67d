"""The supervisor, with real processes of a tiny engine: a Python script that answers 200 on its socket."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import pytest
import uvloop

from polypod.errors import EngineError, InputError
from polypod.serve.engines import ENGINES, USUAL
from polypod.serve.engines.embedded import embedded_weights
from polypod.serve.engines.spec import EngineSpec, child_command, child_environment
from polypod.serve.supervise import Down, Patience, Replica, Supervisor, Up, make_socket_directory

SCRIPT = """
import asyncio, os, signal, sys, time
from polypod.serve.engines.child import settle

mode = os.environ["TINY_MODE"]
options = settle()
if mode == "dies":
    sys.exit("no tensor called blk.0")
was_here = options.socket.with_suffix(".was")
if mode == "once" and was_here.exists():
    sys.exit("no second time")
was_here.touch()
if mode == "mute":
    time.sleep(60)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "parent":
    child = os.fork()
    if child == 0:
        os.setsid()
        time.sleep(60)
    print("child", child, flush=True)
if mode == "greedy":
    held = bytearray(256 << 20)
if mode == "chatty":
    for _ in range(1 << 16):
        print("x" * 255)
print("serving", flush=True)

async def answer(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    good = not options.secret or f"Bearer {options.secret}".encode() in head
    writer.write(b"HTTP/1.1 %d X\\r\\ncontent-length: 0\\r\\n\\r\\n" % (200 if good else 401))
    await writer.drain()
    writer.close()
    if mode == "short":
        asyncio.get_running_loop().call_later(0.1, os._exit, 7)

async def main():
    server = await asyncio.start_unix_server(answer, options.socket)
    await server.serve_forever()

asyncio.run(main())
"""


@dataclass(frozen=True)
class TinyEngine:
    """An engine that serves nothing."""

    mode: str = "good"
    name: str = "tiny"
    distribution: str = "polypod"
    health_path: str = "/health"
    metrics_path: str = "/metrics"
    keeps_connections: bool = True
    kv_bytes_per_element: float = 2.0
    max_step_tokens: int = 1

    def version(self) -> str | None:
        return "1"

    def command(self, spec: EngineSpec) -> list[str]:
        python, _, _, *arguments = child_command("unused", spec)
        return [python, "-c", SCRIPT, *arguments]

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        return child_environment(spec) | {"TINY_MODE": self.mode}


@dataclass
class Heard:
    """What the supervisor told, and when."""

    words: list[Up | Down] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def tell(self, word: Up | Down) -> None:
        self.words.append(word)
        self.times_s.append(time.monotonic())
        self.news.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.words) < count:
                self.news.clear()
                await self.news.wait()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_guardian_that_somebody_killed_is_no_reason_not_to_end_in_order(run) -> None:
    async def main() -> None:
        supervisor = Supervisor([], Heard().tell)
        async with supervisor:
            guardian = supervisor._guardian
            assert guardian is not None
            guardian.kill()
            await guardian.wait()
            await asyncio.sleep(0.05)  # until the loop has heard of its pipe's end

    run(main())


@pytest.fixture
def directory():
    path = make_socket_directory()
    yield path
    for leftover in path.iterdir():
        leftover.unlink()
    path.rmdir()


def tiny(directory: Path, mode: str = "good", number: int = 0) -> Replica:
    spec = EngineSpec(
        replica=f"tiny-{number}",
        model="m",
        weights=Path("m.gguf"),
        cores=(min(os.sched_getaffinity(0)),),
        context_tokens=64,
        max_sequences=1,
        socket=directory / f"{number}.sock",
        secret="open sesame",
        log=directory / f"{number}.log",
    )
    return Replica(engine=TinyEngine(mode), spec=spec)


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_up_tells_an_endpoint_that_answers_to_its_secret(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        async with Supervisor([tiny(directory)], heard.tell):
            (up,) = heard.words
            assert isinstance(up, Up)
            assert (up.replica, up.epoch) == ("tiny-0", 1)
            connector = aiohttp.UnixConnector(path=str(up.endpoint.socket))
            async with aiohttp.ClientSession(connector=connector) as client:
                async with client.get("http://engine/health") as response:
                    assert response.status == 401
                async with client.get(
                    "http://engine/health", headers=up.endpoint.headers
                ) as response:
                    assert response.status == 200
        assert not is_running(up.process)
        assert not up.endpoint.socket.exists()
        assert heard.words == [up], "an intended stop is no Down"

    asyncio.run(scene())


def test_the_secret_is_in_nobodys_command_line(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        async with Supervisor([tiny(directory)], heard.tell):
            command = Path(f"/proc/{heard.words[0].process}/cmdline").read_bytes()
        assert b"--socket" in command
        assert b"sesame" not in command

    asyncio.run(scene())


def test_a_killed_replica_comes_back_in_the_next_epoch_while_the_other_stays(
    directory: Path,
) -> None:
    async def scene() -> None:
        heard = Heard()
        patience = Patience(first_restart_s=0.05)
        replicas = [tiny(directory, number=0), tiny(directory, number=1)]
        async with Supervisor(replicas, heard.tell, patience):
            first = {up.replica: up for up in heard.words}["tiny-1"]
            os.kill(first.process, signal.SIGKILL)
            await heard.until(4)
            down, up = heard.words[2:]
            assert isinstance(down, Down)
            assert (down.replica, down.epoch, down.reason) == (
                "tiny-1",
                1,
                "was ended by SIGKILL",
            )
            assert down.log_tail == ("serving",)
            assert (up.replica, up.epoch) == ("tiny-1", 2)
            assert up.process != first.process

    asyncio.run(scene())


def test_a_replica_that_hangs_is_killed_and_started_again(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        patience = Patience(hang_s=0.5, watch_every_s=0.05, first_restart_s=0.05)
        async with Supervisor([tiny(directory)], heard.tell, patience):
            frozen = heard.words[0].process
            os.kill(frozen, signal.SIGSTOP)
            await heard.until(3)
            assert heard.words[1].reason.startswith("hung: no good answer on /health for 0.5 s")
            assert heard.words[2].epoch == 2
            assert not is_running(frozen)

    asyncio.run(scene())


def test_the_wait_doubles_with_every_death_up_to_its_limit(directory: Path) -> None:
    async def scene() -> list[float]:
        heard = Heard()
        patience = Patience(first_restart_s=0.1, longest_restart_s=0.4)
        async with Supervisor([tiny(directory, "short")], heard.tell, patience):
            await heard.until(9)
        assert [type(word) for word in heard.words[:4]] == [Up, Down, Up, Down]
        assert heard.words[1].log_tail == ("serving",)
        assert heard.words[1].reason == "ended with status 7"
        pairs = zip(heard.words, heard.times_s, heard.words[1:], heard.times_s[1:], strict=False)
        return [
            then - at - word.load_s
            for previous, at, word, then in pairs
            if isinstance(previous, Down) and isinstance(word, Up)
        ]

    waits_s = asyncio.run(scene())
    for wait_s, expected_s in zip(waits_s, (0.1, 0.2, 0.4, 0.4), strict=True):
        assert expected_s <= wait_s + 0.01 < expected_s + 0.1


def test_a_start_is_promised_until_so_many_have_failed(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        patience = Patience(first_restart_s=0.1, longest_restart_s=0.2, promised_starts=2)
        async with Supervisor([tiny(directory, "once")], heard.tell, patience) as supervisor:
            took_s = supervisor.took_s("tiny-0")
            assert took_s >= heard.words[0].load_s > 0
            os.kill(heard.words[0].process, signal.SIGKILL)
            await heard.until(4)
        back_in_s = [word.back_in_s for word in heard.words[1:4]]
        assert back_in_s == [0.1 + took_s, 0.2 + took_s, None]

    asyncio.run(scene())


def test_one_that_is_to_go_is_promised_to_nobody(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        async with Supervisor([tiny(directory)], heard.tell) as supervisor:
            supervisor.let_end("tiny-0")
            os.kill(heard.words[0].process, signal.SIGKILL)
            await heard.until(2)
            assert heard.words[1].back_in_s is None

    asyncio.run(scene())


def test_a_replica_that_was_up_long_enough_is_restarted_quickly_again(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        patience = Patience(first_restart_s=0.05, longest_restart_s=60, settled_s=0)
        async with Supervisor([tiny(directory, "short")], heard.tell, patience):
            await heard.until(
                13
            )  # six deaths; doubling would wait 3.15 s in all, and 1.6 s the last time
        assert heard.times_s[12] - heard.times_s[11] - heard.words[12].load_s < 0.2

    asyncio.run(scene())


def test_a_start_that_fails_says_why_and_leaves_nothing_running(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        replicas = [tiny(directory), tiny(directory, "dies", number=1)]
        with pytest.raises(EngineError, match=r"tiny-1.*ended with status 1") as caught:
            async with Supervisor(replicas, heard.tell):
                pytest.fail("started")
        assert caught.value.log_tail == ("no tensor called blk.0",)
        assert not list(directory.glob("*.sock"))

    before = _children()
    asyncio.run(scene())
    assert _children() == before, "a process was left behind"


def test_a_replica_that_never_answers_fails_at_the_deadline(directory: Path) -> None:
    async def scene() -> None:
        began_s = time.monotonic()
        with pytest.raises(EngineError, match=r"did not answer in 0\.5 s"):
            await Supervisor([tiny(directory, "mute")], Heard().tell, Patience(ready_s=0.5)).start()
        assert time.monotonic() - began_s < 3

    before = _children()
    asyncio.run(scene())
    assert _children() == before


def test_a_process_that_ignores_sigterm_is_killed(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        supervisor = Supervisor([tiny(directory, "stubborn")], heard.tell, Patience(stop_s=0.3))
        await supervisor.start()
        began_s = time.monotonic()
        await supervisor.stop()
        assert 0.3 <= time.monotonic() - began_s < 2
        assert not is_running(heard.words[0].process)

    asyncio.run(scene())


def test_a_directory_that_others_can_enter_is_refused(directory: Path) -> None:
    directory.chmod(0o755)
    with pytest.raises(InputError, match="mode 0700"):
        asyncio.run(Supervisor([tiny(directory)], Heard().tell).start())
    directory.chmod(0o700)


def test_a_socket_path_too_long_for_the_kernel_is_refused(directory: Path) -> None:
    deep = directory / ("d" * 100)
    with pytest.raises(InputError, match="at most 107 bytes"):
        asyncio.run(Supervisor([tiny(deep)], Heard().tell).start())


def child_of(log: Path) -> int:
    return int(log.read_text().split("child ")[1].split()[0])


def test_what_an_engine_started_ends_when_it_is_stopped_and_when_it_dies(directory: Path) -> None:
    """Its child has begun a session of its own, as workers of some engines do."""

    async def scene() -> None:
        heard = Heard()
        replica = tiny(directory, "parent")
        async with Supervisor(
            [replica], heard.tell, Patience(first_restart_s=0.05, watch_every_s=0.05)
        ):
            first = child_of(replica.spec.log)
            assert is_running(first)
            os.kill(heard.words[0].process, signal.SIGKILL)
            await heard.until(3)
            assert not is_running(first)
            second = child_of(replica.spec.log)
            assert is_running(second)
        assert not is_running(second)
        assert not Path(f"/proc/{second}").exists(), "a zombie is left"

    asyncio.run(scene())


def test_an_engine_that_takes_too_much_memory_is_ended_with_the_reason(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        modest, greedy = (replace(tiny(directory, mode, number), memory_limit_bytes=192 << 20) for number, mode in enumerate(("good", "greedy")))  # fmt: skip
        async with Supervisor([modest, greedy], heard.tell, Patience(watch_every_s=0.05)):
            await heard.until(3)
            (down,) = (word for word in heard.words if isinstance(word, Down))
            assert down.replica == "tiny-1"
            assert re.fullmatch(r"took [\d.]+ MB of memory, more than its limit of 201 MB, and was ended", down.reason)  # fmt: skip

    asyncio.run(scene())


def test_a_chatty_engine_does_not_fill_the_disk(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        replica = tiny(directory, "chatty")
        async with Supervisor([replica], heard.tell, Patience(watch_every_s=0.05)) as supervisor:
            for _ in range(100):
                await asyncio.sleep(0.05)
                kept_bytes = sum(one.stat().st_size for one in directory.glob("*.log*"))
                if kept_bytes < 2 << 20:
                    break
            assert 0 < kept_bytes < 2 << 20, "of 16 MB"
            assert supervisor.log_tail("tiny-0")[-1] == "serving"

    asyncio.run(scene())


def test_replicas_start_in_the_order_they_wait_for_each_other(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        last = replace(tiny(directory, number=0), after=("tiny-2", "tiny-1"))
        middle = replace(tiny(directory, number=1), after=("tiny-2",))
        first = tiny(directory, number=2)
        async with Supervisor([last, middle, first], heard.tell):
            assert [up.replica for up in heard.words] == ["tiny-2", "tiny-1", "tiny-0"]

    asyncio.run(scene())


def test_nothing_starts_after_what_failed(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        after = replace(tiny(directory, number=1), after=("tiny-0",))
        with pytest.raises(EngineError, match=r"tiny-0.*ended with status 1"):
            await Supervisor([tiny(directory, "dies"), after], heard.tell).start()
        assert heard.words == []
        assert not after.spec.log.exists()

    asyncio.run(scene())


def test_an_order_that_cannot_be_is_refused(directory: Path) -> None:
    one = replace(tiny(directory, number=0), after=("tiny-1",))
    other = replace(tiny(directory, number=1), after=("tiny-0",))
    with pytest.raises(InputError, match="tiny-0, tiny-1 wait for each other"):
        Supervisor([one, other], Heard().tell)
    with pytest.raises(InputError, match="starts after tiny-1, which is not there"):
        Supervisor([one], Heard().tell)


def test_a_replica_comes_and_goes_while_another_one_stays(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        async with Supervisor([tiny(directory)], heard.tell) as supervisor:
            await supervisor.add(tiny(directory, number=1))
            assert [up.replica for up in heard.words] == ["tiny-0", "tiny-1"]
            await supervisor.remove("tiny-0")
            assert not is_running(heard.words[0].process)
            assert is_running(heard.words[1].process)
            with pytest.raises(EngineError):
                await supervisor.add(tiny(directory, "dies", number=2))
            assert list(supervisor.processes()) == ["tiny-1"]
        assert len(heard.words) == 2, "an intended stop is no Down"

    asyncio.run(scene())


def test_sigkill_of_the_parent_leaves_no_child(directory: Path) -> None:
    program = textwrap.dedent(
        f"""
        import asyncio, importlib.util
        from pathlib import Path
        spec = importlib.util.spec_from_file_location("scene", {__file__!r})
        scene = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(scene)

        async def main():
            heard = scene.Heard()
            async with scene.Supervisor([scene.tiny(Path({str(directory)!r}), "parent")], heard.tell):
                print(heard.words[0].process, flush=True)
                await asyncio.sleep(60)

        asyncio.run(main())
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
    grandchild = child_of(directory / "0.log")
    for _ in range(250):
        if not is_running(child) and not is_running(grandchild):
            break
        time.sleep(0.02)
    assert not is_running(child)
    assert not is_running(grandchild)


def _children() -> list[int]:
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(child) for child in task.read_text().split() if is_running(int(child))]


def real(directory: Path, name: str, weights: Path) -> Replica:
    spec = replace(tiny(directory).spec, weights=weights, context_tokens=256)
    return Replica(engine=ENGINES[name], spec=spec)


@pytest.mark.engines
def test_a_killed_engine_answers_again_in_the_next_epoch(directory: Path) -> None:
    async def scene() -> None:
        heard = Heard()
        replica = real(directory, "llama.cpp", embedded_weights())
        async with Supervisor([replica], heard.tell, Patience(first_restart_s=0.05)):
            os.kill(heard.words[0].process, signal.SIGKILL)
            await heard.until(3)
            up = heard.words[2]
            assert isinstance(up, Up)
            assert up.epoch == 2
            connector = aiohttp.UnixConnector(path=str(up.endpoint.socket))
            async with (
                aiohttp.ClientSession(connector=connector) as client,
                client.get("http://engine/v1/models", headers=up.endpoint.headers) as response,
            ):
                assert (await response.json())["data"][0]["id"] == "m"

    asyncio.run(scene())


@pytest.mark.engines
@pytest.mark.parametrize("name", USUAL["gguf"])
def test_a_model_cut_short_fails_to_start_and_says_what_is_missing(
    directory: Path, tmp_path: Path, name: str
) -> None:
    cut = tmp_path / "cut.gguf"
    with embedded_weights().open("rb") as whole:
        cut.write_bytes(whole.read(50_000_000))

    with pytest.raises(EngineError, match=r"cut\.gguf\) ended with status 1") as caught:
        asyncio.run(Supervisor([real(directory, name, cut)], Heard().tell).start())

    assert "promises 98,362,432 bytes, found 50,000,000" in caught.value.log_tail[-1]
    assert not list(directory.glob("*.sock"))
