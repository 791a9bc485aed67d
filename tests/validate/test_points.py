"""Single published figures: read by line, predicted under their own conditions."""

from pathlib import Path

import pytest

from polypod.errors import FileError
from polypod.validate.point_bands import predict_point
from polypod.validate.points import COLUMNS, has_points, read_points
from polypod.validate.shipped import shipped_points

GIVEN = {
    "id": "one", "chip": "nvidia-h200-sxm", "model": "meta-llama/Llama-3.1-8B", "weights": "bf16", "tp": "1", "metric": "decode_tokens_per_s",
    "value": "1000", "source": "a measurement", "sequences_per_rank": "64", "context_tokens": "2000",
}  # fmt: skip


def written(tmp_path: Path, **changed: str) -> Path:
    row = GIVEN | changed
    path = tmp_path / "points.csv"
    path.write_text(f"{','.join(COLUMNS)}\n{','.join(row.get(name, '') for name in COLUMNS)}\n")
    return path


def test_a_file_of_points_is_told_by_its_header(tmp_path: Path) -> None:
    assert has_points(written(tmp_path))
    rows = tmp_path / "rows.csv"
    rows.write_text("id,silicon_ttft_ms\n")
    assert not has_points(rows)


def test_decode_of_two_cards_in_tensor_parallel_is_shared_by_both(tmp_path: Path) -> None:
    one = predict_point(read_points(written(tmp_path))[0])
    two = predict_point(read_points(written(tmp_path, tp="2"))[0])
    assert one.predicted is not None
    assert two.predicted is not None
    assert one.predicted / 2 < two.predicted < one.predicted  # faster together, less each


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"metric": "mfu"}, r"line 2: metric is 'mfu'; accepted: decode_tokens_per_s"),
        ({"source": ""}, r"line 2: source is empty; every point needs one"),
        ({"value": "fast"}, r"line 2: value is 'fast'; a number is needed"),
        ({"tp": "-1"}, r"line 2: tp is -1; it has to be above 0"),
    ],
)
def test_a_broken_point_is_named_by_line(
    tmp_path: Path, changed: dict[str, str], says: str
) -> None:
    with pytest.raises(FileError, match=says):
        read_points(written(tmp_path, **changed))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sequences_per_rank": ""}, "needs sequences_per_rank, which is empty"),
        ({"chip": "nvidia-h900"}, "no accelerator is called 'nvidia-h900'"),
        ({"tp": "3"}, "tp=3"),
    ],
)
def test_a_point_that_cannot_be_predicted_says_why(
    tmp_path: Path, changed: dict[str, str], says: str
) -> None:
    found = predict_point(read_points(written(tmp_path, **changed))[0])
    assert found.predicted is None
    assert says in found.reason


def test_every_shipped_point_is_predicted_or_says_why() -> None:
    found = shipped_points()
    assert len(found) == 79
    assert all((one.predicted is None) == bool(one.reason) for one in found)


def test_the_cloudmatrix_figures_are_inside_their_bands() -> None:
    found = {one.point.id: one for one in shipped_points() if one.point.id.startswith("cm384")}
    assert len(found) == 5
    assert all(one.is_inside for one in found.values())
    assert found["cm384-decode-kv4096"].error == pytest.approx(0, abs=0.05)
