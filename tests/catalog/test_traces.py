"""Kept traces: found again by what they were made of, and by nothing else."""

from pathlib import Path

import pytest

from polypod.catalog.traces import installed, keep_trace, read_trace, trace_path

VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0"}


def test_what_is_kept_is_found_whatever_the_order_of_the_keys():
    path = trace_path({"model_type": "a", "hidden_size": 4}, VERSIONS)
    keep_trace(path, b"{}")
    assert read_trace(trace_path({"hidden_size": 4, "model_type": "a"}, VERSIONS)) == b"{}"
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("config", "versions"),
    [({"model_type": "b"}, VERSIONS), ({"model_type": "a"}, VERSIONS | {"torch": "2.14.0"})],
)
def test_another_config_or_version_is_another_trace(
    config: dict[str, str], versions: dict[str, str]
):
    assert trace_path(config, versions) != trace_path({"model_type": "a"}, VERSIONS)


def test_nothing_kept_is_none():
    assert read_trace(trace_path({"model_type": "never"}, VERSIONS)) is None


def test_a_folder_that_cannot_be_made_costs_nothing_but_time(tmp_path: Path):
    (tmp_path / "file").write_text("")
    keep_trace(tmp_path / "file" / "trace" / "x.json", b"{}")
    assert read_trace(tmp_path / "file" / "trace" / "x.json") is None


def test_versions_are_of_both_packages_or_none():
    found = installed()
    assert found is None or set(found) == {"torch", "transformers"}
