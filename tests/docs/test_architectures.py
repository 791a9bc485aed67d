"""The page of architectures is what the kept traces say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from polypod.workload.traced_kept import read_kept

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "architectures", ROOT / "scripts" / "architectures.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_written_from_the_kept_traces(script: ModuleType) -> None:
    rows = read_kept(script.KEPT.read_bytes()).rows
    assert script.page(rows) == script.PAGE.read_text(encoding="utf-8")
