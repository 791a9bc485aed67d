"""Write docs/accuracy.md from the rows that ship; with --bands, print what data/bands.toml should hold.

python scripts/accuracy.py
python scripts/accuracy.py --bands
"""

import sys
from pathlib import Path

from polypod.cost.bands import METRICS
from polypod.validate.held_out import within_groups
from polypod.validate.page import kinds
from polypod.validate.scores import residual_band
from polypod.validate.shipped import shipped_page, shipped_scored

PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"


def main() -> int:
    if "--bands" in sys.argv:
        _bands()
        _within()
        return 0
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


if __name__ == "__main__":
    raise SystemExit(main())
