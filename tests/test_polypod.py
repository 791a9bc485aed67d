"""The package's front door."""

import subprocess
import sys

import pytest

import polypod


def test_every_public_name_is_there_and_listed() -> None:
    for name in polypod.__all__:
        assert getattr(polypod, name) is not None
    assert set(polypod.__all__) <= set(dir(polypod))
    assert polypod.__all__ == sorted(polypod.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'plan_everything'"):
        _ = polypod.plan_everything


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_importing_polypod_imports_nothing_heavy() -> None:
    assert not loaded_by("import polypod") & {"numpy", "msgspec", "yaml", "aiohttp", "asyncio"}


def test_help_imports_nothing_heavy() -> None:
    code = "import polypod.cli.main as m\ntry: m.main(['--help'])\nexcept SystemExit: pass"
    assert not loaded_by(code) & {"numpy", "yaml", "aiohttp", "asyncio", "uvicorn"}
