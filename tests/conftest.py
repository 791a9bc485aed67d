"""What every test has: a catalog without anybody's own files in it."""

from pathlib import Path

import pytest

from polypod.catalog.load import FOLDERS_VARIABLE, forget_own, read_instead


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start engines go first, so that no process of tests is left alone with one at the end."""
    waits = {item.path for item in items if item.get_closest_marker("engines")}
    waits |= {item.path for item in items if item.path.parent.name == "parity"}
    items.sort(key=lambda item: item.path not in waits)


@pytest.fixture(autouse=True)
def _no_own_catalog(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.delenv(FOLDERS_VARIABLE, raising=False)
    read_instead.clear()
    forget_own()


@pytest.fixture
def own_catalog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A person's own catalog folder, empty."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "polypod" / "catalog"
