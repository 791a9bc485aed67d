"""The rows in C against their definition in numpy: the same actions and the same columns, to the last bit."""

import random

import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.engine.native.build import compiler, has_headers
from polypod.errors import RunError
from polypod.policy import compiled as module
from polypod.policy import corrections
from polypod.policy.affinity import Affinity
from polypod.policy.compiled import Called, called, functions
from polypod.policy.events import ReplicaUp
from polypod.policy.node import Policy
from polypod.policy.requests import Ask, Load
from polypod.policy.router import REBASE_S, ReplicaTable
from tests.faults.harness import play
from tests.faults.story import draw


def columns(table: ReplicaTable) -> dict[str, list]:
    return {
        name: column.tolist() for name, column in vars(table).items() if isinstance(column, np.ndarray)
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(0, 160, 8))
def test_a_bad_day_is_decided_alike(seed):
    """Pins, failures, breakers, busy replicas, other gateways' reports, prefill apart from decode, prefix caches."""
    story = draw(seed)
    log = play(story).log
    plain, *compiled = (
        Policy(story.settings, seed=story.seed, compiled=one)
        for one in (None, functions(), called())
    )
    for event, actions in log:
        assert plain.handle(event) == actions
        for one in compiled:
            assert one.handle(event) == actions
    for key, table in plain._health.tables.items():
        for one in compiled:
            assert columns(table) == columns(one._health.tables[key])


def some_up(chance: random.Random, name: str, kinds: list[StepTime]) -> ReplicaUp:
    return ReplicaUp(
        at_s=0.0,
        replica=name,
        epoch=1,
        model="m",
        pool="p",
        role="both",
        step_time=chance.choice(kinds),
        context_tokens=chance.choice([512, 4096, 100_000]),
        kv_capacity_tokens=chance.choice([2_000, 40_000, 10**7]),
        max_sequences=chance.choice([1, 4, 256]),
        max_step_tokens=chance.choice([1, 64, 512]),
    )


def some_kind(chance: random.Random) -> StepTime:
    knots = sorted(chance.sample(range(1, 5000), chance.randint(2, 9)))
    return StepTime(
        tokens=tuple(map(float, knots)),
        seconds=tuple(chance.uniform(1e-4, 0.1) for _ in knots),  # not even monotone
        kv_token_s=chance.uniform(0, 1e-6),
        pair_s=chance.uniform(0, 1e-9),
        sequence_s=chance.choice([0.0, 1e-5]),
        data_ranks=chance.choice([1, 1, 2, 3]),
    )


