"""polypod catalog: facts about chips, pods, links and models, and where they come from."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

import msgspec

from polypod import units
from polypod.catalog.add import Added, add
from polypod.catalog.claims import sum_of_parts
from polypod.catalog.load import (
    KINDS,
    ModelEntry,
    accelerators_pod,
    known_names,
    listing,
    load_any,
    load_file,
    pods_accelerator,
)
from polypod.catalog.schema import Accelerator, Claim, Interconnect, Pod, Published, Strict
from polypod.catalog.search import FIELDS, Hit, search
from polypod.catalog.search_market import MARKET_KINDS, Line, lines
from polypod.cli import catalog_counts, catalog_market, catalog_trace
from polypod.cli.catalog_rows import (
    add_formats,
    field_rows,
    figure_rows,
    form_of,
    hit_rows,
    listed_rows,
)
from polypod.cli.cited import Sources, hanging
from polypod.cli.figures import Figure, figures
from polypod.errors import InputError
from polypod.report.tables import WIDTH, entry, table
from polypod.workload.config import is_modelled, read_model

Entry = Accelerator | Pod | Interconnect | ModelEntry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="list|show|search|add|count")
    listed = what.add_parser("list", help="every entry: id, year, one line")
    listed.add_argument("--kind", choices=[*KINDS, *MARKET_KINDS], help="only entries of this kind")
    add_formats(listed)
    added = what.add_parser("add", help="check your own chip, pod, link or model, and keep it")
    added.add_argument(
        "file", help="a .toml file in the form of the catalog's own, or a config.json"
    )
    added.add_argument("--name", help="what a model is called: acme/one-7b")
    added.add_argument("--replace", action="store_true", help="take the place of one added before")
    added.add_argument("--json", action="store_true", help="print one JSON object")
    counted = what.add_parser("count", help="how much is on record, and how far to trust it")
    add_formats(counted)
    searched = what.add_parser("search", help="by words (昇腾, H20) or figures (hbm > 100 GB)")
    searched.add_argument(
        "query", nargs="+", help="words, or comparisons joined by and / or; quote < and >"
    )
    add_formats(searched)
    shown = what.add_parser("show", help="one entry: its figures, their sources, their conflicts")
    shown.add_argument("name", help="an id, another name in any case, or a path to a file")
    add_formats(shown)


def run(args: argparse.Namespace) -> int:
    if args.what == "list":
        by_kind = _listed(args.kind)
        if form := form_of(args):
            print(form(listed_rows([e for entries in by_kind.values() for e in entries])))
        else:
            print(_list_json(by_kind) if args.json else "\n\n".join(_list_text(by_kind)))
        return 0
    if args.what == "add":
        taken = _add(args)
        print(json.dumps(asdict(taken), indent=2, default=str) if args.json else _added_text(taken))
        return 0
    if args.what == "count":
        print(catalog_counts.text(form_of(args), as_json=args.json))
        return 0
    if args.what == "search":
        hits = search(" ".join(args.query))
        if form := form_of(args):
            print(form(hit_rows(hits)))
        else:
            print(_hits_json(hits) if args.json else _hits_text(hits))
        return 0 if hits else 1
    return _show(args)


def _show(args: argparse.Namespace) -> int:
    form = form_of(args)
    if catalog_market.is_market_name(args.name):
        if form:
            print(form(field_rows(catalog_market.market_entry(args.name))))
        else:
            print(catalog_market.show(args.name, as_json=args.json))
        return 0
    found = load_any(args.name)
    if isinstance(found, ModelEntry) and not form and not is_modelled(found.config):
        print(catalog_trace.show(found, as_json=args.json))
        return 0
    if form:
        print(form(figure_rows(*_figured(found))))
    elif args.json:
        print(json.dumps(_json(found), indent=2, ensure_ascii=False))
    else:
        print("\n".join(_text(found)))
    return 0


def _figured(found: Entry) -> tuple[str, Strict]:
    """What has figures with sources: an entry itself, of a model its card."""
    if not isinstance(found, ModelEntry):
        return found.id, found
    if found.card is None:
        msg = f"{found.path} is a config.json of your own: it has no figures with sources to list; --json shows what is computed from it"
        raise InputError(msg)
    return found.name, found.card


def _add(args: argparse.Namespace) -> Added:
    """A model is kept only if its architecture is understood."""
    path = Path(args.file)
    found = load_file(path)
    if isinstance(found, ModelEntry):
        read_model(found.config, found.name, found.path)
    return add(path, replace=args.replace, name=args.name)


def _listed(kind: str | None) -> dict[str, list[Line]]:
    """Lines by kind: of one kind, or of all but the market's, which are many and change by the week."""
    if kind in MARKET_KINDS:
        return {kind: lines(kind)}
    kinds = [kind] if kind else list(KINDS)
    found = [Line(kind=e.kind, id=e.id, title=e.title, year=e.year) for e in listing()]
    return {kind: [line for line in found if line.kind == kind] for kind in kinds}


