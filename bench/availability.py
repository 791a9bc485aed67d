"""How long failures take to draw, to become outages and to become an answer, at the scale of large fleets.

    python bench/availability.py

10,240 cards over a year, a million over a month, and `polypod availability`'s question of 10,240 cards over 200 years. Replicas of 8 cards; the rates
on record. Wall seconds, after one round that compiles. Bounded: about 10 s of an idle core.
"""

import time

from polypod.plan.spec import Layout, Plan, Pool, Precision, Service, Source
from polypod.simulate.availability import draw_runs, play_runs, spares_for
from polypod.simulate.demand import demands
from polypod.simulate.failure_rates import YEAR_S, default_rates
from polypod.simulate.outages import compiled, walk
from polypod.simulate.seats import Recovery, seat
from polypod.simulate.timeline import draw


def plan(cards: int) -> Plan:
    pool = Pool(
        role="both", on="a", layout=Layout(tp=8), replicas=cards // 8, name="p",
        precision=Precision(weights="bf16", kv="bf16"), state="modelled",
    )  # fmt: skip
    service = Service(model="meta-llama/Llama-3.1-8B", pools=(pool,))
    return Plan(polypod=1, fleet={"a": Source(accelerator="nvidia-h100-sxm", count=cards)}, services=(service,))  # fmt: skip


def main() -> None:
    rates = default_rates()
    small = seat(plan(64), Recovery())
    small.outages(draw(small.placed, rates, YEAR_S, seed=0), compiled())  # compiles
    print(f"{'cards':>9}  {'days':>5}  {'placed':>8}  {'drawn':>8}  {'outages':>8}  {'plain':>8}  failures, outages")  # fmt: skip
    for cards, days in ((10_240, 365), (1_000_000, 30)):
        start = time.perf_counter()
        seated = seat(plan(cards), Recovery(spare_fraction=0.002))
        placed_s = time.perf_counter() - start
        start = time.perf_counter()
        found = draw(seated.placed, rates, days * 86400.0, seed=1)
        drawn_s = time.perf_counter() - start
        start = time.perf_counter()
        outages = seated.outages(found, compiled())
        fast_s = time.perf_counter() - start
        start = time.perf_counter()
        seated.outages(found, walk)
        plain_s = time.perf_counter() - start
        print(f"{cards:>9,}  {days:>5}  {placed_s:>6.3f} s  {drawn_s:>6.3f} s  {fast_s:>6.3f} s  {plain_s:>6.3f} s  {len(found):,}, {len(outages.replica_N):,}")  # fmt: skip

    asked = plan(10_240)
    seated = seat(asked, Recovery(spare_fraction=0.002))
    start = time.perf_counter()
    runs = draw_runs(seated, demands(asked, {"p": 1275}), rates, years=10, runs=20)
    drawn_s = time.perf_counter() - start
    start = time.perf_counter()
    (answer,) = play_runs(runs)
    played_s = time.perf_counter() - start
    start = time.perf_counter()
    spares = [one.spares for one in spares_for(runs)[0]]
    print(
        f"\n20 runs of 10 years of 10,240 cards: {runs.failures:,} failures drawn in {drawn_s:.2f} s, played in {played_s:.2f} s "
        f"(up {answer.up_fraction.mean:.6f}); spares for 99.9 and 99.99 %, {spares}, found in {time.perf_counter() - start:.2f} s"
    )


if __name__ == "__main__":
    main()
