"""Single published figures: read by line, predicted under their own conditions."""

from functools import cache
from pathlib import Path

import pytest

from polypod.cost.bands import band_of
from polypod.errors import FileError
from polypod.validate.point_bands import PredictedPoint, predict_point, tallies
from polypod.validate.points import COLUMNS, OPTIONAL, SERVING, has_points, read_points
from polypod.validate.shipped import shipped_points

GIVEN = {
    "id": "one", "chip": "nvidia-h200-sxm", "model": "meta-llama/Llama-3.1-8B", "weights": "bf16", "tp": "1", "metric": "decode_tokens_per_s",
    "value": "1000", "source": "a measurement", "sequences_per_rank": "64", "context_tokens": "2000",
}  # fmt: skip


@cache
def shipped() -> list[PredictedPoint]:
    """The points that ship, predicted once."""
    return shipped_points()


def written(tmp_path: Path, **changed: str) -> Path:
    row = GIVEN | changed
    path = tmp_path / "points.csv"
    names = (*COLUMNS, *(name for name in OPTIONAL if name in row))
    path.write_text(f"{','.join(names)}\n{','.join(row.get(name, '') for name in names)}\n")
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
        ({"source": ""}, r"line 2: source is empty; every point of decode_tokens_per_s needs one"),
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
    assert len(shipped()) == 253
    assert all((one.predicted is None) == bool(one.reason) for one in shipped())
    ids = [one.point.id for one in shipped()]
    assert len(set(ids)) == len(ids)


def test_what_lies_outside_its_band_is_explained_and_nothing_else_is() -> None:
    """An excuse that outlives its miss is stale."""
    found = shipped()
    assert [one.point.id for one in found if one.is_outside and not one.point.explained] == []
    assert [one.point.id for one in found if not one.is_outside and one.point.explained] == []


def test_the_cloudmatrix_serving_figures_are_inside_their_bands() -> None:
    found = {one.point.id: one for one in shipped() if one.point.id.startswith("cm384")}
    serving = [one for one in found.values() if one.point.metric in SERVING]
    assert len(serving) == 6
    assert [one.point.id for one in serving if not one.is_inside] == ["cm384-decode-15ms"]
    assert found["cm384-decode-kv4096"].error == pytest.approx(0, abs=0.05)


def test_a_file_of_the_first_columns_alone_is_still_read(tmp_path: Path) -> None:
    point = read_points(written(tmp_path))[0]
    assert point.explained == ""
    assert "m" not in point.numbers


def test_a_kernel_needs_no_model_and_serving_does(tmp_path: Path) -> None:
    kernel = {"model": "", "metric": "matmul_flops_per_s", "value": "800e12"}
    assert predict_point(read_points(written(tmp_path, **kernel))[0]).predicted
    with pytest.raises(FileError, match="line 2: model is empty; every point of decode"):
        read_points(written(tmp_path, model=""))


def test_serving_takes_the_wider_of_residuals_and_calibration_and_a_kernel_its_calibration(
    tmp_path: Path,
) -> None:
    """H200 has H100's kernels, the same family: the 80 % band of TPOT is of measured over predicted."""
    band = band_of("same family", "agg", "tpot")
    decode = predict_point(read_points(written(tmp_path))[0])
    assert decode.predicted is not None
    assert decode.low is not None
    assert decode.high is not None
    assert decode.low <= decode.predicted / band.high * 1.0001
    assert decode.high >= decode.predicted / band.low * 0.9999
    given = {"input_tokens": "1024", "output_tokens": "128", "concurrency": "4"}
    ttft = predict_point(read_points(written(tmp_path, metric="ttft_ms", value="50", **given))[0])
    assert ttft.predicted is not None
    assert ttft.high == pytest.approx(
        ttft.predicted * band_of("same family", "agg", "ttft").high, rel=0.3
    )
    assert ttft.holds(ttft.predicted * 2.0)
    kernel = predict_point(read_points(written(tmp_path, metric="matmul_flops_per_s"))[0])
    assert kernel.predicted is not None
    assert kernel.high is not None
    assert kernel.high < kernel.predicted * 1.2


