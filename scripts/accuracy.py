"""Write docs/accuracy.md from the rows that ship; with --bands, print what data/bands.toml should hold; with --held-out, set formula and play on
rows that are not judged, print it, and keep it for the page (a minute).

python scripts/accuracy.py
python scripts/accuracy.py --bands
python scripts/accuracy.py --held-out
"""

import csv
import sys
from pathlib import Path

from polypod.cost.bands import METRICS
from polypod.validate import held_out_play
from polypod.validate.held_out import within_groups
from polypod.validate.page import kinds
from polypod.validate.rows import unique
from polypod.validate.scores import residual_band
from polypod.validate.shipped import shipped_page, shipped_rows, shipped_scored

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "accuracy.md"
KEPT = ROOT / "src" / "polypod" / "validate" / "data" / held_out_play.FILE


def main() -> int:
    if "--bands" in sys.argv:
        _bands()
        _within()
        return 0
    if "--held-out" in sys.argv:
        _held_out()
    PAGE.write_text(shipped_page(), encoding="utf-8")
    return 0


def _bands() -> None:
    """By kind, in all and of each system without its own kernels."""
    for name, rows in kinds(shipped_scored()).items():
        for metric in METRICS:
            low, high = residual_band(rows, metric)
            print(f"{name:40} {metric} = [{low:.3f}, {high:.3f}]")
    for system in ("b200_sxm", "h100_sxm"):
        chip = {"b200_sxm": "nvidia-b200-hgx", "h100_sxm": "nvidia-h100-sxm"}[system]
        rows = [one for one in shipped_scored(frozenset({chip})) if one.row.system == system]
        for name, found in kinds(rows).items():
            for metric in METRICS:
                low, high = residual_band(found, metric)
                print(f"without {system}, {name:20} {metric} = [{low:.3f}, {high:.3f}]")


def _within() -> None:
    """About each group's own median: under a calibration of one's own."""
    for kind in ("agg", "agg-speculative", "disagg"):
        for metric in METRICS:
            count, low, high = within_groups(shipped_scored(), kind, metric)
            name = f"calibrated/{kind}, {count} rows"
            print(f"{name:40} {metric} = [{low:.3f}, {high:.3f}]")


def _held_out() -> None:
    tried = held_out_play.try_all(list(unique(shipped_rows()[0])))
    for name, part, hosts in held_out_play.choices(tried):
        print(f"without {name} {part}: {hosts}")
    found = [held_out_play.HEADER, *held_out_play.lines(tried)]
    with KEPT.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(found)
    for line in found:
        print("{:10} {:7} {:5} {:>5} {:>8} {:>15} {:>7}".format(*line))


if __name__ == "__main__":
    raise SystemExit(main())
