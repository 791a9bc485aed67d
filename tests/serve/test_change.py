"""Which replicas stay, and in which order the others come and go."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.errors import InputError
from polypod.serve.change import Member, change


def one(name: str, cores: set[int], *, kind: str = "", model: str = "m", need: float = 1) -> Member:
    return Member(
        name=name,
        model=model,
        cores=frozenset(cores),
        need_bytes=need,
        identity=f"{model} {kind} {sorted(cores)}".encode(),
    )


def moves(running: list[Member], wanted: list[Member], free: float = 100) -> list[str]:
    found = change(running, wanted, free_bytes=free, taken=())
    return [
        f"{move.does} {move.name}{': ' if move.note else ''}{move.note}" for move in found.moves
    ]


def test_what_is_alike_stays_whatever_it_is_called() -> None:
    running = [one("a-0", {0}), one("b-0", {1})]
    assert moves(running, running) == []
    found = change(running, [one("x-0", {1}), one("a-0", {0})], free_bytes=0, taken=())
    assert (found.moves, found.renamed) == ((), {"x-0": "b-0"})


def test_a_new_one_on_free_cores_starts_before_an_old_one_goes() -> None:
    assert moves([one("a-0", {0})], [one("b-0", {1})]) == ["start b-0", "retire a-0"]


def test_on_the_same_cores_the_old_one_goes_first_while_others_serve() -> None:
    running = [one("a-0", {0}), one("b-0", {1})]
    wanted = [one("a-0", {0}), one("b-0", {1}, kind="new")]
    assert moves(running, wanted) == ["retire b-0", "start b-0.2"]


def test_both_of_two_are_replaced_one_after_the_other() -> None:
    running = [one("a-0", {0}), one("b-0", {1})]
    wanted = [one("a-0", {0}, kind="new"), one("b-0", {1}, kind="new")]
    assert moves(running, wanted) == ["retire a-0", "start a-0.2", "retire b-0", "start b-0.2"]


def test_the_only_one_is_kept_until_the_new_one_is_up_where_memory_allows_it() -> None:
    running, wanted = [one("a-0", {0})], [one("a-0", {0}, kind="new")]
    assert moves(running, wanted, free=1) == [
        "start a-0.2: beside a-0 on the same cores, until it is up",
        "retire a-0",
    ]
    assert moves(running, wanted, free=0.5) == [
        "retire a-0",
        "start a-0.2: m has no replica until it is up",
    ]


def test_on_a_device_the_old_one_always_goes_first() -> None:
    def on(device: str, kind: str, name: str) -> Member:
        return Member(name=name, model="m", cores=frozenset(), devices=frozenset({device}), need_bytes=0, identity=(device + kind).encode())  # fmt: skip

    assert moves([on("0", "", "a-0")], [on("0", "new", "a-0")]) == [
        "retire a-0",
        "start a-0.2: m has no replica until it is up",
    ]
    two = [on("0", "", "a-0"), on("1", "", "a-1")]
    assert moves(two, [on("0", "new", "a-0"), on("1", "", "a-1")]) == ["retire a-0", "start a-0.2"]
    assert moves(two, [on("1", "", "b-0"), on("2", "", "b-1")]) == ["start b-1", "retire a-0"]


def test_what_cannot_fit_is_refused_with_figures() -> None:
    with pytest.raises(
        InputError, match=r"needs 9 GB of memory, and 3 GB are free when all that leave"
    ):
        change([one("a-0", {0}, need=1e9)], [one("b-0", {1}, need=9e9)], free_bytes=2e9, taken=())


def test_a_name_once_used_is_not_used_again() -> None:
    found = change([], [one("a-0", {0})], free_bytes=1, taken=["a-0", "a-0.2"])
    assert [move.name for move in found.moves] == ["a-0.3"]
    assert found.renamed == {"a-0": "a-0.3"}


fleets = st.lists(
    st.tuples(st.sampled_from("mn"), st.integers(0, 3), st.sampled_from(["", "x", "y"])), max_size=5
)


@given(fleets, fleets, st.floats(0, 8))
def test_whatever_is_asked_the_end_is_what_was_wanted_within_memory(before, after, free) -> None:
    running = [
        one(f"r{i}", {core}, kind=kind, model=model) for i, (model, core, kind) in enumerate(before)
    ]
    wanted = [
        one(f"w{i}", {core}, kind=kind, model=model) for i, (model, core, kind) in enumerate(after)
    ]
    try:
        found = change(running, wanted, free_bytes=free, taken=())
    except InputError:
        assert free + len(before) < len(after)
        return
    here = {member.name: member.identity for member in running}
    coming = {found.renamed.get(member.name, member.name): member.identity for member in wanted}
    left = free
    for move in found.moves:
        if move.does == "start":
            assert move.name not in here
            here[move.name] = coming[move.name]
            left -= 1
            assert left >= 0
        else:
            del here[move.name]
            left += 1
    assert here == coming


def test_prompts_and_answers_are_counted_apart_and_the_taker_of_caches_goes_last() -> None:
    def of(role: str, cores: set[int], kind: str = "") -> Member:
        return replace(one(f"{role[0]}-0", cores, kind=role + kind), role=role)

    running = [of("decode", {1}), of("prefill", {0})]
    wanted = [of("prefill", {0}, "new"), of("decode", {1}, "new")]
    assert moves(running, wanted) == [
        "start p-0.2: beside p-0 on the same cores, until it is up",
        "start d-0.2: beside d-0 on the same cores, until it is up",
        "retire p-0",
        "retire d-0",
    ]
    assert moves(running, [of("both", {0})], free=0) == [
        "retire p-0",
        "start b-0: m has no replica until it is up",
        "retire d-0",
    ]
