"""What `polypod.plan.afd` predicts beside what was published of attention and experts apart.

    python bench/afd.py

Step-3 (https://arxiv.org/abs/2507.19427): up to 4,039 tokens/s per GPU, Hopper, fp8, contexts of 4,096 tokens, 50 ms a token, no drafts; and 2,324 of DeepSeek-V3 in the
same setup. The number of GPUs on either side is not in the abstract: every split of up to 64 is asked here, the best printed, and below the table what it is made of and waits for.

MegaScale-Infer (https://arxiv.org/abs/2504.02263): up to 1.90 times the decoding throughput per GPU of the best engine of its day on one kind of GPU, and up to 1.86
times per unit of cost with attention on H20 and experts on L40S. Its models were of 132 to 317 billion parameters; Mixtral-8x22B (141) is the one in the catalog. The engine's
part is played here by the best decode layout with tensor parallelism alone, and by the best of all layouts. Lengths are 571 and 159 tokens, the limit 150 ms; prices,
H20 1.85 and L40S 1.08 of an L20, are assumptions of this script.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Final

import msgspec

from polypod.catalog.load import load_model
from polypod.cost.deployment import Deployment, native_precision
from polypod.plan.afd import Split
from polypod.plan.afd_link import link_between, own_way_bytes_per_s
from polypod.plan.afd_search import splits
from polypod.plan.place import Island, islands, parse_fleet
from polypod.plan.search import Question, batches, layouts
from polypod.workload.config import read_model
from polypod.workload.layout import Layout
from polypod.workload.model import Model
from polypod.workload.precision import Precision

PRICES: Final = {"nvidia-h20": 1.85, "nvidia-l40s": 1.08}
ROCE_BYTES_PER_S: Final = 25e9
STEP3: Final = "stepfun-ai/step3"
STEP3_CONTEXT: Final = 4096


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    print(f"{'what':62} {'published':>10} {'predicted':>10}")
    for what, published, predicted in rows():
        said = "none" if published is None else f"{published:,}"
        print(f"{what:62} {said:>10} {predicted:>10,}")
    for kv in ("bf16", "fp8"):
        print(f"\nStep-3, {kv} cache: {made_of(step3_split(STEP3, STEP3_CONTEXT, kv))}")


def rows() -> Iterator[tuple[str, float | None, float]]:
    """What it is of, what was published, what is predicted."""
    for kv in ("bf16", "fp8"):
        name = f"Step-3 on H800 in fp8, {kv} cache: tokens/s per GPU"
        yield name, 4039, round(per_gpu(step3_split(STEP3, STEP3_CONTEXT, kv)))
    v3 = Question(model=model_of("deepseek-ai/DeepSeek-V3"), input_tokens=STEP3_CONTEXT - 1, output_tokens=2, tpot_s=0.05)  # fmt: skip
    h800 = place("nvidia-h800-sxm:144")
    whole = max(decode_tokens_per_s(v3, h800, dp=True).values())
    yield "DeepSeek-V3 on H800, whole: tokens/s per GPU", 2324, round(whole)
    yield "DeepSeek-V3 on H800, experts apart: tokens/s per GPU", None, round(apart_tokens_per_s(v3, h800, h800))  # fmt: skip
    yield from megascale()


def megascale() -> Iterator[tuple[str, float | None, float]]:
    question = Question(model=model_of("mistralai/Mixtral-8x22B-v0.1"), input_tokens=571, output_tokens=159, tpot_s=0.15)  # fmt: skip
    h800 = place("nvidia-h800-sxm:32")
    one = apart_tokens_per_s(question, h800, h800)
    for dp, over in ((False, "tensor-parallel"), (True, "best")):
        base = max(decode_tokens_per_s(question, h800, dp=dp).values())
        yield f"Mixtral-8x22B on H800 over {over} decode, per GPU", 1.9, round(one / base, 2)
    h20, l40s = place("nvidia-h20:32"), place("nvidia-l40s:32")
    two = apart_tokens_per_s(question, h20, l40s, PRICES)
    for dp, over in ((False, "tensor-parallel"), (True, "best")):
        base = max(decode_tokens_per_s(question, h20, dp=dp).values()) / PRICES["nvidia-h20"]
        yield f"Mixtral-8x22B, H20 + L40S over {over} on H20, per cost", 1.86, round(two / base, 2)


@lru_cache
def step3_split(name: str, context: int, kv: str) -> Split:
    """The best per GPU of up to 64, at a width of the cache that native precision does not take."""
    model = replace(model_of(name), weight_dtype="fp8")
    island = place("nvidia-h800-sxm:64")
    precision = native_precision(model, island.rank)
    width = own_way_bytes_per_s(island)
    assert width is not None
    kept: list[Split] = []
    for experts in (8, 12, 16, 24):
        for groups in range(8, 65 - experts, 4):
            deployment = Deployment.make(model, Layout(dp=groups), replace_kv(precision, kv), island.rank)  # fmt: skip
            for sequences in range(32, 129, 4):
                split = Split(attention=deployment, experts=island.rank, expert_ranks=experts, expert_precision=precision, link=link_between(island, island, width), micro_batches=3, sequences=sequences)  # fmt: skip
                if split.step_s(float(context)) > 0.05 or split.expert_free_bytes < 0:
                    break
                kept.append(split)
    return max(kept, key=per_gpu)


def per_gpu(split: Split) -> float:
    """Tokens a second."""
    groups = split.attention.layout.dp
    return groups * split.sequences_per_rank / split.step_s(float(STEP3_CONTEXT)) / (groups + split.expert_ranks)  # fmt: skip


def made_of(split: Split) -> str:
    """Ranks of both sides, and of a step the layers with experts and what they wait for."""
    step_s = split.step_s(float(STEP3_CONTEXT))
    layers_s = sum(one.layers * float(one.layer_s(split.micro_batches)) for one in split.rounds(float(STEP3_CONTEXT)))  # fmt: skip
    return (
        f"{split.attention.layout.dp} attention and {split.expert_ranks} expert ranks, {split.micro_batches} x {split.sequences} sequences a rank; "
        f"of a step of {1000 * step_s:.1f} ms layers with experts take {1000 * layers_s:.1f}, waiting for {split.bound(float(STEP3_CONTEXT))}"
    )


def apart_tokens_per_s(question: Question, first: Island, second: Island, prices: dict[str, float] | None = None) -> float:  # fmt: skip
    """The best split's output tokens a second per accelerator, or per price."""
    width = own_way_bytes_per_s(first) if first is second else ROCE_BYTES_PER_S
    assert width is not None
    context = question.input_tokens + question.output_tokens / 2
    return max(
        one.attention.layout.dp
        * one.sequences_per_rank
        / one.step_s(context)
        / sum(
            ranks * (prices or {}).get(rank.chip, 1.0)
            for ranks, rank in (
                (one.attention.layout.world, first.rank),
                (one.expert_ranks, second.rank),
            )
        )
        for one in splits(question, first, second, width)
    )