def _added_text(added: Added) -> str:
    lines = [entry("added", f"{added.kind} {added.id}, kept as {added.path}")]
    if added.hides_shipped:
        lines.append(
            entry("note", "it stands in the place of the entry of that id that comes with Polypod")
        )
    lines += [entry("lacks", what) for what in added.lacks]
    return "\n".join(lines)


def _hits_json(hits: list[Hit]) -> str:
    return json.dumps({"hits": [asdict(hit) for hit in hits]}, indent=2, ensure_ascii=False)


def _hits_text(hits: list[Hit]) -> str:
    """One line per hit, cut at 80 columns; the figures compared stand before the title."""
    if not hits:
        return "nothing fits"
    rows = []
    for hit in hits:
        values = ", ".join(
            f"{name} {_shown(name, value)}"
            for name, value in hit.shown.items()
            if not isinstance(value, str)
        )
        rows.append([hit.id, hit.kind, values, hit.title])
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    room = max(WIDTH - sum(widths) - 6, 20)
    cut = [[*row[:3], shorten(row[3], room, placeholder=" ..")] for row in rows]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, [*widths, 0], strict=True) if w or cell)
        for row in cut
    )


def _shown(name: str, value: float) -> str:
    """A figure in its field's unit; a year is no quantity and has no comma."""
    return f"{value:.0f}" if name == "year" else units.show(value, FIELDS[name][1] or "tokens", 4)


def _list_json(by_kind: dict[str, list[Line]]) -> str:
    raw: dict[str, Any] = {
        "counts": {kind: len(entries) for kind, entries in by_kind.items()},
        "entries": [
            {"kind": e.kind, "id": e.id, "title": e.title}
            for entries in by_kind.values()
            for e in entries
        ],
    }
    return json.dumps(raw, indent=2, ensure_ascii=False)


def _list_text(by_kind: dict[str, list[Line]]) -> Iterator[str]:
    """One block per kind. A title is cut where the line would pass 80 columns."""
    for kind, entries in by_kind.items():
        head = (
            f"{kind}s: {len(entries)}"
            if kind != "unreliable"
            else f"not to be used: {len(entries)}"
        )
        width = max([len(head), *(len(e.id) for e in entries)])
        room = WIDTH - width - len("  2026  ")
        rows = [
            [e.id, str(e.year or ""), shorten(e.title, room, placeholder=" ..")] for e in entries
        ]
        yield table([head.ljust(width), "", ""], rows)


def _json(found: Entry) -> dict[str, Any]:
    if isinstance(found, Accelerator):
        raw = {"kind": "accelerator", **msgspec.to_builtins(found)}
        return raw | {"market": catalog_market.market_json(found.id)}
    if isinstance(found, Interconnect):
        return {"kind": "link", **msgspec.to_builtins(found)}
    if isinstance(found, Pod):
        chip = _chip(found)
        sums = [sum_of_parts(claim, found, chip) for claim in found.claims]
        market = catalog_market.dated_json(found.id)
        raw = {"kind": "pod", **msgspec.to_builtins(found), "claims_from_parts": sums}
        return raw | {"market": market}
    return _model_json(found)


def _model_json(found: ModelEntry) -> dict[str, Any]:
    from polypod.cli import catalog_model  # computes with numpy, which a chip need not wait for

    return catalog_model.as_json(found)


def _model_text(found: ModelEntry) -> Iterator[str]:
    from polypod.cli import catalog_model

    return catalog_model.text(found)


def _text(found: Entry) -> Iterator[str]:
    if isinstance(found, Accelerator):
        return _accelerator(found)
    if isinstance(found, Interconnect):
        return _link(found)
    return _pod(found) if isinstance(found, Pod) else _model_text(found)


def _chip(pod: Pod) -> Accelerator | None:
    """What a pod is made of; None where its maker does not say."""
    return None if pod.accelerator is None else pods_accelerator(pod)


def _heading(found: Accelerator | Pod | Interconnect, about: list[str | None]) -> Iterator[str]:
    owner = found.owner if isinstance(found, Interconnect) else found.vendor
    yield f"{owner} {found.name} ({found.id})"
    yield entry("", "; ".join(text for text in about if text), indent=2)
    if found.names:
        yield entry("", f"also called {', '.join(found.names)}", indent=2)
    if found.note:
        yield entry("", found.note, indent=2)
    yield ""