class Twins:
    """A plain table and a compiled one, to which the same is done."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        self.kinds = [some_kind(chance) for _ in range(4)]
        self.tables = [
            ReplicaTable(Affinity(block_tokens=16, most_blocks=300), compiled=compiled)
            for compiled in (None, functions())
        ]
        self.rows: list[int] = []
        self.loads: list[tuple[Load, bool]] = []  # and whether the prompt is waited for
        self.now_s = 0.0
        self.chosen = 0

    def play(self, steps: int) -> None:
        for step in range(steps):
            self.now_s += self.chance.choice([0.0, 1e-4, 0.5, 30.0])
            self.now_s += 2 * REBASE_S * (step == steps // 2)
            what = self.chance.choice([self.up, self.ask, self.ask, self.ask, self.prompt_over, self.leave, self.block, self.time, self.others, self.down])  # fmt: skip
            what()
            assert columns(self.tables[0]) == columns(self.tables[1])

    def up(self) -> None:
        if len(self.rows) < 40:
            up = some_up(self.chance, f"r{self.now_s}", self.kinds)
            row, same = (table.add(up) for table in self.tables)
            assert row == same
            self.rows.append(row)

    def ask(self) -> None:
        chance = self.chance
        tokens = chance.choice([1, 15, 16, 700, 3000])
        ask = Ask(
            input_tokens=tokens,
            output_tokens=chance.choice([1.0, 33.5]),
            need_tokens=tokens + chance.choice([1, 900]),
            is_streamed=chance.random() < 0.8,
            prefix_hashes=tuple(range(chance.randint(0, 3))),
        )
        some_R = np.array([chance.random() < 0.5 for _ in self.tables[0].up])
        among_R = None if chance.random() < 0.5 else some_R & self.tables[0].up_R
        choices = [table.best(ask, among_R, self.now_s) for table in self.tables]
        assert choices[0].rows.tolist() == choices[1].rows.tolist()
        assert len({table.has_room(self.now_s) for table in self.tables}) == 1
        may_R = self.tables[0].fits(ask) & self.tables[0].open(self.now_s)
        assert [
            self.tables[1].takes(row, ask, self.now_s) for row in range(len(may_R))
        ] == may_R.tolist()
        if len(choices[0].rows):
            self.chosen += 1
            row = int(chance.choice(choices[0].rows.tolist()))
            load, same = (table.dispatched(row, ask, choice, self.now_s) for table, choice in zip(self.tables, choices, strict=True))  # fmt: skip
            assert load == same
            self.loads.append((load, True))

    def prompt_over(self) -> None:
        at = self.chance.randrange(len(self.loads)) if self.loads else None
        if at is not None and self.loads[at][1]:
            is_given_up = self.chance.random() < 0.3
            for table in self.tables:
                over = table.prompt_given_up if is_given_up else table.prompt_done
                over(self.loads[at][0], self.now_s)
            self.loads[at] = (self.loads[at][0], False)

    def leave(self) -> None:
        if self.loads:
            load, is_waited_for = self.loads.pop(self.chance.randrange(len(self.loads)))
            for table in self.tables:
                if is_waited_for:
                    table.prompt_given_up(load, self.now_s)
                table.left(load)

    def block(self) -> None:
        row = self.chance.choice(self.rows) if self.rows else None
        for table in self.tables if row is not None else ():
            table.block(row, self.now_s + 5.0)

    def time(self) -> None:
        if self.loads:
            load, token_s = self.chance.choice(self.loads)[0], self.chance.choice([1e-4, 0.02, 3.0])
            for table in self.tables:
                corrections.token_time_observed(table, load, token_s)

    def others(self) -> None:
        row, running = self.chance.choice(self.rows or [None]), self.chance.randint(0, 3)
        for table in self.tables if row is not None else ():
            table.others_running_R[row] = running
            table.others_prompt_s_R[row] = running * 0.1
            table.refresh(row)

    def down(self) -> None:
        if self.rows and self.chance.random() < 0.2:
            row = self.rows.pop(self.chance.randrange(len(self.rows)))
            self.loads = [one for one in self.loads if one[0].row != row]
            for table in self.tables:
                table.remove(row)


@pytest.mark.parametrize("seed", range(4))
def test_random_tables_choose_and_book_alike(seed):
    twins = Twins(seed)
    twins.play(800)

    assert twins.chosen > 50


def test_every_row_that_may_be_chosen_is_forecast_alike():
    chance = random.Random(1)
    kinds = [some_kind(chance) for _ in range(3)]
    plain, compiled = ReplicaTable(), ReplicaTable(compiled=functions())
    for number in range(50):
        up = some_up(chance, f"r{number}", kinds)
        plain.add(up)
        compiled.add(up)
    ask = Ask(input_tokens=100, output_tokens=9.0, need_tokens=120)
    chosen, same = plain.best(ask, None, 1.0), compiled.best(ask, None, 1.0)

    may_R = plain.fits(ask) & plain.open(1.0)
    assert may_R.sum() > 40
    assert (chosen.first_s_R[may_R] == same.first_s_R[may_R]).all()
    assert (chosen.token_s_R[may_R] == same.token_s_R[may_R]).all()


def missing(*_: object) -> None:
    msg = "no C compiler is here"
    raise RunError(msg)


def test_without_a_compiler_a_node_decides_by_numpy(monkeypatch):
    monkeypatch.setattr(module, "library", missing)
    monkeypatch.setattr(module, "extension", missing)

    assert functions() is None
    assert Policy(draw(1).settings, compiled=functions())._health.tables


def test_without_pythons_headers_the_library_is_called_through_ctypes(monkeypatch):
    monkeypatch.setattr(module, "extension", missing)

    assert isinstance(functions(), Called)


@pytest.mark.skipif(not (compiler() and has_headers()), reason="no C compiler, or no headers")
def test_with_a_compiler_and_headers_they_are_a_module():
    assert functions().__name__ == "polypod_rows"


@pytest.mark.skipif(not (compiler() and has_headers()), reason="no C compiler, or no headers")
def test_wrong_arguments_are_refused():
    """Numbers that are none, and too few of them, before anything is read from an address."""
    with pytest.raises(TypeError, match="2 arguments, not 1"):
        functions().have_room(0)
    with pytest.raises(TypeError):
        functions().have_room(0, "now")
    with pytest.raises(TypeError, match="dict"):
        functions().best(0, 0.0, 1.0, 1, 1, 1.0, 1.0, None, [])


def some_rows(number: int, *compiled) -> list[ReplicaTable]:
    """Tables of the same rows."""
    chance = random.Random(2)
    kinds = [some_kind(chance) for _ in range(3)]
    tables = [ReplicaTable(compiled=one) for one in compiled]
    for row in range(number):
        up = some_up(chance, f"r{row}", kinds)
        for table in tables:
            table.add(up)
    return tables


@pytest.mark.skipif(not (compiler() and has_headers()), reason="no C compiler, or no headers")
@pytest.mark.parametrize("number", [0, 1, 511, 512, 513, 600])
def test_any_number_of_rows_may_have_a_part_of_the_prompt(number):
    module_, ctypes_ = (table._core for table in some_rows(600, functions(), called()))
    ask = Ask(input_tokens=1000, output_tokens=9.0, need_tokens=1)
    cached = {row: 1 + row for row in reversed(range(number))}

    best = [core.best(ask, None, 1.0, 1.0, cached).tolist() for core in (module_, ctypes_)]

    assert best[0] == best[1]
    assert module_.first_s_R.tolist() == ctypes_.first_s_R.tolist()
    assert module_._cached.tolist() == [0] * len(module_._cached)


@pytest.mark.skipif(not (compiler() and has_headers()), reason="no C compiler, or no headers")
@pytest.mark.parametrize("row", [-1, 8, 1 << 62])
def test_a_row_that_the_columns_do_not_have_is_refused(row):
    (table,) = some_rows(8, functions())
    at, calls, before = table._core._at, functions(), columns(table)
    assert len(table.up_R) == 8
    for call in (
        lambda: calls.best(at, 1.0, 1.0, 9, 9, 1.0, 1.0, None, {0: 1, row: 1}),
        lambda: calls.best(
            at,
            1.0,
            1.0,
            9,
            9,
            1.0,
            1.0,
            None,
            dict.fromkeys([*range(8), *range(row, row + 600)], 1),
        ),
        lambda: calls.dispatched(at, row, 1.0, 1.0, 9, 1.0, 0, True),
        lambda: calls.prompt_over(at, row, 1.0, 1.0, False),
        lambda: calls.left(at, row, 1.0),
        lambda: calls.refresh(at, row),
    ):
        with pytest.raises(IndexError, match="of 8"):
            call()
    assert columns(table) == before
    with pytest.raises(OverflowError):
        calls.refresh(at, 1 << 70)
    with pytest.raises(TypeError):
        calls.best(at, 1.0, 1.0, 9, 9, 1.0, 1.0, None, {0: "1"})
