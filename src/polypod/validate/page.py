"""The accuracy page: what is measured, what is predicted, and how far apart, as Markdown."""

from collections.abc import Sequence
from typing import Final

from polypod.cost.bands import METRICS
from polypod.report.export import markdown_text
from polypod.validate.beside import Beside
from polypod.validate.held_out import HeldOut
from polypod.validate.held_out_play import HEADER, kept_lines
from polypod.validate.point_bands import PredictedPoint, tallies
from polypod.validate.rows import Refused
from polypod.validate.scores import Kind, Scored, by_kind, groups, score, worst
from polypod.validate.why import Reasons

_SCORES = ("n", "median", "mean", "bias", "within 10 %", "within 20 %", "inside the band", "band, high over low", "interval score")  # fmt: skip


def page(
    scored: Sequence[Scored],
    refused: Sequence[Refused],
    left_out: dict[str, Sequence[Scored]],
    few: HeldOut,
    points: Sequence[PredictedPoint],
    of_play: Sequence[Beside],
) -> str:
    """All tables. `left_out` are rows of one system, predicted without that system's own kernels; `few` are those of cells calibrated on three rows each, `of_play` scores of rows played request by request."""
    parts = [_HEAD, "## In all", _overall(scored), _BANDS]
    parts += ["## Played request by request", _PLAYED, _beside(of_play), _FAIR, _fair(), _FAIR_SAID]
    parts += ["## With a system left out", _LEFT_OUT]
    parts.append(_table("left out", {name: list(rows) for name, rows in left_out.items()}))
    parts += ["## With three rows of one's own", _few(few)]
    parts.append(_table("rows not calibrated on", {"as they are": list(few.before), "calibrated": list(few.after)}))  # fmt: skip
    parts += ["## Single published figures", _POINTS, _vendors(points), _points(points)]
    parts += ["## By system, engine and model", _cells(scored), _not_predicted(scored, refused)]
    parts += ["## Farthest off", _FARTHEST, _farthest(scored)]
    return "\n\n".join(parts) + "\n"


def _farthest(scored: Sequence[Scored]) -> str:
    reasons = Reasons(scored)
    rows = [
        (
            metric.upper(), f"{ratio:.2g}", one.row.system, one.row.backend, one.row.model, f"{one.row.concurrency:g}", f"{one.row.line}",
            reasons.of(one, metric),
        )
        for metric in METRICS
        for one, ratio in worst(scored, metric, 10)
    ]  # fmt: skip
    return markdown_text(("metric", "predicted over measured", "system", "engine", "model", "clients", "line", "reason"), rows)  # fmt: skip


def _beside(lines: Sequence[Beside]) -> str:
    rows = [
        (
            one.name, one.metric.upper(), one.formula.n, f"{one.formula.median_abs_error:.1%}", f"{one.formula.within_20:.0%}", f"{one.formula.bias:+.1%}",
            f"{one.as_sent.median_abs_error:.1%}", f"{one.of_play.median_abs_error:.1%}", f"{one.of_play.within_20:.0%}", f"{one.of_play.bias:+.1%}",
        )
        for one in lines
    ]  # fmt: skip
    header = ("rows", "metric", "n", "median, formula", "within 20 %", "bias", "median, formula as sent", "median, played", "within 20 %", "bias")  # fmt: skip
    return markdown_text(header, rows)


def _fair() -> str:
    return markdown_text(HEADER, kept_lines())


def _few(few: HeldOut) -> str:
    return _FEW.format(cells=few.cells, draws=few.draws)


def _points(points: Sequence[PredictedPoint]) -> str:
    header = (
        "point",
        "metric",
        "measured",
        "predicted",
        "error",
        "band",
        "what",
        "explained",
        "source",
    )
    return markdown_text(header, [_point(one) for one in points])


