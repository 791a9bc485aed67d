"""A candidate put to the test: the same answer as if every run had been played to its end."""

import pytest

from polypod.cli.asking import model_of
from polypod.cost.deployment import native_precision
from polypod.plan.confirm import Outcome, confirm, emulate
from polypod.plan.place import island, parse_fleet
from polypod.plan.search import Candidate, Question, search

HGX = island("a", parse_fleet("nvidia-hgx-h200")["a"])
LLAMA = model_of("llama-3.1-8b")


def ask(**limits: float) -> Question:
    return Question(model=LLAMA, input_tokens=2048, output_tokens=128, **limits)  # type: ignore[arg-type]


def to_the_end(question: Question, candidate: Candidate) -> Outcome | None:
    """Plain halving, to 1.5 % of the closed form's rate, no run given up."""
    ceiling_per_s = candidate.tokens_per_s / candidate.replicas / question.output_tokens
    step_time = candidate.deployment.step_time()
    shares, best = [1.0], None
    low, high = 0.05, 1.0
    for _ in range(7):
        outcome = emulate(question, candidate, step_time, rate_per_s=shares[-1] * ceiling_per_s)
        if outcome.keeps(question):
            best, low = outcome, shares[-1]
        else:
            high = shares[-1]
        if low == high:
            break
        shares.append((low + high) / 2)
    return best


@pytest.mark.parametrize(
    "limits",
    [
        {"ttft_s": 0.25},
        {"tpot_s": 0.012},
        {"ttft_s": 0.3, "tpot_s": 0.015},
        {"ttft_s": 0.3, "tpot_s": 0.015, "percentile": 90.0},
        {"ttft_s": 0.4, "percentile": 50.0},
        {},
    ],
)
def test_giving_up_early_changes_no_answer(limits: dict[str, float]) -> None:
    question = ask(**limits)
    for candidate in search(question, HGX, native_precision(LLAMA, HGX.rank)).ranked()[:2]:
        found, whole = confirm(question, candidate), to_the_end(question, candidate)
        assert found is not None
        assert whole is not None
        assert found.outcome.rate_per_s == whole.rate_per_s
        assert found.outcome.ttft_s.tolist() == whole.ttft_s.tolist()
        assert found.outcome.busy_fraction == whole.busy_fraction
