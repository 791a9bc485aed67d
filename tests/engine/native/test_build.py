"""C that is compiled once on a machine: kept by what it is made of, and refused in words where it cannot be made."""

import os
from pathlib import Path

import pytest

from polypod.engine.native import build
from polypod.errors import RunError

pytestmark = pytest.mark.skipif(
    not (build.compiler() and build.has_headers()), reason="no C compiler, or no headers"
)

SOURCE = """
#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "polypod_tiny", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_polypod_tiny(void)
{
    PyObject *made = PyModule_Create(&definition);
    PyModule_AddIntConstant(made, "answer", ANSWER);
    return made;
}
"""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "polypod"


def tiny(folder: Path, answer: str = "42") -> Path:
    source = folder / "tiny.c"
    source.write_text(SOURCE.replace("ANSWER", answer))
    return source


def test_a_module_is_compiled_once_and_again_when_its_source_is_another(tmp_path, cache):
    source = tiny(tmp_path)
    assert build.extension("polypod_tiny", source).answer == 42
    (kept,) = cache.iterdir()
    written = kept.stat().st_mtime_ns

    assert build.extension("polypod_tiny", source).answer == 42
    assert kept.stat().st_mtime_ns == written
    tiny(tmp_path, "43")
    build.extension("polypod_tiny", source)
    assert len(list(cache.iterdir())) == 2


def test_a_header_beside_it_counts_as_its_source(tmp_path, cache):
    source = tiny(tmp_path)
    build.extension("polypod_tiny", source)
    (tmp_path / "tiny.h").write_text("/* nothing */")

    build.extension("polypod_tiny", source)

    assert len(list(cache.iterdir())) == 2


def test_source_that_does_not_compile_is_said_with_the_compilers_words(tmp_path, cache):
    with pytest.raises(RunError, match=r"(?s)polypod_tiny.*failed: .*error"):
        build.extension("polypod_tiny", tiny(tmp_path, '"forty-two" +'))
    assert not cache.exists()


def test_without_a_compiler_it_says_which_would_do(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RunError, match="no C compiler is here"):
        build.extension("polypod_tiny", tiny(tmp_path))


def test_without_pythons_headers_it_says_where_they_should_be(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(build.sysconfig, "get_paths", lambda: {"include": str(tmp_path / "none")})
    with pytest.raises(RunError, match=r"Python's headers are not in .*none; install them"):
        build.extension("polypod_tiny", tiny(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_where_nothing_can_be_kept_it_serves_this_process(tmp_path, cache, monkeypatch):
    cache.parent.mkdir()
    cache.parent.chmod(0o500)

    assert build.extension("polypod_tiny", tiny(tmp_path)).answer == 42


def test_a_file_in_the_caches_place_does_not_stop_it(tmp_path, cache):
    cache.parent.write_text("not a folder")

    assert build.extension("polypod_tiny", tiny(tmp_path)).answer == 42
