"""The best deployment of DeepSeek-V3 on a CloudMatrix 384, and what bounds it.

python examples/plan_a_pod.py
"""

import polypod


def main() -> None:
    entry = polypod.load_model("deepseek-v3")
    question = polypod.Question(
        model=polypod.read_model(entry.config, name=entry.name, path=entry.path),
        input_tokens=4096,
        output_tokens=1024,
        ttft_s=2.0,
        tpot_s=0.050,
    )
    answer = polypod.plan_model(question, polypod.parse_fleet("huawei-cm384"))
    for pool in answer.plan.services[0].pools:
        predicted = pool.predicted
        assert predicted is not None
        print(pool.replicas, "x", pool.layout)
        print("decode waits for", predicted.bound["decode"])
        print("output tokens/s per accelerator:", predicted.tokens_per_s_per_accelerator)


if __name__ == "__main__":
    main()
