"""Conditions of measured rows: what is mangled is repaired, what is missing is named by line."""

from pathlib import Path

import pytest

from polypod.errors import FileError
from polypod.validate.predict import predict
from polypod.validate.rows import COLUMNS, Row, read_rows, unique

GIVEN = {
    "id": "one", "silicon_data_source": "source_file=2026-03-25.csv; silicon_concurrency=128; measured=2026-03-25T16:34:14Z; image=x",
    "backend": "sglang", "model_path": "deepseek-ai/DeepSeek-R1", "system": "b200_sxm", "mode": "agg", "isl": "1024", "osl": "1024",
    "gemm_quant_mode": "fp8", "batch_size": "128", "tp_size": "8", "pp_size": "1", "attention_dp_size": "1", "moe_tp_size": "8",
    "moe_ep_size": "1", "silicon_ttft_ms": "1412.75", "silicon_tpot_ms": "28.5",
}  # fmt: skip


def written(tmp_path: Path, *rows: dict[str, str]) -> Path:
    lines = [",".join(COLUMNS)]
    lines += [",".join((GIVEN | row).get(name, "") for name in COLUMNS) for row in rows]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def one(tmp_path: Path, **changed: str) -> Row:
    rows, refused = read_rows(written(tmp_path, changed))
    assert refused == []
    return rows[0]


def test_a_plain_row_is_read_in_si_units_with_the_mean_of_drawn_lengths(tmp_path: Path) -> None:
    row = one(tmp_path)
    assert (row.workers.layout.tp, row.workers.layout.ep, row.concurrency) == (8, 1, 128)
    assert (row.ttft_s, row.tpot_s) == (pytest.approx(1.41275), pytest.approx(0.0285))
    assert row.input_tokens == pytest.approx(0.9 * 1024)
    assert row.repaired == ()


@pytest.mark.parametrize(
    ("tp", "dp", "moe", "layout"),
    [
        ("16", "1", ("4", "4"), (4, 1, 4)),  # 16 = 4 x 4 on four accelerators
        ("64", "1", ("8", "8"), (8, 1, 8)),
        ("1", "16", ("4", "4"), (1, 4, 4)),  # attention data-parallel over four
        ("8", "1", ("1", "8"), (8, 1, 8)),  # as it stands
        ("8", "1", ("2", "4"), (8, 1, 4)),  # two slices of each expert, four groups
        ("1", "8", ("1", "8"), (1, 8, 8)),
    ],
)
def test_a_size_that_was_multiplied_by_itself_is_divided_again(
    tmp_path: Path, tp: str, dp: str, moe: tuple[str, str], layout: tuple[int, int, int]
) -> None:
    row = one(tmp_path, tp_size=tp, attention_dp_size=dp, moe_tp_size=moe[0], moe_ep_size=moe[1])
    found = row.workers.layout
    assert (found.tp, found.dp, found.ep) == layout
    assert bool(row.repaired) == (moe[0] == moe[1])


def test_a_sweep_is_taken_as_it_stands_and_has_constant_lengths(tmp_path: Path) -> None:
    row = one(
        tmp_path,
        silicon_data_source="source_file=/x/aic-auto-gap-analysis/data/y.csv; silicon_concurrency=4",
        tp_size="4", moe_tp_size="2", moe_ep_size="2",
    )  # fmt: skip
    assert (row.workers.layout.tp, row.workers.layout.ep) == (4, 2)
    assert row.input_tokens == 1024


@pytest.mark.parametrize(
    ("backend", "source", "drafts"),
    [
        ("trtllm", "image=nvcr.io#nvidia/tensorrt-llm/release:1.2.0rc6.post3; measured=2026-02-01", True),
        ("trtllm", "image=nvcr.io/nvidia/tensorrt-llm/release:1.1.0rc2.post2; measured=2026-01-14", True),
        ("trtllm", "image=nvcr.io/nvidia/tensorrt-llm/release:1.1.0rc2.post2; measured=2025-12-15", False),
        ("trtllm", "db-dump/2026-04-27; image=tensorrt-llm/release:1.2.0rc6.post3; measured=2026-02-01", False),
        ("sglang", "image=tensorrt-llm/release:1.2.0rc6.post3; measured=2026-02-01", False),
    ],
)  # fmt: skip
def test_drafting_is_told_by_image_and_date_never_by_times(
    tmp_path: Path, backend: str, source: str, drafts: bool
) -> None:
    fast, slow = (
        one(tmp_path, backend=backend, silicon_data_source=source, silicon_tpot_ms=tpot)
        for tpot in ("1", "100")
    )
    assert fast.speculative is slow.speculative is drafts


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"isl": ""}, r"line 2: isl is empty; a number is needed"),
        ({"osl": "many"}, r"line 2: osl is 'many'; a number is needed"),
        ({"silicon_tpot_ms": "-1"}, r"line 2: silicon_tpot_ms is -1; it cannot be negative"),
        ({"mode": "both"}, r"line 2: mode is 'both'; accepted: agg, disagg"),
        ({"batch_size": "", "silicon_data_source": "mine"}, r"line 2: batch_size is empty and silicon_data_source has no"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_measurement_is_named_by_line_and_the_others_are_read(
    tmp_path: Path, changed: dict[str, str], says: str
) -> None:
    rows, refused = read_rows(written(tmp_path, changed, {"id": "two"}))
    assert [row.id for row in rows] == ["two"]
    assert [one.id for one in refused] == ["one"]
    assert refused[0].reason.startswith(says)


def test_a_file_without_a_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,isl\n1,2\n")
    with pytest.raises(
        FileError,
        match=r"rows\.csv: has no column silicon_data_source, backend, .* and 26 more; a header begins id,silicon_data_source",
    ):
        read_rows(path)


def test_the_same_times_on_the_same_system_are_one_measurement(tmp_path: Path) -> None:
    rows, _ = read_rows(
        written(tmp_path, {}, {"id": "again"}, {"id": "other", "silicon_ttft_ms": "9"})
    )
    assert [row.id for row in unique(rows)] == ["one", "other"]


def test_8_bit_weights_on_a_chip_without_their_arithmetic_are_widened_in_the_kernel(
    tmp_path: Path,
) -> None:
    asked = {"system": "a100_sxm", "model_path": "Qwen/Qwen3-32B", "backend": "vllm"}
    narrow = predict(one(tmp_path, **asked), own=False)
    wide = predict(one(tmp_path, **asked, gemm_quant_mode="bfloat16"), own=False)
    assert narrow.tpot_s < wide.tpot_s  # half the bytes
