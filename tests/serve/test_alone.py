"""What a node learns of prompts while it serves: those that a replica computes alone."""

import asyncio

import pytest

from polypod.policy.events import StepObserved
from polypod.serve.alone import Alone

CHAT = "/v1/chat/completions"
PROMPT_S = 0.2


def late(lab, tokens: int = 3):
    """The first token comes after `PROMPT_S`."""

    async def play(visit) -> None:
        await asyncio.sleep(PROMPT_S)
        await lab.good(tokens)(visit)

    return play


async def ask(lab, client, **more) -> None:
    async with client.post(CHAT, json=lab.ask(stream=True) | more) as response:
        assert await lab.texts(response)


def test_a_prompt_alone_corrects_what_is_predicted_of_prompts(lab, tmp_path):
    async def test(node, client):
        await node.engine("a", late(lab), late(lab), build="llama.cpp 1")
        for _ in range(2):
            await ask(lab, client)

        told = node.told(StepObserved)
        assert [one.prompt_tokens for one in told] == [len('[{"role":"user","content":"hi"}]') // 4] * 2  # fmt: skip
        assert all(one.step_s > 0.9 * PROMPT_S and not one.sequences for one in told)
        assert node.policy.corrections()["a", "prefill"] > 2

    lab.run(tmp_path, test)


def test_prompts_that_had_company_say_nothing(lab, tmp_path):
    async def test(node, client):
        await node.engine("a", late(lab), late(lab), build="llama.cpp 1")
        await asyncio.gather(ask(lab, client), ask(lab, client))

        assert node.told(StepObserved) == []

    lab.run(tmp_path, test)


def test_an_engine_that_keeps_prompts_says_nothing_of_computing_them(lab, tmp_path):
    async def test(node, client):
        await node.engine("a", late(lab), build="vllm 1")
        await ask(lab, client)

        assert node.told(StepObserved) == []

    lab.run(tmp_path, test)


def test_a_replica_is_alone_again_when_all_that_was_sent_there_is_over():
    alone = Alone()
    first, second = alone.begun("a"), alone.begun("a")
    assert (first, second) == (1, 0)
    alone.ended("a")
    assert alone.begun("a") == 0
    alone.ended("a")
    alone.ended("a")
    again = alone.begun("a")

    assert alone.prompt_s("a", again, 1.0) == pytest.approx(1.0)
    assert alone.prompt_s("a", first, 1.0) is None
