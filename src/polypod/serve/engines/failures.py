"""Why an engine could not load its model, in a sentence a person can act on, read from its last lines."""

from collections.abc import Sequence

from polypod.serve.engines.facts import Failure, facts_of

COMMON = (
    Failure(
        signs=("No space left on device", "Errno 28"),
        says="the disk is full; make room where the log and the sockets are",
    ),
    Failure(
        signs=("Too many open files", "Errno 24"),
        says="too many files are open; raise the limit with ulimit -n",
    ),
    Failure(
        signs=("Address already in use", "Errno 98"),
        says="its port or its socket is taken by another process; it is tried again with another",
    ),
)


def explained(engine: str, log_tail: Sequence[str]) -> str | None:
    """What an engine's last lines mean; None where nothing on record is in them. The last line that says something counts.

    >>> explained("vllm", ["ValueError: Model architectures ['Mystery'] are not supported for now."])
    "this version of vLLM does not know the model's architecture; take a newer one, or --engine transformers"
    """
    facts = facts_of(engine)
    known = (*(facts.failures if facts else ()), *COMMON)
    for line in reversed(log_tail):
        for failure in known:
            if any(sign in line for sign in failure.signs):
                return failure.says
    return None
