"""What every test has: a catalog without anybody's own files in it."""

from pathlib import Path

import pytest

from polypod.catalog.load import FOLDERS_VARIABLE, forget_own, read_instead


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
