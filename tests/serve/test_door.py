"""The door by itself, under a clock of ours; and as clients meet it, over real sockets."""

from pathlib import Path
from typing import Any

import pytest

from polypod.policy.events import RequestArrived
from polypod.serve.door import UNSAID_OUTPUT_TOKENS, Door, Keyring, Lease, Principal, Rules
from polypod.serve.keys import Grant, KeyStore
from polypod.serve.wire import ChatRequest, Problem, read_chat

CHAT = "/v1/chat/completions"
OPEN = frozenset({"127.0.0.1", "localhost", "::1", "pod.lan"})


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> KeyStore:
    return KeyStore(tmp_path / "keys", now_unix_s=clock)


def door_of(store: KeyStore, clock: Clock, **rules: Any) -> Door:
    return Door(
        Rules(**{"hosts": OPEN, "needs_key": True} | rules),
        Keyring(store, now_unix_s=clock),
        own_token="our own",
        now_s=clock,
    )


def ask(door: Door, authorization: str | None = None, *, path: str = CHAT, **headers: str) -> Any:
    given = {b"host": b"localhost"} | {
        name.encode(): value.encode() for name, value in headers.items()
    }
    if authorization is not None:
        given[b"authorization"] = authorization.encode()
    return door.admit(given, "10.0.0.1", path)


def chat(model: str = "m", *, letters: int = 400, **more: Any) -> ChatRequest:
    limits = "".join(f', "{name}": {value}' for name, value in more.items())
    return read_chat(
        f'{{"model": "{model}", "messages": "{"x" * (letters - 2)}"{limits}}}'.encode()
    )


# ---- by itself


def test_a_key_opens_and_says_who_comes(store: KeyStore, clock: Clock) -> None:
    key, token = store.create(Grant(tenant="a", priority=4))
    who = ask(door_of(store, clock), f"Bearer {token}")
    assert isinstance(who, Principal)
    assert (who.key, who.tenant, who.grant.priority) == (key.id, "a", 4)
    assert ask(door_of(store, clock), f"bearer   {token}") == who


def test_a_key_without_a_tenant_is_one_of_its_own(store: KeyStore, clock: Clock) -> None:
    key, token = store.create(Grant())
    assert ask(door_of(store, clock), f"Bearer {token}").tenant == key.id


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (None, "missing_api_key"),
        ("Basic x", "missing_api_key"),
        ("Bearer ", "invalid_api_key"),
        ("Bearer none", "invalid_api_key"),
        ("Bearer pp-0123456789-x", "invalid_api_key"),
        ("Bearer our", "invalid_api_key"),
    ],
)
def test_what_is_no_key_is_a_401_that_says_how(
    store: KeyStore, clock: Clock, given: str | None, code: str
) -> None:
    problem = ask(door_of(store, clock), given)
    assert isinstance(problem, Problem)
    assert (problem.status, problem.code) == (401, code)
    assert (b"www-authenticate", b'Bearer realm="polypod"') in problem.headers


def test_one_letter_of_the_secret_matters(store: KeyStore, clock: Clock) -> None:
    _, token = store.create(Grant())
    door = door_of(store, clock)
    for at in (-1, -20, len("pp-") + 11):
        other = "A" if token[at] != "A" else "B"
        wrong = token[:at] + other + (token[at + 1 :] if at != -1 else "")
        assert ask(door, f"Bearer {wrong}").code == "invalid_api_key"
    assert ask(door, f"Bearer {token}x").code == "invalid_api_key"