def _point(one: PredictedPoint) -> tuple[str, ...]:
    point = one.point
    about = f"{point.model.rpartition('/')[2] or point.weights} on {point.chip}: {point.conditions}"
    known = (point.id, point.metric, f"{point.value:.5g}")
    if one.predicted is None or one.error is None:
        return (*known, "", "", "", about, f"not predicted: {one.reason}", point.source)
    band = f"{one.low:.4g} to {one.high:.4g}{'' if one.is_inside else ', outside'}"
    return (
        *known,
        f"{one.predicted:.5g}",
        f"{one.error:+.0%}",
        band,
        f"{about}; {one.evidence}",
        point.explained,
        point.source,
    )


def _vendors(points: Sequence[PredictedPoint]) -> str:
    rows = [
        (
            one.vendor, one.n, _share(one.median_abs_error), _share(one.serving_abs_error),
            one.inside, one.explained, one.outside, one.not_predicted,
        )
        for one in tallies(points)
    ]  # fmt: skip
    header = ("vendor", "n", "median error", "of serving", "inside", "outside, explained", "outside, not explained", "not predicted")  # fmt: skip
    return markdown_text(header, rows)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


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
these were set while looking at these rows, so that the errors below are in sample for them: 20 ms of every TTFT, what launching a kernel takes in each engine and
how many a layer launches, how unevenly experts are chosen where training did not even them, the gain of drafts by the number of
clients, which images drafted, and the bands. What a benchmark's scripts set (tokens streamed at once,
how often a scheduler looks for prompts, waits for a batch) is taken from the scripts."""

_BANDS = """\
A band is the range that should hold four of five measurements; its ends are the 10th and 90th percentile of measured over predicted of each kind of row
(`src/polypod/cost/data/bands.toml`), so its coverage here is in sample too."""

_PLAYED = """\
`polypod validate --simulate` plays each row's benchmark on the emulated engines: its clients go round, request by request, with the same step times, lengths drawn as the
benchmark draws them, a cache as large as the memory leaves, and what scripts and engines' defaults say of scheduling
(`src/polypod/validate/scheduling.py`). Of the constants above it takes the 20 ms and the launching of kernels over from the closed form, as a wait before the engine; how long a
prompt waits for others comes of the play, where the formula has a constant for dumps (1.2 prompts) and one for sweeps (2.7). Dumps are InferenceX's runs, sweeps NVIDIA's.
Only rows that were played are in any column.

Of sweeps the formula has two constants that were set while looking at TTFT of these very rows: the 2.7 prompts, and 8.5 requests a client. The play has neither: clients that come back in step wait for
each other's prompts by themselves, and how many requests were sent is told by the measured means, which times the requests are whole nanoseconds: 20 a client, at most 2,000 in all, with TensorRT-LLM
and SGLang, 10 with vLLM. All are of one length, and a chat's template is around each. "Formula as sent" is the formula under that load, with the 1.2 prompts of dumps, and with the cache
of 8 bits that sweeps of weights of 8 bits were run with.

What the play has beside that is in `src/polypod/validate/host.py`. Tokenising a prompt is of all rows and published, 2.2 us a token. Of two engines' sweeps it has what the host takes, set on their
TPOT and never on a TTFT: with TensorRT-LLM 1.0.0rc3, a step with a prompt is launched layer by layer and takes 0.8 ms for each at least, and one prompt and 1,000 tokens (and one a client) are the most of a
step, where aiconfigurator's code has 1,500; with vLLM 0.12, which makes a batch after the step before it, 1.5 ms go by between steps and 40 us for each sequence."""

_FAIR = """\
The same with like freedom for both: the constants of each are set again without the model, the layout, the engine or the system that is judged, the formula's two on TTFT of the other sweeps, the
play's on TPOT of the other rows of the same engine and version. Where none is left the formula has those of dumps and the play none. Both read the cache of 8 bits. "And tokenising" is the formula with those 2.2 us added, and set
with them. `python scripts/accuracy.py --held-out` makes this table, in a minute; `played` with nothing left out is as above."""

