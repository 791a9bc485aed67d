"""What a policy is told between the moves of its replicas: never too late for one that starts, nor for one that goes."""

from hypothesis import given
from hypothesis import strategies as st

from polypod.errors import InputError
from polypod.policy.settings import PolicySettings, ServiceSettings
from polypod.serve.change import Member, Move, change
from polypod.serve.words import all_of, with_words


def told(contexts: dict[str, int], **limits: int) -> PolicySettings:
    services = (ServiceSettings(model=m, context_tokens=most) for m, most in contexts.items())
    return PolicySettings(services=tuple(services), **limits)


def contexts_of(settings: PolicySettings | None) -> dict[str, int]:
    assert settings is not None
    return {service.model: service.context_tokens for service in settings.services}


def shown(moves: tuple[Move, ...]) -> list[str]:
    return [f"{move.does} {move.name}" for move in moves]


def test_a_model_is_added_once_before_its_replicas_and_removed_once_before_they_go() -> None:
    moves = [Move(does=does, name=name) for does, name in (("start", "n0"), ("start", "n1"), ("retire", "m0"), ("retire", "m1"))]  # fmt: skip
    models = {"n0": "n", "n1": "n", "m0": "m", "m1": "m"}
    words = with_words(moves, models, told({"m": 9}), told({"n": 9}))
    assert shown(words) == ["add n", "start n0", "start n1", "remove m", "retire m0", "retire m1"]


def test_the_last_model_goes_after_those_that_come_were_added() -> None:
    moves = [Move(does="retire", name="m0"), Move(does="start", name="n0")]
    words = with_words(moves, {"n0": "n", "m0": "m"}, told({"m": 9}), told({"n": 9, "o": 9}))
    assert shown(words) == ["add n", "add o", "remove m", "retire m0", "start n0"]


def test_what_is_not_of_one_model_comes_last_and_nothing_where_nothing_changes() -> None:
    assert with_words([], {}, told({"m": 9}), told({"m": 9})) == ()
    moves = [Move(does="retire", name="m0"), Move(does="start", name="m0.2")]
    alike = with_words(moves, {"m0": "m", "m0.2": "m"}, told({"m": 9}), told({"m": 9}))
    assert shown(alike) == ["retire m0", "start m0.2"]
    (word,) = with_words([], {}, told({"m": 9}), told({"m": 9}, queue_requests=2), ["continuation off to text"])  # fmt: skip
    assert (word.does, word.note) == ("set", "queue_requests 1024 to 2, continuation off to text")
    (word,) = with_words([], {}, told({"m": 9, "n": 9}), told({"n": 9, "m": 9}))
    assert word.note == "the order of its models"


def test_all_of_two_has_the_first_ones_limits_and_the_others_models() -> None:
    both = all_of(told({"m": 9}, queue_requests=2), told({"m": 5, "n": 5}))
    assert (contexts_of(both), both.queue_requests) == ({"m": 9, "n": 5}, 2)


contexts = st.dictionaries(st.sampled_from("mno"), st.sampled_from((8, 16)), min_size=1)


@given(contexts, contexts, st.integers(1, 2), st.integers(1, 2))
def test_on_the_way_replicas_hold_what_the_policy_believes(before, after, olds, news) -> None:
    def members(contexts, count, prefix) -> list[Member]:
        return [
            Member(name=f"{prefix}{model}{n}", model=model, cores=frozenset({ord(model) + n}), need_bytes=1, identity=f"{model} {most} {n}".encode())
            for model, most in contexts.items()
            for n in range(count)
        ]  # fmt: skip

    running, wanted = members(before, olds, "r"), members(after, news, "w")
    try:
        found = change(running, wanted, free_bytes=2, taken=())
    except InputError:
        return
    models = {one.name: one.model for one in (*running, *wanted)}
    holds = {one.name: before[one.model] for one in running}
    words = with_words(found.moves, models, told(before), told(after))
    believed = before
    for move in words:
        if move.settings is not None:
            believed = contexts_of(move.settings)
            assert believed
            continue
        model = models[move.name]
        if move.does == "start":
            assert model in believed
            holds[move.name] = after[model]
        else:
            assert (model in believed) == (model in after)
            assert believed.get(model, 0) <= after.get(model, 0)
            del holds[move.name]
        for name in believed:
            most = [tokens for holder, tokens in holds.items() if models[holder] == name]
            assert not most or believed[name] <= max(most)
    assert believed == after
    last = [move.settings for move in words if move.settings is not None]
    assert last[-1:] in ([], [told(after)])
