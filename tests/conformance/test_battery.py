"""Every probe against every recorded machine: the same battery for all vendors."""

from pathlib import Path

import pytest

from tests.conformance import battery, kit

CASES = [told for told in kit.cases() if told.case.library is None]
each = pytest.mark.parametrize("told", CASES, ids=[told.id for told in CASES])


@each
def test_a_recorded_machine_is_found_as_it_was(
    told: kit.Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    battery.is_found_as_it_was(told, tmp_path, kit.shipped(), monkeypatch)


@each
def test_an_answer_cut_anywhere_is_never_a_crash_and_never_a_device_that_was_not_there(
    told: kit.Told, tmp_path: Path
) -> None:
    battery.may_be_cut_anywhere(told, tmp_path, kit.shipped())


@each
def test_noise_in_an_answer_is_never_a_crash(told: kit.Told, tmp_path: Path) -> None:
    battery.may_be_noisy(told, tmp_path, kit.shipped(), seeds=8)
