"""Many seeds, or one: `python -m tests.faults.run --seeds 0:100000` on all cores, `python -m tests.faults.run --seed 8123` again.

A seed that fails is made shorter, by leaving out requests and troubles while it fails still, and printed as the one line that plays it again.
"""

import argparse
import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from tests.faults.harness import play, replays
from tests.faults.story import Story, draw

CHUNK = 50
REPLAYED = 10
"""Every so many seeds the log is put to a fresh policy too."""


def fault_of(story: Story) -> str | None:
    """What does not hold, in a line; None where all does."""
    try:
        played = play(story)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} (in {where.name})"
    if story.seed % REPLAYED == 0 and not replays(story, played.log):
        return "a fresh policy gives other answers"
    return None


def shrink(story: Story, fails: Callable[[Story], bool]) -> Story:
    """A story that fails too, and does not with any one request or trouble less."""
    requests = [one.number for one in story.requests]
    troubles = [one.number for one in story.troubles]
    for kept in (requests, troubles):
        size = max(len(kept) // 2, 1)
        while size:
            at = 0
            while at < len(kept):
                left_out = kept[at : at + size]
                del kept[at : at + size]
                if fails(story.only(requests, troubles)):
                    continue
                kept[at:at] = left_out
                at += size
            size //= 2
    return story.only(requests, troubles)


def command(story: Story) -> str:
    """The line that plays it again."""
    whole = draw(story.seed)
    words = ["python -m tests.faults.run", f"--seed {story.seed}"]
    for name in ("requests", "troubles"):
        kept = getattr(story, name)
        if len(kept) < len(getattr(whole, name)):
            words.append(f"--{name} {','.join(str(one.number) for one in kept) or 'none'}")
    return " ".join(words)


def failures(seeds: Sequence[int]) -> list[str]:
    """The lines of those that fail, each made shorter."""
    found = []
    for seed in seeds:
        story = draw(seed)
        if fault_of(story) is not None:
            short = shrink(story, lambda one: fault_of(one) is not None)
            found.append(f"{command(short)}   # {fault_of(short)}")
    return found


def soak(seeds: range, workers: int) -> Iterator[tuple[int, list[str]]]:
    """How many seeds are done, and what has failed since."""
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    done = 0
    with multiprocessing.Pool(workers) as pool:
        for found in pool.imap_unordered(failures, chunks):
            done = min(done + CHUNK, len(seeds))
            yield done, found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.run", description=__doc__)
    parser.add_argument("--seeds", default="0:2000", help="FROM:TO, the last one left out")
    parser.add_argument("--seed", type=int, help="this one alone, to the end of its trace")
    parser.add_argument("--requests", help="only these of the seed's requests: 1,5,6, or none")
    parser.add_argument("--troubles", help="only these of the seed's troubles")
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count())
    asked = parser.parse_args(arguments)
    if asked.seed is not None:
        story = draw(asked.seed).only(_numbers(asked.requests), _numbers(asked.troubles))
        played = play(story)
        print(f"seed {asked.seed}: {played.events} events, {played.outcomes}")
        return 0
    first, end = map(int, asked.seeds.split(":"))
    return _soak(range(first, end), asked.workers)


def _soak(seeds: range, workers: int) -> int:
    began_s = time.monotonic()
    told_s, failed = began_s, 0
    for done, found in soak(seeds, workers):
        failed += len(found)
        for line in found:
            print(line, flush=True)
        now_s = time.monotonic()
        if now_s - told_s > 10 or done == len(seeds):
            told_s = now_s
            print(f"{done:,} of {len(seeds):,} seeds, {done / (now_s - began_s):.0f} a second, {failed} failed", flush=True)  # fmt: skip
    return 1 if failed else 0


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    return [] if text == "none" else [int(one) for one in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
