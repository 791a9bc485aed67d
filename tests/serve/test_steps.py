"""A coroutine run without a task: the same steps, results and cancellations as a task of asyncio's makes."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from polypod.serve.steps import Steps


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def in_a_task(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(coroutine)


def in_steps(coroutine: Coroutine[Any, Any, None]) -> Steps:
    steps = Steps(coroutine)
    steps.start()
    return steps


WAYS = pytest.mark.parametrize("begin", [in_a_task, in_steps])
Begin = Callable[[Coroutine[Any, Any, None]], Any]


@WAYS
def test_it_begins_a_turn_later_and_goes_on_when_what_it_waits_for_is_there(begin: Begin):
    async def main() -> list[str]:
        seen: list[str] = []
        there = asyncio.get_running_loop().create_future()

        async def work() -> None:
            seen.append("began")
            await asyncio.sleep(0)
            seen.append(await there)

        begin(work())
        seen.append("told")
        await turns(5)
        there.set_result("there")
        await turns(2)
        return seen

    assert asyncio.run(main()) == ["told", "began", "there"]


@WAYS
@pytest.mark.parametrize("after", range(6))
def test_cancelled_at_any_moment_it_ends_once_where_it_waits(begin: Begin, after: int):
    async def main() -> list[str]:
        seen: list[str] = []

        async def work() -> None:
            try:
                for _ in range(3):
                    await asyncio.sleep(0)
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise
            finally:
                seen.append("left")

        running = begin(work())
        await turns(after)
        running.cancel()
        await turns(8)
        return seen

    assert asyncio.run(main()) == ([] if after == 0 and begin is in_a_task else ["cancelled", "left"][: 2 * (after > 0)])  # fmt: skip


@WAYS
def test_cancelled_while_it_runs_it_ends_where_it_waits_next(begin: Begin):
    async def main() -> list[str]:
        seen: list[str] = []
        running: list[Any] = []

        async def work() -> None:
            await asyncio.sleep(0)
            running[0].cancel()
            seen.append("goes on")
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                seen.append("ends")
                raise

        running.append(begin(work()))
        await turns(6)
        return seen

    assert asyncio.run(main()) == ["goes on", "ends"]


@WAYS
def test_what_it_waits_for_is_cancelled_with_it(begin: Begin):
    async def main() -> bool:
        inner = asyncio.get_running_loop().create_task(asyncio.sleep(60))

        async def work() -> None:
            await inner

        running = begin(work())
        await turns(2)
        running.cancel()
        await turns(4)
        return inner.cancelled()

    assert asyncio.run(main())


@WAYS
def test_an_error_that_was_waited_for_is_raised_inside(begin: Begin):
    async def main() -> list[str]:
        seen: list[str] = []
        broken = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                await broken
            except OSError as error:
                seen.append(str(error))

        begin(work())
        await turns(2)
        broken.set_exception(OSError("gone"))
        await turns(2)
        return seen

    assert asyncio.run(main()) == ["gone"]


def test_what_it_raises_goes_to_the_loop_and_it_does_not_run_again():
    async def main() -> list[str]:
        heard: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: heard.append(str(context["exception"]))
        )

        async def work() -> None:
            msg = "ours"
            raise ValueError(msg)

        steps = in_steps(work())
        await turns(2)
        steps.cancel()
        await turns(2)
        return heard

    assert asyncio.run(main()) == ["ours"]
