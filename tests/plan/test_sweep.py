"""Sweep files: which points they ask for, what they refuse, and that an answer is the planner's own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from polypod.cli.main import main
from polypod.errors import FileError
from polypod.plan.sweep import COLUMNS, Point, answer, read_sweep
from polypod.plan.version import data_version

File = Callable[[str], Path]


@pytest.fixture
def file(tmp_path: Path) -> File:
    def write(text: str) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_product_without_what_is_skipped_is_the_list_worked_by_hand(file: File) -> None:
    asked = read_sweep(
        file("""
            model: [a, b]
            on: x
            input: [1k, 2000]
            tpot: [20 ms, null]
            skip:
              - {model: a, input: [2000]}
              - {model: b, tpot: null, input: 1000}
            also:
              - {model: a, input: 2k, tpot: 0.05 s}
              - {model: b, input: 1000, tpot: 20ms}
            """)
    )
    assert [(one.model, one.on, one.input_tokens, one.tpot_limit_s) for one in asked] == [
        ("a", "x", 1000, 0.02),
        ("a", "x", 1000, None),
        ("b", "x", 1000, 0.02),
        ("b", "x", 2000, 0.02),
        ("b", "x", 2000, None),
        ("a", "x", 2000, 0.05),  # also; its twin of `b` is there already
    ]


def test_every_key_is_read_in_its_own_unit(file: File) -> None:
    (point,) = read_sweep(
        file("""
            {model: a, on: x+y:2, input: 4k, output: 10, ttft: 1500 ms, tpot: 50ms, rate: 120 /min, backend: vllm,
             engine_args: prefill=exclusive}
            """)
    )
    assert point == Point(
        model="a",
        on="x+y:2",
        input_tokens=4000,
        output_tokens=10,
        ttft_limit_s=1.5,
        tpot_limit_s=0.05,
        rate_per_s=2.0,
        backend="vllm",
        engine_args="prefill=exclusive",
    )


def test_what_is_not_said_is_what_plan_takes(file: File) -> None:
    (point,) = read_sweep(file("{model: a, on: x}"))
    assert point == Point(model="a", on="x", input_tokens=1024, output_tokens=256)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{model: a, on: x, inputs: 1}", r"unknown field `inputs`"),
        ("{model: a}", r"has no `on`: .* - at `\$`"),
        ("{model: [], on: x}", r"is an empty list, .* leave the key out - at `\$.model`"),
        ("{model: a, on: x, input: [1, 0]}", r"0 is no count of tokens; .* - at `\$.input\[1\]`"),
        ("{model: a, on: x, input: 1.5}", r"`\$.input`"),
        ("{model: a, on: x, ttft: [1 s, 2]}", r"got `int` - at `\$.ttft\[1\]`"),
        ("{model: a, on: x, ttft: [1 s, '2']}", r"'2' has no unit; .* - at `\$.ttft\[1\]`"),
        ("{model: a, on: x, rate: 0}", r"0.* asks for nothing; .* - at `\$.rate`"),
        ("{model: a, on: x, rate: .nan}", r"- at `\$.rate`"),
        ("{model: a, on: x, backend: tgi}", r"no engine is called 'tgi'; there are .*vllm.* - at `\$.backend`"),
        ("{model: a, on: x, engine_args: stream_interval=3}", r"stream_interval moves no plan.* - at `\$.engine_args`"),
        ("{model: a, on: x, skip: [{}]}", r"says nothing.* - at `\$.skip\[0\]`"),
        ("{model: a, on: x, skip: [{model: b}]}", r"matches no point .* - at `\$.skip\[0\]`"),
        ("{model: a, on: x, skip: [{model: a}]}", r"leaves no point .* - at `\$.skip`"),
        ("{model: a, on: x, also: [{model: [a, b]}]}", r"lists 2 of `model`; give one - at `\$.also\[0\]`"),
        ("{model: [a, b], on: x, also: [{on: y}]}", r"does not say, and the file lists 2 of, `model`.* - at `\$.also\[0\]`"),
        ("{model: [a, '']\n", r"is not YAML"),
        ("{model: [a, ' '], on: x}", r"is empty; give a name - at `\$.model\[1\]`"),
    ],
)  # fmt: skip
def test_a_slip_of_the_pen_is_named_with_its_place(file: File, text: str, says: str) -> None:
    with pytest.raises(FileError, match=says):
        read_sweep(file(text))


def test_a_product_over_the_limit_is_refused_before_it_is_made_and_yes_lifts_it(file: File) -> None:
    many = file(f"{{model: [a, b], on: x, input: {list(range(1, 51))}, output: [1, 2]}}")
    with pytest.raises(FileError, match=r"2 model x 50 input x 2 output = 200 points, over the limit of 199; .*--yes"):  # fmt: skip
        read_sweep(many, 199)
    assert len(read_sweep(many, 200)) == len(read_sweep(many, None)) == 200


ASKED = Point(
    model="llama-3.1-8b", on="nvidia-h200-sxm:2", ttft_limit_s=1.0, tpot_limit_s=0.03, rate_per_s=3.0
)  # fmt: skip


def test_an_answer_is_what_polypod_plan_prints(capsys: pytest.CaptureFixture[str]) -> None:
    row = answer(ASKED)
    words = ("plan", ASKED.model, "--on", ASKED.on, "--ttft", "1s", "--tpot", "30ms", "--rate", "3 /s")  # fmt: skip
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (pool,) = found["pools"]
    assert row["status"] == "ok"
    assert row["goodput_per_s"] == pool["goodput_per_s"]
    assert row["output_tokens_per_s"] == pytest.approx(found["plan"]["predicted"]["tokens_per_s"], abs=0.1)  # fmt: skip
    assert row["output_tokens_per_s_per_accelerator"] == pytest.approx(pool["output_tokens_per_s_per_accelerator"])  # fmt: skip
    for what in ("ttft", "tpot"):
        assert row[f"{what}_p50_s"] == pool[f"{what}_s"]["p50"]
        assert row[f"{what}_p99_s"] == pool[f"{what}_s"]["p99"]
        assert row[f"{what}_low_s"] == pool[f"{what}_s"]["p50"] * pool["band"][what]["low"]
        assert row[f"{what}_high_s"] == pool[f"{what}_s"]["p50"] * pool["band"][what]["high"]
    assert (row["replicas"], row["accelerators"]) == (pool["replicas"], pool["accelerators"])
    assert row["sequences_per_replica"] == pool["sequences_per_replica"]
    assert (row["evidence"], row["layout"]) == (pool["evidence"], "tp1")
    assert row["power_w"] == found["plan"]["predicted"]["watts"]


def test_unlike_pools_are_summed_and_the_slowest_one_gives_the_times() -> None:
    whole, one, other = (
        answer(Point(model="llama-3.1-8b", on=on, ttft_limit_s=1.0, tpot_limit_s=0.03))
        for on in ("nvidia-h200-sxm:1+nvidia-h100-sxm:2", "nvidia-h200-sxm:1", "nvidia-h100-sxm:2")
    )
    assert whole["goodput_per_s"] == pytest.approx(one["goodput_per_s"] + other["goodput_per_s"])  # type: ignore[operator]
    assert whole["accelerators"] == 3
    assert whole["output_tokens_per_s_per_accelerator"] == pytest.approx(
        whole["goodput_per_s"] * 256 / 3
    )  # type: ignore[operator]
    assert whole["ttft_p99_s"] == max(one["ttft_p99_s"], other["ttft_p99_s"])  # type: ignore[type-var]
    assert whole["layout"] == f"{one['layout']} + {other['layout']}"


@pytest.mark.parametrize(
    ("point", "status", "says"),
    [
        (Point(model="llama-3.1-8b", on="nvidia-h200-sxm:1", tpot_limit_s=1e-6), "infeasible", "nearest is"),
        (Point(model="llama-3.1-9b", on="nvidia-h200-sxm:1"), "error", "no model is called 'llama-3.1-9b'"),
        (Point(model="llama-3.1-8b", on="nvidia-h201-sxm:1"), "error", "nearest: nvidia-h200-sxm"),
    ],
)  # fmt: skip
def test_what_has_no_plan_is_a_row_with_the_reason(point: Point, status: str, says: str) -> None:
    row = answer(point)
    assert row["status"] == status
    assert says in str(row["reason"])
    assert list(row) == list(COLUMNS)
    assert row["goodput_per_s"] is None


def test_every_row_has_the_columns_in_their_order_and_of_their_kind() -> None:
    row = answer(ASKED)
    assert list(row) == list(COLUMNS)
    assert all(row[name] is None or type(row[name]) is kind for name, kind in COLUMNS.items())


def test_an_entry_of_ones_own_makes_another_version_of_the_data(own_catalog: Path, tmp_path: Path) -> None:  # fmt: skip
    before = data_version()
    assert data_version() == before
    (own_catalog / "pods").mkdir(parents=True)
    (own_catalog / "pods" / "mine.toml").write_text("x = 1")
    assert (once := data_version()) != before
    (own_catalog / "pods" / "mine.toml").write_text("x = 2")
    assert data_version() not in {before, once}


def test_a_model_by_path_counts_with_its_file(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    before = data_version([str(tmp_path)])
    assert data_version([str(config)]) == before
    config.write_text("[]")
    assert data_version([str(tmp_path)]) != before