def of(tmp_path: Path, metric: str, **given: str) -> float:
    changed = {"metric": metric, "sequences_per_rank": "", "context_tokens": ""} | given
    found = predict_point(read_points(written(tmp_path, **changed))[0])
    assert found.predicted is not None, found.reason
    return found.predicted


def test_matrices_stay_below_the_peak_and_small_ones_far_below(tmp_path: Path) -> None:
    """H200: 989 TFLOP/s in bf16, 4.8 TB/s; one row of 8,192 x 8,192 reads 134 MB for 134 MFLOP."""
    large = of(tmp_path, "matmul_flops_per_s")
    assert 0.5 * 989e12 < large < 989e12
    row = of(tmp_path, "gemm_flops_per_s", m="1", n="8192", k="8192")
    assert 0.4 * 4.8e12 < row < 4.8e12
    one, four = (of(tmp_path, "gemm_flops_per_s", m="4096", n="4096", k="7168", groups=n) for n in ("1", "4"))  # fmt: skip
    assert one <= four < 989e12


def test_decode_attention_of_a_long_cache_reads_at_the_memorys_pace(tmp_path: Path) -> None:
    given = {"sequences_per_rank": "64", "context_tokens": "32000"}
    read = of(tmp_path, "attention_bytes_per_s", **given)
    assert 0.5 * 4.8e12 < read < 4.8e12
    # of Llama-3.1-8B four queries read a key: 4 operations a query for the 4 bytes of a key and a value, 4 FLOP a byte
    assert of(tmp_path, "attention_flops_per_s", **given) == pytest.approx(4 * read, rel=0.01)
    assert 0.3 * 4.8e12 < of(tmp_path, "copy_bytes_per_s", buffer_bytes="1e9") < 4.8e12


def test_a_small_copy_waits_for_its_kernel(tmp_path: Path) -> None:
    """1 MB read and 1 MB written by a die of 1.6 TB/s, 65 % of it reached, after the 20 us of a vector kernel: 91 GB/s."""
    rate = of(tmp_path, "copy_bytes_per_s", chip="huawei-ascend-910c", buffer_bytes="1e6")
    assert rate == pytest.approx(2e6 / (20e-6 + 2e6 / (0.65 * 1.6e12)), rel=0.01)


def test_a_bus_counts_both_passes_of_an_all_reduce(tmp_path: Path) -> None:
    given = {"tp": "8", "buffer_bytes": "536870912"}
    seconds = of(tmp_path, "all_reduce_s", **given)
    assert of(tmp_path, "bus_bytes_per_s", **given) == pytest.approx(
        2 * 7 / 8 * 536870912 / seconds
    )
    assert of(tmp_path, "all_gather_s", **given) < seconds
    assert of(tmp_path, "all_to_all_s", **given) < seconds


def test_an_exchange_of_experts_hands_out_every_copy(tmp_path: Path) -> None:
    """Of DeepSeek-V3 in fp8, 128 tokens go to 8 experts each in 7,168 bytes, and come back in twice as many."""
    given = {"model": "deepseek-ai/DeepSeek-V3", "weights": "fp8", "tp": "1", "dp": "8", "ep": "8", "tokens_per_rank": "128"}  # fmt: skip
    for name, each in (("dispatch", 7168), ("combine", 2 * 7168)):
        seconds = of(tmp_path, f"{name}_s", **given)
        assert of(tmp_path, f"{name}_bytes_per_s", **given) == pytest.approx(128 * 8 * each / seconds)  # fmt: skip


def test_conditions_may_name_links_that_the_catalog_lacks(tmp_path: Path) -> None:
    metax = {"chip": "metax-c500", "tp": "4", "metric": "bus_bytes_per_s", "buffer_bytes": "1e9"}
    assert "links of known bandwidth join" in predict_point(read_points(written(tmp_path, **metax))[0]).reason  # fmt: skip
    linked = metax | {"link_ranks": "8", "link_bytes_per_s": "64e9"}
    assert 20e9 < of(tmp_path, linked.pop("metric"), **linked) < 64e9
    far = {"chip": "nvidia-h800-sxm", "tp": "16", "buffer_bytes": "1e9"}
    assert of(tmp_path, "all_reduce_s", network_bytes_per_s="50e9", **far) > of(
        tmp_path, "all_reduce_s", network_bytes_per_s="400e9", **far
    )


