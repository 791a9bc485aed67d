"""A thousand requests of Azure's conversation trace through one HGX H200 node.

python examples/simulate_a_trace.py
"""

from pathlib import Path

import polypod

TRACE = Path(__file__).parent / "traces" / "azure-conv-1000.csv"


def main() -> None:
    entry = polypod.load_model("llama-3.1-8b")
    question = polypod.Question(
        model=polypod.read_model(entry.config, name=entry.name, path=entry.path),
        input_tokens=1155,  # the trace's means
        output_tokens=211,
        ttft_s=0.5,
        tpot_s=0.020,
    )
    answer = polypod.plan_model(question, polypod.parse_fleet("nvidia-hgx-h200"))
    trace = polypod.arrivals(polypod.read_trace(TRACE), question.model.name)
    run = polypod.play(polypod.scenario_of(answer.plan, trace))
    summary = polypod.summarise(run.lines)
    assert summary.ttft is not None
    assert polypod.replay(run.lines) is None  # a fresh policy decides the same
    print(f"{summary.finished} of {summary.requests} requests, TTFT p99 {summary.ttft.p99_s:.3f} s")
    for pool in summary.pools:
        print(f"{pool.name}: {pool.output_tokens} tokens, busy {pool.busy_fraction:.1%}")


if __name__ == "__main__":
    main()