def _accelerator(found: Accelerator) -> Iterator[str]:
    sources = Sources()
    ranks = f"accelerator of {found.ranks} ranks" if found.ranks > 1 else "accelerator"
    year = str(found.year) if found.year else None
    yield from _heading(found, [ranks, found.software, year, found.status])
    listed = [
        Figure(f"{dtype} peak, dense", peak, "flops_per_s")
        for dtype, peak in found.peak_flops_per_s.items()
    ]
    listed += [
        Figure("memory", found.memory_bytes, "bytes"),
        Figure("memory bandwidth", found.memory_bytes_per_s, "bytes_per_s"),
        Figure("power", found.power_w, "w"),
    ]
    if found.scale_up is not None:
        label = f"{found.scale_up.name}, one way"
        listed.append(Figure(label, found.scale_up.bytes_per_s, "bytes_per_s"))
    yield from figures(listed, sources)
    yield from _about(found)
    home = accelerators_pod(found.id) if found.id in known_names() else None
    if home is not None:
        yield f"\ncomes in {home.id}"
    yield from catalog_market.sections(found.id, sources)
    yield from sources.lines()


def _about(found: Accelerator) -> Iterator[str]:
    """What is known of it in words."""
    fabric = found.scale_up
    joins = (
        f", up to {fabric.accelerators:,} accelerators" if fabric and fabric.accelerators else ""
    )
    told = {
        "memory": found.memory_type,
        "scale-up": f"{fabric.name}{joins}" if fabric else None,
        "export control": found.export_control,
    }
    if any(told.values()):
        yield ""
    yield from (entry(label, text, indent=20) for label, text in told.items() if text)


def _link(found: Interconnect) -> Iterator[str]:
    sources = Sources()
    yield from _heading(found, [f"{found.purpose} link", found.openness])
    reach = f"{found.accelerators:,} accelerators" if found.accelerators else None
    told = {
        "one link": found.per_link,
        "joins": "; ".join(text for text in (reach, found.reach) if text),
        "medium": found.medium,
    }
    yield from (entry(label, text, indent=20) for label, text in told.items() if text)
    listed = [
        Figure(f"{name}, one way", speed, "bytes_per_s")
        for name, speed in found.bytes_per_s.items()
    ]
    listed += [Figure(f"latency, {name}", it, "s") for name, it in found.latency_s.items()]
    yield ""
    if not listed:
        yield "neither a speed nor a latency is on record"
        return
    yield from figures(listed, sources)
    yield from sources.lines()


def _pod(found: Pod) -> Iterator[str]:
    sources = Sources()
    chip = _chip(found)
    ranks = f", {found.accelerators * chip.ranks:,} ranks" if chip and chip.ranks > 1 else ""
    of = chip.id if chip else "accelerators of a make not disclosed"
    year = str(found.year) if found.year else None
    yield from _heading(found, [f"pod of {found.accelerators:,} {of}{ranks}", year, found.status])
    listed = []
    for tier in found.tiers:
        joins = f"{tier.ranks:,} ranks" if tier.ranks else "any number of ranks"
        yield f"tier {tier.name!r} joins {joins}"
        listed += [
            Figure(f"{tier.name}, one way", tier.bytes_per_s, "bytes_per_s"),
            Figure(f"{tier.name}, latency", tier.latency_s, "s"),
        ]
        if tier.blocking_ratio is not None:
            listed.append(Figure(f"{tier.name}, blocking", tier.blocking_ratio, None))
    listed += [Figure("IT power", found.power_w, "w"), Figure("PUE", found.pue, None)]
    yield ""
    yield from figures(listed, sources)
    if found.claims:
        yield "\nclaimed, and the sum of the parts on record"
        yield from (_claim(claim, found, chip, sources) for claim in found.claims)
    if found.published:
        yield "\npublished results"
        yield from (_published(result, sources) for result in found.published)
    yield from catalog_market.dated(found.id, sources)
    yield from sources.lines()


def _claim(claim: Claim, pod: Pod, chip: Accelerator | None, sources: Sources) -> str:
    unit: units.Unit = {
        "flops_per_s": "flops_per_s",
        "memory_bytes": "bytes",
        "memory_bytes_per_s": "bytes_per_s",
        "link_bytes_per_s_both_ways": "bytes_per_s",
    }[claim.quantity]  # type: ignore[assignment]
    parts = units.show(sum_of_parts(claim, pod, chip), unit)
    note = f" ({claim.note})" if claim.note else ""
    dtype = f" {claim.dtype}" if claim.dtype else ""
    return hanging("  -", f"{claim.what} {sources.mark(claim.source)}; parts: {parts}{dtype}{note}")


def _published(result: Published, sources: Sources) -> str:
    value = units.significant(result.value, 4)
    return hanging(
        "  -",
        f"{result.phase} of {result.paper_model}: {value} tokens/s per accelerator {sources.mark(result.source)}; "
        f"{result.conditions}; shape of {result.model}",
    )
