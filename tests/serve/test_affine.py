"""Where requests would rather go: conversations to where they were, prompts to where their beginning is cached."""

from polypod.policy.events import RequestArrived
from polypod.serve.affine import BLOCK_BYTES


def long_prompt(lab, text, *turns, **more):
    messages = [{"role": "system", "content": text}]
    messages += [{"role": "user", "content": turn} for turn in turns]
    return lab.ask(**more) | {"messages": messages}


async def ask(client, body, **headers):
    async with client.post("/v1/chat/completions", json=body, headers=headers) as response:
        await response.read()
        return response.headers["x-polypod-replica"]


def test_a_session_stays_by_header_or_by_user(lab, tmp_path):
    async def test(node, client):
        for name in "abcd":
            await node.engine(name)
        by_header = {await ask(client, lab.ask(), **{"x-polypod-session": "s"}) for _ in range(6)}
        by_user = {await ask(client, lab.ask(user="ann")) for _ in range(6)}
        assert (len(by_header), len(by_user)) == (1, 1)

    node = lab.run(tmp_path, test)
    sessions = [event.session for event in node.told(RequestArrived)]
    assert len(set(sessions)) == 2
    assert "ann" not in str(node.lines)


def test_prompts_that_begin_alike_have_hashes_that_begin_alike(lab, tmp_path):
    shared = "x" * (3 * BLOCK_BYTES)

    async def test(node, client):
        await node.engine("a", build="vllm 1")
        await ask(client, long_prompt(lab, shared, "one"))
        await ask(client, long_prompt(lab, shared, "two " * BLOCK_BYTES))
        await ask(client, long_prompt(lab, "y" + shared, "one"))

    node = lab.run(tmp_path, test)
    one, two, three = (event.prefix_hashes for event in node.told(RequestArrived))
    assert len(one) == 3
    assert two[:3] == one
    assert set(one).isdisjoint(three)


def test_a_prompt_goes_where_its_beginning_was_computed_if_that_replica_keeps_it(lab, tmp_path):
    shared = "x" * (6 * BLOCK_BYTES)

    async def test(node, client):
        for name in "abcd":
            await node.engine(name, build="vllm 1")
        first = await ask(client, long_prompt(lab, shared, "one", stream=True))
        others = {
            await ask(client, long_prompt(lab, shared, str(n), stream=True)) for n in range(8)
        }
        assert others == {first}

    lab.run(tmp_path, test)


def test_where_no_engine_keeps_prompts_nothing_is_hashed(lab, tmp_path):
    async def test(node, client):
        await node.engine("a", build="llama.cpp 1 w")
        await ask(client, long_prompt(lab, "x" * (6 * BLOCK_BYTES)))

    node = lab.run(tmp_path, test)
    assert node.told(RequestArrived)[0].prefix_hashes == ()
