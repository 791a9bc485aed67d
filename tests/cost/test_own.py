"""A person's own calibrations as a file: kept whole, read by line, taken out."""

from pathlib import Path

import pytest

from polypod.cost.own import OwnFit, OwnMetric, keep, own_fit, own_fits, remove, scale
from polypod.errors import FileError

METRIC = OwnMetric(rows=3, factor=1.25, log_low=-0.1, log_high=0.125)
FIT = OwnFit(
    chip="nvidia-h100-sxm", model="Qwen/Qwen3-32B", engine="vllm", precision="fp8", versions=("0.11.0",),
    source='a "quoted" \\ name, 昇腾.csv', date="2026-01-01", tpot=METRIC,
)  # fmt: skip
OTHER = OwnFit(chip="nvidia-h20", model="Qwen/Qwen3-32B", engine="vllm", precision="fp8", ttft=METRIC)  # fmt: skip


def changed(text: str, before: str, after: str) -> str:
    assert before in text
    return text.replace(before, after, 1)


def test_what_is_kept_is_what_is_read(own_catalog: Path) -> None:
    assert own_fits() == {}
    assert keep([FIT, OTHER]) == own_catalog / "calibrations.toml"
    assert own_fits() == {FIT.key: FIT, OTHER.key: OTHER}


@pytest.mark.usefixtures("own_catalog")
def test_keeping_a_fit_again_takes_its_place_and_leaves_the_others() -> None:
    keep([FIT, OTHER])
    newer = OwnFit(chip=FIT.chip, model=FIT.model, engine=FIT.engine, precision=FIT.precision, ttft=METRIC)  # fmt: skip
    keep([newer])
    assert own_fits() == {FIT.key: newer, OTHER.key: OTHER}


@pytest.mark.usefixtures("own_catalog")
def test_the_scale_is_the_factor_of_the_tpot_and_1_without_one() -> None:
    keep([FIT, OTHER])
    assert scale("nvidia-h100-sxm", "Qwen/Qwen3-32B", "vllm") == 1.25
    assert scale("nvidia-h20", "Qwen/Qwen3-32B", "vllm") == 1.0
    assert scale("nvidia-h100-sxm", "Qwen/Qwen3-32B", "sglang") == 1.0


@pytest.mark.usefixtures("own_catalog")
def test_without_a_precision_the_fit_of_most_rows_is_taken() -> None:
    many = OwnMetric(rows=9, factor=0.9, log_low=-0.1, log_high=0.1)
    wide = OwnFit(chip=FIT.chip, model=FIT.model, engine=FIT.engine, precision="bf16", tpot=many)
    apart = OwnFit(chip=FIT.chip, model=FIT.model, engine=FIT.engine, precision="bf16", kind="disagg", tpot=OwnMetric(rows=99, factor=0.5, log_low=-0.1, log_high=0.1))  # fmt: skip
    keep([FIT, wide, apart])
    names = (FIT.chip, FIT.model, FIT.engine)
    assert own_fit(*names) == wide
    assert own_fit(*names, "fp8") == FIT
    assert own_fit(*names, kind="disagg") == apart
    assert own_fit(*names, "int8") is None
    assert scale(*names, "fp8") == 1.25


@pytest.mark.usefixtures("own_catalog")
def test_what_is_removed_is_gone_and_nothing_else_is() -> None:
    keep([FIT, OTHER])
    assert [fit for _, fit in remove(*FIT.key[:3])] == [FIT]
    assert remove(*FIT.key[:3]) == []
    assert own_fits() == {OTHER.key: OTHER}


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("factor = 1.25", "factor = -1", r"calibrations\.toml: line 13: factor is -1; it is measured over predicted, above 0"),
        ("factor = 1.25", 'factor = "fast"', r"line 15: Expected `float`, got `str`"),
        ("log_low = -0.1", "log_low = 0.3", r"line 13: log_low and log_high are 0\.3 and 0\.125"),
        ("engine =", "engines =", r"line 7: Object contains unknown field `engines`"),
        ('engine = "vllm"\n', "", r"line 4: Object missing required field `engine`"),
        ('chip = "nvidia-h20"', "chip = 20", r"line 20: Expected `str`, got `int`"),
        ("rows = 3", "rows = ", r"is not TOML: Invalid value \(at line 14"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_by_line(
    own_catalog: Path, before: str, after: str, says: str
) -> None:
    path = keep([FIT, OTHER])
    path.write_text(changed(path.read_text(encoding="utf-8"), before, after), encoding="utf-8")
    with pytest.raises(FileError, match=says):
        own_fits()
    text = (own_catalog / "calibrations.toml").read_text(encoding="utf-8")
    with pytest.raises(FileError, match=says):  # and nothing is written over it
        keep([OTHER])
    assert path.read_text(encoding="utf-8") == text


def test_what_cannot_be_written_leaves_the_file_as_it_was(
    own_catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep([FIT])

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FileError, match=r"calibrations\.toml: cannot be written: No space left"):
        keep([OTHER])
    assert own_fits() == {FIT.key: FIT}
    assert [file.name for file in own_catalog.iterdir()] == ["calibrations.toml"]


def test_a_text_with_any_character_is_read_back(own_catalog: Path) -> None:
    odd = OwnFit(chip="a", model="b", engine="c", precision="d", source="tab\t del\x7f nul\x00 \udc80 \U0001f600")  # fmt: skip
    keep([odd])
    (found,) = own_fits().values()
    assert found.source == "tab\t del\x7f nul\x00 ? \U0001f600"
    assert own_catalog.exists()
