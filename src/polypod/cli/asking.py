"""What several verbs ask in the same words."""

import argparse
import sys
from pathlib import Path

from polypod import units
from polypod.catalog.load import load_model
from polypod.cost.deployment import Deployment, native_precision
from polypod.cost.measured import BACKENDS
from polypod.errors import InputError, QuantityError
from polypod.plan.compose import BesidePublished, beside_published
from polypod.plan.money import Site, site
from polypod.plan.place import Island
from polypod.workload.config import read_model
from polypod.workload.layout import Layout
from polypod.workload.model import Model


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Which engine, and how it is set."""
    parser.add_argument("--backend", metavar="NAME", choices=BACKENDS, help=f"the engine whose kernels and defaults to use ({', '.join(BACKENDS)}; default: a blend)")  # fmt: skip
    parser.add_argument("--engine-args", default="", metavar="ARGS", help="its settings, as 'prefill=exclusive prefix_hits=0.3' or in its own flags; docs/how-to/estimate-a-service.md lists them")  # fmt: skip


def add_limits(parser: argparse.ArgumentParser) -> None:
    """What requests have to keep."""
    parser.add_argument("--ttft", metavar="TIME", help="limit on time to first token, as 2s")
    parser.add_argument("--tpot", metavar="TIME", help="limit on time per output token, as 50ms")
    parser.add_argument(
        "--percentile",
        type=float,
        default=99.0,
        metavar="P",
        help="of requests that keep the limits (default: 99)",
    )


def percentile(value: float) -> float:
    """A share of requests, in percent. Raises `InputError`."""
    if not 0 < value < 100:
        msg = f"--percentile {value:g} is no share of requests that a run can show; give one between 0 and 100, as 99"
        raise InputError(msg)
    return value


def share(flag: str, text: str) -> float:
    """A part of a whole, above 0 and 1 at most, written as 2% or 0.02. Raises `InputError`."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        msg = f"{flag} {text} is no part of a whole; give more than 0% and 100% at most, as 2%"
        raise InputError(msg)
    return value


def add_lengths(parser: argparse.ArgumentParser) -> None:
    """Mean lengths of the requests."""
    parser.add_argument(
        "--input", default="1024", metavar="TOKENS", help="mean prompt length (default: 1024)"
    )
    parser.add_argument(
        "--output", default="256", metavar="TOKENS", help="mean answer length (default: 256)"
    )


def add_prices(parser: argparse.ArgumentParser) -> None:
    """What a site's hours cost."""
    parser.add_argument("--prices", metavar="FILE", help="your own prices, tariffs, PUE and grid, in place of those on record; docs/how-to/compare.md lists them")  # fmt: skip


def prices_of(args: argparse.Namespace) -> Site:
    """The site's figures, with the person's own in their place. Raises `FileError`."""
    return site(None if args.prices is None else Path(args.prices))


def model_of(name: str) -> Model:
    """A model of the catalog, or of a config.json."""
    entry = load_model(name)
    return read_model(entry.config, name=entry.name, path=entry.path)


def tokens(flag: str, text: str) -> int:
    """A count of tokens, at least 1."""
    value = units.parse(text, "tokens")
    if value < 1 or value != int(value):
        msg = f"{flag} {text!r} is no count of tokens; give a whole number from 1 on, as 4096 or 4k"
        raise QuantityError(msg)
    return int(value)


def count(flag: str, text: str) -> int:
    """A whole number, at least 1."""
    if not text.strip().isdecimal() or int(text) < 1:
        msg = f"{flag} {text!r} is no number; give a whole one from 1 on, as 64"
        raise InputError(msg)
    return int(text)


def published_beside(model: Model, islands: list[Island]) -> list[BesidePublished]:
    """Published results of these pods for this model, each with a prediction under its own conditions."""
    found = []
    for island in islands:
        for published in island.pod.published if island.pod else ():
            if published.model != model.name:
                continue
            deployment = Deployment(
                model=model,
                layout=Layout(**{str(axis): size for axis, size in published.layout.items()}),
                precision=native_precision(model, island.rank),
                rank=island.rank,
            )
            found.append(beside_published(deployment, published))
    return found


def note(text: str) -> None:
    """A word to the person, not to the program that reads stdout."""
    print(text, file=sys.stderr)
