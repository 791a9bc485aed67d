"""Caches in files: what is whole, what is refused, and which slots are free."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from polypod.serve.handover import (
    Caches,
    HandoverError,
    Saved,
    make_handover_directory,
    prompt_only,
    restore,
    save,
    with_slot,
)


class Engine:
    """Keeps a cache of 3 tokens in 12 bytes in every slot, and does with files as it is told."""

    def __init__(self, folder: Path, **told: Any) -> None:
        self.folder, self.told, self.asked = folder, told, list[str]()
        self.status = 200
        self.writes = 12

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        self.asked.append(path)
        name = json.loads(body).get("filename")
        if self.status == 200 and path.endswith("save"):
            (self.folder / name).write_bytes(b"x" * self.writes)
        said = {"n_saved": 3, "n_written": 12, "n_restored": 3, "timings": {"save_ms": 4.0, "restore_ms": 2.0}}  # fmt: skip
        return self.status, json.dumps(said | self.told).encode()


def test_a_cache_goes_through_a_file(tmp_path: Path) -> None:
    engine = Engine(tmp_path)

    async def play() -> None:
        saved = await save(engine.post, 1, tmp_path / "r7")
        assert (saved.tokens, saved.size_bytes, saved.save_s) == (3, 12, 0.004)
        assert await restore(engine.post, 2, saved) == 0.002
        saved.forget()
        saved.forget()

    asyncio.run(play())
    assert engine.asked == ["/slots/1?action=save", "/slots/2?action=restore"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("writes", [0, 11, 13])
def test_a_file_that_is_not_as_long_as_was_written_is_no_cache(tmp_path: Path, writes: int) -> None:
    """llama.cpp would end itself on it."""
    engine = Engine(tmp_path)
    engine.writes = writes
    with pytest.raises(HandoverError, match=f"has {writes} of 12 bytes, of 3 tokens"):
        asyncio.run(save(engine.post, 0, tmp_path / "r1"))
    assert not list(tmp_path.iterdir())


def test_a_file_cut_short_after_it_was_saved_is_not_given_to_the_engine(tmp_path: Path) -> None:
    engine = Engine(tmp_path)

    async def play() -> None:
        saved = await save(engine.post, 0, tmp_path / "r1")
        saved.path.write_bytes(b"x")
        with pytest.raises(HandoverError, match="has 1 of 12 bytes"):
            await restore(engine.post, 0, saved)
        saved.forget()
        with pytest.raises(HandoverError, match="cannot be read: No such file"):
            await restore(engine.post, 0, saved)

    asyncio.run(play())
    assert len(engine.asked) == 1


def test_an_engine_that_restores_less_or_refuses_has_handed_nothing_over(tmp_path: Path) -> None:
    saved = Saved(path=tmp_path / "r1", tokens=3, size_bytes=1, save_s=0.0)
    saved.path.write_bytes(b"x")
    few, none = Engine(tmp_path, n_restored=2), Engine(tmp_path)
    none.status = 400
    odd = Engine(tmp_path, timings="soon")
    with pytest.raises(HandoverError, match="2 of 3 tokens were restored"):
        asyncio.run(restore(few.post, 0, saved))
    with pytest.raises(HandoverError, match="HTTP 400 when asked to restore slot 5"):
        asyncio.run(restore(none.post, 5, saved))
    with pytest.raises(HandoverError, match="is not readable"):
        asyncio.run(restore(odd.post, 0, saved))


def test_a_slot_is_nobody_elses_until_it_is_empty_again(tmp_path: Path) -> None:
    engine = Engine(tmp_path)

    async def play() -> None:
        caches = Caches()
        slots = caches.slots
        slots.attach("a", 1, 2)
        taken = [await slots.take("a", 1), await slots.take("a", 1)]
        assert [slot.number for slot in taken] == [0, 1]
        third = asyncio.create_task(slots.take("a", 1))
        await asyncio.sleep(0)
        assert not third.done()
        slots.give(taken[1], engine.post)
        assert await third == taken[1]
        assert engine.asked == ["/slots/1?action=erase"]
        caches.close()

    asyncio.run(play())


def test_a_slot_of_an_engine_that_does_not_empty_it_stays_taken(tmp_path: Path) -> None:
    engine = Engine(tmp_path)
    engine.status = 500

    async def play() -> None:
        caches = Caches()
        slots = caches.slots
        slots.attach("a", 1, 1)
        slots.give(await slots.take("a", 1), engine.post)
        again = asyncio.create_task(slots.take("a", 1))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not again.done()
        again.cancel()
        caches.close()

    asyncio.run(play())


def test_slots_of_a_start_that_is_over_are_gone(tmp_path: Path) -> None:
    async def play() -> None:
        caches = Caches()
        slots = caches.slots
        slots.attach("a", 1, 1)
        slots.attach("a", 2, 1)
        slots.attach("b", 1, 1)
        assert (await slots.take("a", 2)).number == 0
        assert (await slots.take("b", 1)).number == 0
        with pytest.raises(HandoverError, match="replica a is not up any more"):
            await slots.take("a", 1)

    asyncio.run(play())


def test_only_this_user_can_enter_the_folder() -> None:
    folder = make_handover_directory()
    try:
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        folder.rmdir()


def test_what_a_client_says_of_slots_does_not_count() -> None:
    body = b'{"messages": [{"role": "user", "content": "\\u00e9"}], "id_slot": 3, "cache_prompt": false, "n_predict": 40}'
    assert json.loads(with_slot(body, 1, cache_prompt=True)) == json.loads(body) | {"id_slot": 1, "cache_prompt": True}  # fmt: skip
    asked = json.loads(prompt_only(body, 0))
    assert (asked["id_slot"], asked["max_tokens"], asked["stream"]) == (0, 1, False)
    assert "n_predict" not in asked
    assert asked["messages"] == json.loads(body)["messages"]
