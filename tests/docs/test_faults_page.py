"""The faults that the page shows are read."""

import re
from pathlib import Path

from polypod.plan.spec import Layout, Plan, Pool, Precision, Service, Source, Traffic
from polypod.simulate.failure_rates import KINDS
from polypod.simulate.fault_files import WHATS, read_faults
from polypod.simulate.seats import Recovery, seat

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "faults-and-availability.md"


def test_the_file_of_the_page_is_an_example_and_read_whole() -> None:
    path = ROOT / "examples" / "faults.yaml"
    shown = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert path.read_text(encoding="utf-8") in shown
    pool = Pool(
        role="both", on="a", layout=Layout(tp=4), replicas=13,
        precision=Precision(weights="bf16", kv="bf16"), state="modelled",
    )  # fmt: skip
    service = Service(model="Qwen/Qwen3-32B", pools=(pool,), traffic=Traffic(input=2000, output=500))  # fmt: skip
    plan = Plan(polypod=1, fleet={"a": Source(accelerator="nvidia-h20", count=64)}, services=(service,))  # fmt: skip
    broken, played = read_faults(path, seat(plan, Recovery()).placed)

    assert [one.what for one in broken] == ["crash", "hang", "slow", "flap", "slow-link", "crash"]
    assert played == []


def test_the_page_names_every_kind_and_every_way_to_break() -> None:
    text = PAGE.read_text(encoding="utf-8")

    assert all(f"`{name}`" in text for name in (*KINDS, *WHATS))
