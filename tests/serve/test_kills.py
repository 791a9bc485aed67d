"""Streams while ghosts die under them, each judged word by word; and gateways broken on purpose, which the judge must hear.

The long version, over processes that are really killed, is `make kills`.
"""

import asyncio
import itertools
import json
from pathlib import Path

import pytest

from polypod.cost.steptime import StepTime
from polypod.policy.events import ReplicaUp
from polypod.serve.engines.ghost import GhostFile
from polypod.serve.engines.ghost_server import Fault, GhostServer
from polypod.serve.engines.ghost_text import words
from polypod.serve.engines.spec import Endpoint
from polypod.serve.ghosts import GhostPlan, Ghosts
from polypod.serve.reply import Reply
from polypod.serve.supervise import Up
from polypod.serve.wire import Problem
from tests.faults.live import Heard, Tally, Wish, all_of, judge, listen

MODEL = "tiny"  # of the lab
SECRET = "boo"
FORGIVING = {"quarantine_deaths": 5, "max_attempts": 6}  # ghosts die faster here than anything does
WISH = Wish(model=MODEL, text="how far?", tokens=6)


def ghost_up(number: int) -> ReplicaUp:
    step = StepTime(tokens=(1, 101), seconds=(0.002, 0.004), kv_token_s=0.0, pair_s=0.0)
    return ReplicaUp(at_s=0.0, replica=f"g-{number}", epoch=1, model=MODEL, pool="g", role="both", step_time=step, context_tokens=4096, kv_capacity_tokens=10**6, max_sequences=64, max_step_tokens=512)  # fmt: skip


async def under_kills(node, tmp_path: Path, *, ghosts: int = 5, streams: int = 150) -> Tally:
    """Ask for streams, forty at a time; with every eighth that ends, the next ghost dies for a tenth of a second, while two more are up."""
    ups, tally = tuple(ghost_up(n) for n in range(ghosts)), Tally()
    server = GhostServer(GhostFile(ghosts=ups, mean_output_tokens={}), SECRET)
    socket = tmp_path / "ghosts.sock"
    listening = await asyncio.get_running_loop().create_unix_server(server.connection, str(socket))
    told = Ghosts(GhostPlan(ups=ups, mean_output_tokens={}), node.driver)
    endpoint = Endpoint(socket=socket, secret=SECRET)
    await told.hear(Up(replica="ghosts-0", epoch=1, endpoint=endpoint, process=0, load_s=0.0))
    doomed = itertools.cycle(up.replica for up in ups)

    async def one(number: int) -> None:
        wish = Wish(model=MODEL, text=f"stream {number}", tokens=10 + number % 30)
        tally.add(judge(wish, await listen(node.port, wish, patience_s=20.0)))
        up = [name for name, ghost in server.ghosts.items() if ghost.state == "up"]
        if tally.counts.total() % 8 == 0 and len(up) > 2:
            server.strike(next(name for name in doomed if name in up), Fault(what="die", for_s=0.1))

    await all_of(streams, 40, one)
    await told.close()
    listening.close()
    return tally


def tally_of(lab, tmp_path, **settings) -> Tally:
    found = []

    async def test(node, client):
        found.append(await under_kills(node, tmp_path))

    lab.run(tmp_path, test, **settings)
    return found[0]


def test_nothing_is_cut_glued_or_lost_while_one_ghost_after_another_dies(lab, tmp_path):
    tally = tally_of(lab, tmp_path, **FORGIVING)

    assert tally.counts.total() == 150
    assert tally.counts["error"] > 0  # streams were hit
    assert tally.counts["whole"] > 0
    assert tally.bad == 0, tally.lines()


def test_a_gateway_that_ends_a_broken_stream_without_a_word_is_heard_to_cut(lab, tmp_path, monkeypatch):  # fmt: skip
    monkeypatch.setattr(Problem, "event", b"")

    assert tally_of(lab, tmp_path, **FORGIVING).counts["cut"] > 0


def test_a_gateway_that_says_a_part_twice_is_heard(lab, tmp_path, monkeypatch):
    part = Reply.part
    count = itertools.count()

    def stammers(self, data):
        for _ in range(2 if next(count) % 50 == 49 else 1):
            part(self, data)

    monkeypatch.setattr(Reply, "part", stammers)

    assert tally_of(lab, tmp_path, **FORGIVING).counts["glued"] > 0


def test_a_gateway_that_never_tries_again_is_heard_to_lose(lab, tmp_path):
    assert tally_of(lab, tmp_path, max_attempts=1).counts["refused"] > 0


# ---- the judge alone


def event(text: str = "", *, name: str = "a", finish=None, **more) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": name, "choices": [choice]} | more).encode() + b"\n\n"


SAID = [event(word) for word in (words(WISH.prompt, n, n + 1) for n in range(6))]
END = event(finish="length") + event(usage={"completion_tokens": 6}) + b"data: [DONE]\n\n"
ERROR = b'data: {"error": {"code": "replica_lost"}}\n\n'
SEAM = b": polypod continues at token 3 on b\n\n"


@pytest.mark.parametrize(
    ("what", "body", "is_complete"),
    [
        ("whole", b"".join(SAID) + END, True),
        ("error", b"".join(SAID[:3]) + ERROR, True),
        ("error", b"".join(SAID[:3]) + ERROR, False),
        ("continued", b"".join(SAID[:3]) + SEAM + b"".join(SAID[3:]) + END, True),
        ("cut", b"".join(SAID[:3]), True),
        ("cut", b"".join(SAID[:3]), False),
        ("cut", b"".join(SAID) + END, False),
        ("cut", b"".join(SAID[:3]) + END, True),
        ("cut", b"".join(SAID[:3]) + event(finish="length") + b"data: [DONE]\n\n", True),
        ("cut", b"".join(SAID[:3]) + SAID[3][:20], True),
        ("cut", b"".join(SAID) + event(finish="length") + event(usage={"completion_tokens": 6}), True),
        ("glued", b"".join(SAID[:3]) + b"".join(SAID) + END, True),
        ("glued", b"".join(SAID[:3]) + SEAM + b"".join(SAID) + END, True),
        ("glued", b"".join(SAID[:3]) + event(words(WISH.prompt, 3, 4), name="b") + b"".join(SAID[4:]) + END, True),
        ("glued", b"".join(SAID) + event(finish="length") + SAID[5] + END, True),
        ("glued", b"".join([*SAID[:2], *SAID[3:]]) + END, True),
        ("glued", b"".join([*SAID[:2], *SAID[3:4]]) + ERROR, True),
    ],
)  # fmt: skip
def test_the_judge_tells_what_became_of_a_stream(what, body, is_complete):
    heard = Heard(status=200, body=bytearray(body), is_complete=is_complete)

    assert judge(WISH, heard).what == what


def test_the_judge_says_who_was_answered_at_the_second_try_and_who_not_at_all():
    whole = bytearray(b"".join(SAID) + END)
    again = Heard(status=200, headers={"x-polypod-attempts": "2"}, body=whole, is_complete=True)
    lost = Heard(status=503, body=bytearray(b'{"error": {"code": "no_replica"}}'))

    assert judge(WISH, again).what == "moved"
    assert (judge(WISH, lost).what, judge(WISH, lost).why) == ("refused", "503 no_replica")
    assert judge(WISH, Heard()).what == "refused"