def test_no_step_is_shorter_than_launching_its_kernels_takes(tmp_path: Path) -> None:
    """A dense layer's ten kernels at 27 us each: 32 layers of Llama-3.1-8B take 8.6 ms where no graph is replayed."""
    given = {"input_tokens": "1000", "output_tokens": "1000", "concurrency": "1"}
    graph = of(tmp_path, "tpot_ms", **given)
    eager = of(tmp_path, "tpot_ms", eager="1", **given)
    assert graph < 27e-3 * 10 * 32 <= eager
    assert eager == pytest.approx(27e-3 * 10 * 32, rel=0.1)
    many = {**given, "concurrency": "512"}
    assert of(tmp_path, "tpot_ms", eager="1", **many) == pytest.approx(of(tmp_path, "tpot_ms", **many), rel=0.1)  # fmt: skip


def test_offline_throughput_is_that_of_the_batch_that_fits(tmp_path: Path) -> None:
    """Llama-3.1-8B keeps 131,072 bytes a token; H200 has 141 GB, 16 of them weights."""
    given = {"input_tokens": "1000", "output_tokens": "1000"}
    offline = of(tmp_path, "offline_output_tokens_per_s", **given)
    held = (141e9 * 0.9 - 16e9) / 131072 / 2000
    near = of(tmp_path, "output_tokens_per_s", concurrency=f"{held:.0f}", **given)
    assert offline == pytest.approx(near, rel=0.03)
    few = of(tmp_path, "offline_output_tokens_per_s", concurrency="8", **given)
    assert few == pytest.approx(of(tmp_path, "output_tokens_per_s", concurrency="8", **given))
    small = predict_point(
        read_points(
            written(
                tmp_path,
                metric="offline_output_tokens_per_s",
                model="meta-llama/Llama-3.1-405B",
                **given,
            )
        )[0]
    )
    assert "no sequence of 2000 tokens fits" in small.reason


def test_vendors_are_tallied_most_points_first_and_all_at_the_end() -> None:
    found = shipped()
    rows = {one.vendor: one for one in tallies(found)}
    assert list(rows)[-1] == "all"
    assert list(rows)[-2] == "all but NVIDIA"
    assert rows["all"].n == len(found)
    assert rows["all but NVIDIA"].n == len(found) - rows["NVIDIA"].n
    for one in rows.values():
        assert one.inside + one.explained + one.outside + one.not_predicted == one.n
        assert one.outside == 0
    others = rows["all but NVIDIA"]
    assert others.median_abs_error is not None
    assert others.median_abs_error < 0.25
    intel = rows["Intel"]
    assert (intel.n, intel.inside, intel.serving_abs_error) == (2, 2, None)


def test_large_expert_parallel_deepseek_on_hopper_is_predicted_within_a_sixth() -> None:
    """All whose experts are balanced: the profile and a day of DeepSeek's on H800, LMSYS's on H100."""
    found = {one.point.id: one for one in shipped()}
    for name in ("ds-h800-profile-prefill", "ds-h800-profile-decode", "ds-h800-production-decode", "lmsys-h100-prefill-balanced", "lmsys-h100-decode"):  # fmt: skip
        assert found[name].error == pytest.approx(0, abs=1 / 6)
        assert found[name].is_inside


def test_two_batches_are_read_from_their_column(tmp_path: Path) -> None:
    spread = {"chip": "nvidia-h100-sxm", "model": "deepseek-ai/DeepSeek-V3", "weights": "fp8", "tp": "", "dp": "32", "ep": "32",
              "sequences_per_rank": "256"}  # fmt: skip
    path = written(tmp_path, **spread)
    header, row = path.read_text().splitlines()
    both = tmp_path / "both.csv"
    both.write_text(f"{header},two_batches\n{row},yes\n")
    (one,), (two,) = read_points(path), read_points(both)
    assert (one.two_batches, two.two_batches) == (False, True)
    apart, together = predict_point(one).predicted, predict_point(two).predicted
    assert apart is not None
    assert together is not None
    assert apart < together
    both.write_text(f"{header},two_batches\n{row},maybe\n")
    with pytest.raises(
        FileError, match=r"line 2: two_batches is 'maybe'; accepted: yes, or nothing"
    ):
        read_points(both)
