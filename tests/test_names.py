"""Every number wears its unit: a float in a struct or dataclass of ours ends in one, or is listed here with what it is."""

import dataclasses
import importlib
import pkgutil
import typing
from collections.abc import Iterator

import msgspec

import polypod

UNITS = (
    "_s", "_bytes", "_bytes_per_s", "_flops_per_s", "_w", "_usd", "_tokens", "_per_s", "_fraction", "_ratio", "_parameters",
    "_per_token", "_per_sequence", "_per_pair", "_per_element", "_per_accelerator", "_percent", "_share",
    "_celsius", "_k", "_kg",
)  # fmt: skip

RATIOS_AND_COUNTS = {
    "value",  # of a Fact, a Claim, a Measure: the key or the name beside it has the unit
    "least",  # of a Range, which says its unit
    "most",
    "usual",  # of a Price, as least and most
    "kg_co2_per_kwh",  # its own unit
    "kg_co2_per_million_tokens",
    "shares",  # of a replica's cards
    "places",  # of watts
    "parts_of",  # of watts
    "predicted",  # beside a published value, in its unit
    "concurrency",
    "waves",  # requests that a client sends
    "requests_per_client",
    "scale",  # on seconds
    "length_spread",  # over the mean
    "draft_share",  # of a step
    "prefix_hits",  # of a prompt
    "acceptance",  # of drafts
    "scheduler_recv_interval",  # steps
    "batch_wait_timeout_iters",  # steps
    "start",  # prompts that the first waits for
    "stream_interval",  # tokens sent at once
    "poll_steps",  # steps
    "wait_steps",
    "tokens_per_step",
    "decoding",  # share of the time
    "cv",  # standard deviation over mean
    "expert_imbalance_cv",
    "values",  # of a Curve, whose name has the unit
    "a",  # of Compared, whose name has the unit, as b
    "b",
    "lost_requests",  # against a mean
    "low",  # of a Band: measured over predicted
    "high",
    "likely",  # of an Estimate, as low and high: what holds it has the unit
    "batch",
    "median_abs_error",
    "median_abs_error_after",
    "serving_abs_error",
    "mean_abs_error",
    "bias",
    "within_10",
    "within_20",
    "coverage",
    "median_band_ratio",
    "interval_score",
    "fast",
    "slow",
    "claimed",  # of a Verdict, which says its unit
    "ours",
    "seconds",  # of a step
    "fraction",  # of the requests that arrived
    "slowdowns",  # times as slow
    "flops",
    "tokens",
    "sequences",
    "pairs",
    "drafts",
    "count",
    "percentile",
    "log_low",  # of a band: the logarithm of measured over predicted
    "log_high",
    "overlap",  # an exponent
    "factor",
    "half_rows",  # of a curve: rows that keep half the arithmetic busy
    "activation_factor",
    "rows",
    "watts",
    "accelerators",
    "sequences_per_rank",
    "tokens_per_rank",
    "finished_prompts",
    "decode_sequences",
    "card_costs",  # of what is minimised: cards, US dollars an hour or watts
    "most_shares",
    "gap",  # a fraction of the value
    "runner_up",  # of an objective, as value
    "one_more",
    "one_less",
    "of_rate",  # a share
    "share",
    "new_cards",
    "bound",  # of a mixed-integer program, as its costs and its variables' ends
    "costs",
    "lows",
    "highs",
    "shape",  # Weibull's
    "years",
    "mean",  # of an Interval: what holds it has the unit
    "outages_per_year",
    "sample",  # a share
    "weight",  # of a tenant beside the others
    "load",  # work that comes over work that can be done
}


def structs() -> Iterator[tuple[str, str, object]]:
    for found in pkgutil.walk_packages(polypod.__path__, "polypod."):
        if ".cli" in found.name or ".serve" in found.name or found.name.endswith("__main__"):
            continue  # serve imports optional engines; its structs are few and checked by eye
        module = importlib.import_module(found.name)
        for kind in vars(module).values():
            if (
                not isinstance(kind, type)
                or kind.__module__ != found.name
                or kind.__name__[0] == "_"
            ):
                continue
            if not (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind)):
                continue
            for name, annotation in typing.get_type_hints(kind).items():
                if not name.startswith("_"):
                    yield f"{found.name}.{kind.__name__}", name, annotation


def is_number_with_a_unit(annotation: object) -> bool:
    """A float, or an array of them, optional or not."""
    text = str(annotation)
    return "float" in text and "dict" not in text and "tuple" not in text and "Callable" not in text


def test_every_float_has_its_unit_in_its_name() -> None:
    bare = [
        f"{place}.{name}"
        for place, name, annotation in structs()
        if is_number_with_a_unit(annotation)
        and not name.endswith(UNITS)
        and name not in RATIOS_AND_COUNTS
        and not name.endswith(("_S", "_R", "_K", "_L", "_B"))
    ]
    assert bare == []
