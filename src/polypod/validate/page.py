"""The accuracy page: what is measured, what is predicted, and how far apart, as Markdown."""

from collections.abc import Sequence
from typing import Final

from polypod.report.export import markdown_text
from polypod.validate.bands import METRICS
from polypod.validate.point_bands import PredictedPoint
from polypod.validate.rows import Refused
from polypod.validate.scores import Kind, Scored, by_kind, groups, score

_SCORES = ("n", "median", "mean", "bias", "within 10 %", "within 20 %", "inside the band", "band, high over low", "interval score")  # fmt: skip


def page(
    scored: Sequence[Scored],
    refused: Sequence[Refused],
    left_out: dict[str, Sequence[Scored]],
    points: Sequence[PredictedPoint],
) -> str:
    """All tables. `left_out` are rows of one system, predicted without that system's own kernels."""
    parts = [_HEAD, "## In all", _overall(scored), _BANDS]
    parts += ["## With a system left out", _LEFT_OUT]
    parts.append(_table("left out", {name: list(rows) for name, rows in left_out.items()}))
    parts += ["## Single published figures", _POINTS, _points(points)]
    parts += ["## By system, engine and model", _cells(scored), _not_predicted(scored, refused)]
    return "\n\n".join(parts) + "\n"


def _points(points: Sequence[PredictedPoint]) -> str:
    rows = []
    for one in points:
        point = one.point
        about = f"{point.model.rpartition('/')[2]} on {point.chip}: {point.conditions}"
        if one.predicted is None or one.error is None:
            rows.append((point.id, point.metric, f"{point.value:.5g}", "", "", "", one.reason, point.source))  # fmt: skip
            continue
        band = f"{one.low:.4g} to {one.high:.4g}{'' if one.is_inside else ', outside'}"
        rows.append((point.id, point.metric, f"{point.value:.5g}", f"{one.predicted:.5g}", f"{one.error:+.0%}", band, f"{about}; {one.evidence}", point.source))  # fmt: skip
    header = ("point", "metric", "measured", "predicted", "error", "band", "what", "source")
    return markdown_text(header, rows)


_KINDS: Final[dict[Kind, str]] = {
    ("agg", False): "co-located",
    ("agg", True): "co-located, drafting",
    ("disagg", False): "prefill and decode apart",
    ("disagg", True): "prefill and decode apart, drafting",
}


def kinds(scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    """Rows by how they were served, in the page's words."""
    return {_KINDS[kind]: found for kind, found in by_kind(scored).items()}


def _overall(scored: Sequence[Scored]) -> str:
    return _table("rows", kinds(scored))


def _table(title: str, named: dict[str, list[Scored]]) -> str:
    rows = []
    for name, found in named.items():
        for metric in METRICS:
            one = score(found, metric)
            if one is not None:
                rows.append((
                    name, metric.upper(), one.n, f"{one.median_abs_error:.1%}", f"{one.mean_abs_error:.1%}", f"{one.bias:+.1%}",
                    f"{one.within_10:.0%}", f"{one.within_20:.0%}", f"{one.coverage:.0%}", f"{one.median_band_ratio:.2f}", f"{one.interval_score:.2f}",
                ))  # fmt: skip
    return markdown_text((title, "metric", *_SCORES), rows)


def _cells(scored: Sequence[Scored]) -> str:
    rows = []
    for one in groups(scored):
        for metric in METRICS:
            found = one.tpot if metric == "tpot" else one.ttft
            if found is not None:
                kind = f"{one.mode}{', drafting' if one.speculative else ''}"
                rows.append((
                    one.system, one.backend, one.model, kind, metric.upper(), found.n, f"{found.median_abs_error:.1%}", f"{found.bias:+.1%}",
                    f"{found.within_20:.0%}", f"{found.coverage:.0%}", one.evidence,
                ))  # fmt: skip
    header = ("system", "engine", "model", "kind", "metric", "n", "median", "bias", "within 20 %", "inside", "evidence")  # fmt: skip
    return markdown_text(header, rows)


def _not_predicted(scored: Sequence[Scored], refused: Sequence[Refused]) -> str:
    missing = [one for one in scored if one.prediction is None]
    total = len(scored) + len(refused)
    text = f"{total - len(missing) - len(refused)} of {total} rows are predicted. {len(refused)} lack a field that is needed, the concurrency"
    return f"{text}; {len(missing)} others are refused by the catalog or the layout."


_HEAD = """\
# Accuracy

Predicted beside measured, made by `python scripts/accuracy.py` and held by the suite to what the code says now. An error is |predicted / measured - 1|;
bias is the median of predicted over measured, less one. Measurements are the rows that ship (`src/polypod/validate/data/serving.csv`: public
InferenceX dumps and NVIDIA sweeps on H100 and B200, collected by ai-dynamo/aiconfigurator, Apache-2.0), each counted once. `polypod validate` prints the
same, and takes rows of your own.

What was fitted to what: kernel and collective curves to tables of kernels, none of them to a serving row. Of the constants of the serving model,
these were set while looking at these rows, so that the errors below are in sample for them: 20 ms of every TTFT, the gain of drafts by the number of
clients, which images drafted, and the bands. What a benchmark's scripts set (tokens streamed at once,
how often a scheduler looks for prompts, waits for a batch) is taken from the scripts."""

_BANDS = """\
A band is the range that should hold four of five measurements; its ends are the 10th and 90th percentile of measured over predicted of each kind of row
(`src/polypod/validate/data/bands.toml`), so its coverage here is in sample too."""

_POINTS = """\
From papers, blogs and documentation, each under the conditions that its source states; the band is that of the fast and the slow calibration. None was
fitted to, but the operators of the 910C, which are the CloudMatrix paper's. What lies outside, and why, as far as is known: prefill of experts on Hopper comes
out slow, because the kernel tables hold the engines' general expert kernels and not the grouped ones of large deployments, because exchanges
between nodes are timed as if nothing overlapped them, and because H20 is given H100's shares of a peak that is seven times as high; decode under vLLM-Ascend is
bound by launching kernels from the host, which no calibration of the 910C knows."""

_LEFT_OUT = """\
The system's own kernels are hidden and its rows predicted from another chip's curves under its own peaks, with the wider band of that evidence:
what to expect of a chip nobody has measured. No constant of the serving model is refitted, so this is not a test of those."""