def decode_tokens_per_s(question: Question, island: Island, *, dp: bool) -> dict[str, float]:
    """Output tokens a second per accelerator of every layout that decodes alone, with data-parallel ranks or without."""
    found = {}
    context = question.input_tokens + question.output_tokens / 2
    for layout in layouts(question.model, island):
        if layout.pp > 1 or (layout.dp > 1 and not dp):
            continue
        deployment = Deployment.make(question.model, layout, native_precision(question.model, island.rank), island.rank)  # fmt: skip
        held = int(deployment.memory(512).tokens_of(context) // context)
        if held < 1:
            continue
        batch = batches(held)
        step_s = deployment.step_s(sequences=batch, kv_tokens=batch * context)
        kept = batch[step_s <= question.tpot_s]
        if kept.size:
            most = int(kept.size) - 1
            found[str(layout)] = float(layout.dp * batch[most] / step_s[most] / layout.world)
    return found


def replace_kv(precision: Precision, kv: str) -> Precision:
    return msgspec.structs.replace(precision, kv=kv)


def model_of(name: str) -> Model:
    entry = load_model(name)
    return read_model(entry.config, name=entry.name, path=entry.path)


def place(text: str) -> Island:
    return islands(parse_fleet(text))[0]


if __name__ == "__main__":
    main()