_FAIR_SAID = """\
So the play foretells a model or a layout that it was not set on better than the formula does, TTFT and TPOT. With an engine or the H100 left out it knows nothing of their hosts: its TPOT is then as near as the formula's or a
little less, its TTFT nearer than the formula's, but for the one with tokenising where an engine is left out. (Without the H100, nine sweeps are left to set the formula on.) Held out are the sizes of
these times. That there are such times, and with which engines, was found with all rows in sight, TTFT among them.

What it lacks, looked at row by row:

* Llama-3.1-8B under TensorRT-LLM: its TTFT grows with the length of the answer, by about as many whole answers in all with 8 clients as with 32, and one or two of its requests are missing
  from means of 32 clients and more. That speaks for answers that the client takes long to see the beginning of, and not for waiting in the engine; no row says why.
* With 128 clients Llama-3.1-8B gives no more tokens a second on eight chips than on four, while TTFT grows to seconds: a front end that is full. One server in series with the engine, at a cost a token,
  gives the tokens a second of answers of 256 and 512, but not those of 128, which are half as many, and less than half of the wait. It was tried and is not kept; what a token costs such a front end is on record nowhere.
* Prompts of 128 and 256 tokens of Qwen3-235B-A22B wait as long as those of 512, longer than played by a launch of all its layers: a first token may leave only when the step after it is launched.
* TPOT of SGLang's sweeps is played short, and the formula's is long: their prompts are computed together while nobody decodes, so that what is left are decode steps, which are short in both.
* Engines that schedule ahead do so: without the step more that a prompt waits for, TensorRT-LLM's TTFT is played far too short. With vLLM's default of 8,192 tokens a step in the
  place of what aiconfigurator asks for its sweeps would be played far too long: they were not run so.
* How a wait before the engine is spread decides who comes back in step with whom. A fixed one makes prompts of 4,096 wait as measured and those of 1,024 under vLLM too long; none fits all, and
  the two waits in series that are drawn were not chosen by score.
* Dumps of SGLang without a version wait some seconds in the mean from four clients up, as if the first of each had met an engine that still compiled; those of 0.5.9 are within a tenth or two.
* Where TPOT says that prompts take longer than their kernels (Llama-3.1-70B in FP8 and gpt-oss under vLLM, prompts of 8,192), the formula and the play are short alike: step times, not waiting."""

_POINTS = """\
From papers, blogs, documentation and continuous integration, each under the conditions that its source states; what is assumed is said. The band of a
kernel or an exchange is that of the fast and the slow calibration; that of serving is the wider, at each end, of this and of the 80 % band of what the
prediction rests on. Of serving figures, those of vllm-ascend on the 910C set how much slower than
published kernels that engine's steps are; no other was fitted to. Kernels were: the 910C's are the CloudMatrix paper's, those of the 910B, MI300X, MI355X and Gaudi 3
are figures below, and NCCL's curves are of the tables quoted; how much two batches hide is set to
what LMSYS gains by them, the ratio of runs with and without. Those points are in sample and say so: read the median of serving beside the median of
all. What lies outside its band says why, as far as is known. `polypod validate --points` prints the same."""

_FARTHEST = """\
The ten rows farthest off of each metric, with what speaks against them; a reason looks at the measurement, a prediction never does. Of clean runs none was
repeated in this set, so how well measurements repeat, the floor under all errors, is not known from it."""

_LEFT_OUT = """\
The system's own kernels are hidden and its rows predicted from another chip's curves under its own peaks, with the wider band of that evidence:
what to expect of a chip nobody has measured. No constant of the serving model is refitted, so this is not a test of those."""

_FEW = """\
What `polypod calibrate` makes of three rows: of each of the {cells} cells (system, model, engine, precision) with twelve or more plain co-located rows, three
are drawn, one each of low, middle and high concurrency, and the rest predicted, with and without the calibration. {draws} draws, so each row counts
up to {draws} times. The width of the bands and the weight of few rows are set on these cells; factors are not. The mean is that of a few rows far off."""
