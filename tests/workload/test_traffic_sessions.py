"""Sessions told from prefixes."""

import numpy as np

from polypod.workload.traffic_rows import Trace, starts_of
from polypod.workload.traffic_sessions import COMMON_SUCCESSORS, with_sessions


def trace_of(chains: list[list[int]]) -> Trace:
    n = len(chains)
    return Trace(
        name="chains",
        arrival_s=np.arange(float(n)),
        input_tokens=np.full(n, 5000),
        output_tokens=np.full(n, 10),
        block_hashes=np.array([one for chain in chains for one in chain], dtype=np.int64),
        block_starts=starts_of(np.array([len(chain) for chain in chains])),
        block_tokens=512,
    )


def fan(root: int, ways: int) -> list[list[int]]:
    return [[root, 1000 * (root + 1) + way] for way in range(ways)]


def test_a_block_that_goes_on_in_many_ways_is_a_system_prompt() -> None:
    sessions = with_sessions(trace_of(fan(0, COMMON_SUCCESSORS))).session

    assert sessions.tolist() == list(range(COMMON_SUCCESSORS))


def test_a_block_that_goes_on_in_fewer_ways_is_one_session() -> None:
    sessions = with_sessions(trace_of(fan(0, COMMON_SUCCESSORS - 1))).session

    assert set(sessions.tolist()) == {0}


def test_several_system_prompts_of_different_length_are_left_out() -> None:
    two_blocks = [[500, *chain] for chain in fan(1, 40)]  # 500 goes on in one way, 1 in forty
    chains = [*fan(0, 40), *two_blocks, [0, 1000, 7], [500, 1, 2000, 8], [0], []]
    sessions = with_sessions(trace_of(chains)).session.tolist()

    assert sessions[:40] == list(range(40))
    assert set(sessions[40:80]) == {40}  # its first block is not common: all in one
    assert sessions[80:] == [0, 40, -1, -1]


def test_the_last_block_of_a_prompt_does_not_go_on_in_the_next_prompts_first() -> None:
    chains = [[way, 0] for way in range(1, 1 + 2 * COMMON_SUCCESSORS)]  # 0 ends each
    sessions = with_sessions(trace_of([[0], *chains])).session.tolist()

    assert sessions == list(range(len(chains) + 1))
