"""One decode step of Llama-3.1-8B on one H200: every operator, its time, and what it waits for.

python examples/one_step.py
"""

import polypod


def main() -> None:
    entry = polypod.load_model("llama-3.1-8b")
    model = polypod.read_model(entry.config, name=entry.name, path=entry.path)
    rank = polypod.island("a", polypod.parse_fleet("nvidia-h200-sxm:1")["a"]).rank
    place = polypod.Deployment(
        model=model,
        layout=polypod.Layout(tp=1),
        precision=polypod.native_precision(model, rank),
        rank=rank,
    )
    ops = place.ops(sequences=32.0, kv_tokens=32 * 2000.0)
    step = place.cost(ops)
    for part in step.parts:
        print(f"{part.name:22} {float(part.total_s) * 1e3:7.3f} ms  {part.limit}")
    print(f"{'whole step':22} {float(step.total_s) * 1e3:7.3f} ms")
    print(f"{'nothing beats':22} {float(place.floor_s(ops)) * 1e3:7.3f} ms")


if __name__ == "__main__":
    main()
