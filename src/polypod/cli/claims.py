"""polypod claims: what the field's systems claim, reproduced, contradicted, or untestable and why."""

import argparse
import json
from collections import Counter
from dataclasses import asdict

from polypod.catalog.load import listing, load_pod
from polypod.catalog.verdicts import Ruling, Verdict, all_verdicts
from polypod.cli.asking import model_of, published_beside
from polypod.cli.catalog_rows import Rows, add_formats, form_of
from polypod.plan.compose import BesidePublished
from polypod.plan.place import island, parse_fleet
from polypod.report.tables import entry
from polypod.units import significant

_MARKS: dict[Ruling, str] = {"reproduced": "+", "contradicted": "!", "untestable": "?"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("system", nargs="?", help="only the claims of this system")
    parser.add_argument("--ruling", choices=list(_MARKS), help="only claims with this verdict")
    add_formats(parser)


def run(args: argparse.Namespace) -> int:
    verdicts = [
        one
        for one in [*_by_prediction(all_verdicts()), *published()]
        if args.system in (None, one.system) and args.ruling in (None, one.ruling)
    ]
    counts = Counter(one.ruling for one in verdicts)
    predicted = sum(one.predicted for one in verdicts)
    if form := form_of(args):
        print(form(_rows(verdicts)))
        return 0
    if args.json:
        found = {"counts": dict(counts), "claims": [asdict(one) for one in verdicts]}
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    for one in verdicts:
        print(_text(one))
    ruled = ", ".join(f"{counts[ruling]} {ruling}" for ruling in _MARKS)
    print(f"\n{len(verdicts)} claims: {ruled}; {predicted} by prediction")
    return 0


def _rows(verdicts: list[Verdict]) -> Rows:
    header = (
        "id",
        "system",
        "ruling",
        "claimed",
        "ours",
        "unit",
        "says",
        "predicted",
        "reason",
        "source",
    )
    rows = [tuple(getattr(one, name) for name in header) for one in verdicts]
    return Rows(header=header, rows=rows)


def _by_prediction(verdicts: list[Verdict]) -> list[Verdict]:
    """The same; those of serving speed ruled by predictions, which only they wait for."""
    if not any(one.point for one in verdicts):
        return verdicts
    from polypod.cli.claims_predicted import by_prediction

    return by_prediction(verdicts)


def published() -> list[Verdict]:
    """Published results of pods, each against the band predicted under its own conditions."""
    found = []
    for listed in listing():
        results = load_pod(listed.id).published if listed.kind == "pod" else ()
        for model in dict.fromkeys(result.model for result in results):
            place = island("a", parse_fleet(listed.id)["a"])
            beside = published_beside(model_of(model), [place])
            found += [_published(listed.id, n, one) for n, one in enumerate(beside, start=1)]
    return found


def _published(pod: str, number: int, one: BesidePublished) -> Verdict:
    result = one.published
    ruling: Ruling = "reproduced" if one.slow <= result.value <= one.fast else "contradicted"
    where = "inside" if ruling == "reproduced" else "outside"
    return Verdict(
        id=f"{pod}.published.{number}",
        system=pod,
        says=f"{result.phase} of {result.paper_model}: {significant(result.value, 4)} tokens/s per accelerator",
        source=result.source,
        unit="per_s",
        claimed=result.value,
        ours=one.predicted,
        ruling=ruling,
        predicted=True,
        reason=f"by prediction: {significant(one.predicted, 4)} under its conditions ({result.conditions}); it lies {where} "
        f"the band of {significant(one.slow)} to {significant(one.fast)}",
    )


def _text(one: Verdict) -> str:
    mark = _MARKS[one.ruling]
    head = f"{one.system}: {one.says}" if one.system else one.says
    return entry(f"{mark} {one.ruling}", f"{head} - {one.reason}", indent=16)