def test_a_token_that_was_right_is_known_again_until_the_keys_change(
    store: KeyStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, token = store.create(Grant())
    door = door_of(store, clock)
    digested: list[str] = []
    digest = store.digest
    monkeypatch.setattr(store, "digest", lambda given: digested.append(given) or digest(given))
    wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
    for given in (token, token, wrong, token, wrong):
        expected = Principal if given is token else Problem
        assert isinstance(ask(door, f"Bearer {given}"), expected)
    assert digested == [token, wrong, wrong]
    KeyStore(store._folder, now_unix_s=clock).create(Grant())  # another process writes
    door.sweep()
    assert isinstance(ask(door, f"Bearer {token}"), Principal)
    assert digested[3:] == [token]


def test_a_revoked_and_an_expired_key_open_nothing(store: KeyStore, clock: Clock) -> None:
    revoked, first = store.create(Grant())
    _, second = store.create(Grant(), life_s=60)
    door = door_of(store, clock)
    assert isinstance(ask(door, f"Bearer {first}"), Principal)
    store.revoke(revoked.id)
    KeyStore(store._folder, now_unix_s=clock).create(Grant())  # another process writes
    door.sweep()
    assert ask(door, f"Bearer {first}").code == "key_revoked"
    clock.now_s += 60
    assert ask(door, f"Bearer {second}").code == "key_expired"


def test_only_whether_it_is_well_is_told_to_strangers(store: KeyStore, clock: Clock) -> None:
    door = door_of(store, clock)
    assert ask(door, path="/healthz").is_known is False
    for path in ("/metrics", "/v1/models", "/healthz/", "/"):
        assert ask(door, path=path).status == 401


def test_loopback_needs_no_key_and_honours_one(store: KeyStore, clock: Clock) -> None:
    key, token = store.create(Grant())
    door = door_of(store, clock, needs_key=False)
    assert ask(door).key == ""
    assert ask(door, "Bearer none").key == "", "clients have to be given some key"
    assert ask(door, f"Bearer {token}").key == key.id
    assert ask(door, f"Bearer {token}x").code == "invalid_api_key"


def test_the_node_itself_may_come_in(store: KeyStore, clock: Clock) -> None:
    assert ask(door_of(store, clock), "Bearer our own").key == ""


def test_names_are_checked_before_keys(store: KeyStore, clock: Clock) -> None:
    door = door_of(store, clock)
    foreign = ask(door, host="evil.example")
    assert (foreign.status, foreign.code) == (403, "forbidden_host")
    assert "pod.lan" in foreign.message
    assert "--allow-host" in foreign.message
    assert ask(door, origin="https://evil.example").code == "forbidden_host"
    assert ask(door, origin="https://pod.lan").status == 401


def test_an_address_may_be_called_where_others_can_reach_it(store: KeyStore, clock: Clock) -> None:
    for host in ("10.1.2.3:8321", "[fe80::1]:8321"):
        assert ask(door_of(store, clock), host=host).code == "forbidden_host"
        assert ask(door_of(store, clock, any_address=True), host=host).status == 401
    assert ask(door_of(store, clock, any_address=True), host="1.2.3.4.evil.example").status == 403


def test_a_model_that_is_not_in_the_grant_is_a_403(store: KeyStore, clock: Clock) -> None:
    _, token = store.create(Grant(models=("m",)))
    door = door_of(store, clock)
    who = ask(door, f"Bearer {token}")
    assert isinstance(door.begin(who, chat("m")), Lease)
    refused = door.begin(who, chat("n"))
    assert (refused.status, refused.code, refused.param) == (403, "model_not_allowed", "model")


def test_requests_beyond_the_limit_wait_for_their_minute(store: KeyStore, clock: Clock) -> None:
    _, token = store.create(Grant(requests_per_minute=6))
    door = door_of(store, clock)
    who = ask(door, f"Bearer {token}")
    taken = [door.begin(who, chat()) for _ in range(7)]
    assert [type(one) for one in taken] == [Lease] * 6 + [Problem]
    assert (taken[6].status, taken[6].code) == (429, "rate_limit_exceeded")
    assert taken[6].retry_after_s == pytest.approx(10)
    clock.now_s += 9.9
    assert isinstance(door.begin(who, chat()), Problem)
    clock.now_s += 0.2
    assert isinstance(door.begin(who, chat()), Lease)
    clock.now_s += 3600
    assert [type(door.begin(who, chat())) for _ in range(7)] == [Lease] * 6 + [Problem]


def test_tokens_are_set_aside_and_what_was_not_used_comes_back(
    store: KeyStore, clock: Clock
) -> None:
    _, token = store.create(Grant(tokens_per_minute=600))
    door = door_of(store, clock)
    who = ask(door, f"Bearer {token}")
    first = door.begin(who, chat(letters=400, max_tokens=300))  # 100 + 300
    assert first.reserved_tokens == 400
    waits = door.begin(who, chat(letters=400, max_tokens=150))
    assert waits.retry_after_s == pytest.approx(5)  # 50 of 10 a second

    first.used(100, 50)
    door.end(first)  # 450 are left
    assert isinstance(door.begin(who, chat(letters=400, max_tokens=350)), Lease)
    assert isinstance(door.begin(who, chat(letters=4, max_tokens=1)), Problem)


def test_an_answer_nobody_waited_for_is_paid_as_set_aside_and_a_refusal_is_free(
    store: KeyStore, clock: Clock
) -> None:
    _, token = store.create(Grant(tokens_per_minute=600))
    door = door_of(store, clock)
    who = ask(door, f"Bearer {token}")
    left = door.begin(who, chat(max_tokens=200))
    door.end(left)
    refused = door.begin(who, chat(max_tokens=200))
    refused.refused()
    door.end(refused)
    assert isinstance(door.begin(who, chat(max_tokens=200)), Lease)  # 300 of 300
    assert isinstance(door.begin(who, chat(letters=4, max_tokens=1)), Problem)


def test_one_request_larger_than_a_minute_finds_the_bucket_full_and_leaves_a_debt(
    store: KeyStore, clock: Clock
) -> None:
    _, token = store.create(Grant(tokens_per_minute=60))
    door = door_of(store, clock)
    who = ask(door, f"Bearer {token}")
    large = chat(letters=400)
    assert door.begin(who, large).reserved_tokens == 100 + UNSAID_OUTPUT_TOKENS
    clock.now_s += 60
    assert isinstance(door.begin(who, chat(letters=4, max_tokens=1)), Problem)


def test_without_a_key_nothing_is_counted() -> None:
    door = Door()
    who = ask(door)
    assert all(isinstance(door.begin(who, chat()), Lease) for _ in range(1000))


def test_the_sweep_ends_what_a_revoked_key_began_and_nothing_else(
    store: KeyStore, clock: Clock
) -> None:
    keys = [store.create(Grant()) for _ in range(2)]
    door = door_of(store, clock)
    stopped: list[tuple[int, str]] = []
    for number, (_, token) in enumerate(keys):
        lease = door.begin(ask(door, f"Bearer {token}"), chat())
        lease.stop = lambda problem, number=number: stopped.append((number, problem.code))
    door.sweep()
    assert stopped == []
    KeyStore(store._folder, now_unix_s=clock).revoke(keys[1][0].id)
    door.sweep()
    assert stopped == [(1, "key_revoked")]


def test_the_sweep_ends_what_runs_too_long(clock: Clock) -> None:
    door = Door(Rules(request_s=60), now_s=clock)
    stopped: list[str] = []
    early, late = (door.begin(Principal(), chat()) for _ in range(2))
    early.stop = late.stop = lambda problem: stopped.append(problem.code)
    late.began_s += 1
    clock.now_s += 60.5
    door.sweep()
    assert stopped == ["request_timeout"]
    door.end(early)
    door.end(late)
    clock.now_s += 60
    door.sweep()
    assert stopped == ["request_timeout"]


def test_a_node_whose_keys_cannot_be_read_keeps_those_it_knows(
    store: KeyStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    _, token = store.create(Grant())
    door = door_of(store, clock)
    for file in store._folder.glob("keys.db*"):
        file.unlink()
    for _ in range(3):
        door.sweep()
    assert isinstance(ask(door, f"Bearer {token}"), Principal)
    assert len(caplog.records) == 1


def test_who_is_refused_is_logged_once_a_minute_and_address(
    store: KeyStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    door = door_of(store, clock)
    for _ in range(50):
        ask(door, "Bearer secret-of-somebody")
    assert len(caplog.records) == 1
    assert "10.0.0.1" in caplog.text
    assert "secret-of-somebody" not in caplog.text
    clock.now_s += 61
    ask(door)
    assert len(caplog.records) == 2


# ---- as clients meet it


def keyed(tmp_path: Path, *grants: Grant) -> tuple[Door, KeyStore, list[str]]:
    store = KeyStore(tmp_path / "keys")
    tokens = [store.create(grant)[1] for grant in grants]
    rules = Rules(needs_key=True)
    return Door(rules, Keyring(KeyStore(tmp_path / "keys"))), store, tokens


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_a_client_without_a_key_gets_401_everywhere_but_on_health(lab, tmp_path):
    door, _, _ = keyed(tmp_path, Grant())

    async def test(node, client):
        engine = await node.engine("a")
        for path in ("/v1/models", "/metrics", "/nowhere"):
            response = await client.get(path)
            assert (response.status, response.headers["www-authenticate"]) == (401, 'Bearer realm="polypod"')  # fmt: skip
        refused = await client.post(CHAT, json=lab.ask(), headers=bearer("pp-a-b"))
        assert (await refused.json())["error"]["type"] == "authentication_error"
        health = await client.get("/healthz")
        assert (health.status, await health.json()) == (200, {"status": "ok"})
        assert engine.visits == []

    lab.run(tmp_path, test, door=door)


def test_the_policy_hears_tenant_and_priority_and_the_engine_never_the_key(lab, tmp_path):
    door, _, (token,) = keyed(tmp_path, Grant(tenant="a", priority=7))

    async def test(node, client):
        engine = await node.engine("a")
        node.attach(engine, secret="ours")
        response = await client.post(CHAT, json=lab.ask(), headers=bearer(token))
        assert response.status == 200
        arrived = lab.only(node.told(RequestArrived))
        assert (arrived.tenant, arrived.priority) == ("a", 7)
        head = lab.only(engine.visits).head
        assert b"Bearer ours" in head
        assert token.encode() not in head

    lab.run(tmp_path, test, door=door)


def test_models_a_key_may_not_use_are_not_shown(lab, tmp_path):
    door, _, (none, some) = keyed(tmp_path, Grant(models=("huge",)), Grant(models=(lab.MODEL,)))

    async def test(node, client):
        await node.engine("a")
        for token, shown, status in ((none, [], 403), (some, [lab.MODEL], 200)):
            listed = await (await client.get("/v1/models", headers=bearer(token))).json()
            assert [one["id"] for one in listed["data"]] == shown
            response = await client.post(CHAT, json=lab.ask(), headers=bearer(token))
            assert response.status == status

    lab.run(tmp_path, test, door=door)


def test_a_limit_is_a_429_with_retry_after_and_a_refused_request_costs_nothing(lab, tmp_path):
    door, _, (token,) = keyed(tmp_path, Grant(tokens_per_minute=2000))

    async def test(node, client):
        engine = await node.engine("a")
        asked = lab.ask(max_tokens=1900)
        for _ in range(5):  # each gives back all but the ten tokens that were counted
            assert (await client.post(CHAT, json=asked, headers=bearer(token))).status == 200
        engine.scripts.append(lab.status("400 Bad Request"))
        assert (await client.post(CHAT, json=asked, headers=bearer(token))).status == 400
        assert (await client.post(CHAT, json=asked, headers=bearer(token))).status == 200
        over = await client.post(CHAT, json=lab.ask(max_tokens=2000), headers=bearer(token))
        assert over.status == 429
        assert int(over.headers["retry-after"]) >= 1
        assert (await over.json())["error"]["type"] == "rate_limit_error"

    lab.run(tmp_path, test, door=door)


def test_a_key_revoked_in_mid_stream_ends_its_stream_in_words_and_no_other(lab, tmp_path):
    door, store, tokens = keyed(tmp_path, Grant(), Grant())

    async def test(node, client):
        await node.engine("a", *[lab.good(tokens=10, gap_s=0.05)] * 2)
        streams = [
            await client.post(CHAT, json=lab.ask(stream=True), headers=bearer(token))
            for token in tokens
        ]
        await streams[0].content.readline()
        store.revoke(store.all()[0].id)
        door.sweep()
        refused = await client.post(CHAT, json=lab.ask(), headers=bearer(tokens[0]))
        assert (refused.status, (await refused.json())["error"]["code"]) == (401, "key_revoked")

        _, errors, is_done = await lab.texts(streams[0])
        assert ([error["code"] for error in errors], is_done) == (["key_revoked"], False)
        said, errors, is_done = await lab.texts(streams[1])
        assert (len(said), errors, is_done) == (10, [], True)

    node = lab.run(tmp_path, test, door=door)
    assert len(node.told(RequestArrived)) == 2


def test_the_official_client_authenticates_and_reads_the_refusal(lab, tmp_path):
    openai = pytest.importorskip("openai")
    door, _, (token,) = keyed(tmp_path, Grant())

    async def test(node, client):
        await node.engine("a")
        messages = [{"role": "user", "content": "hi"}]
        for key in (token, "sk-wrong"):
            async with openai.AsyncOpenAI(
                base_url=f"{node.url}/v1", api_key=key, max_retries=0
            ) as one:
                asked = one.chat.completions.create(model=lab.MODEL, messages=messages)
                if key == token:
                    assert (await asked).choices[0].message.content == "hello"
                    continue
                with pytest.raises(openai.AuthenticationError) as caught:
                    await asked
                assert caught.value.code == "invalid_api_key"

    lab.run(tmp_path, test, door=door)
