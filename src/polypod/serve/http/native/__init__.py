"""What of the gateway's wire is C: `heads`, messages that come whole, and `relay`, streams that go past Python.

Compiled once on a machine (`engine.native.build`). Everything here has a twin in Python that does the same, and all that is unusual is left to it.
"""

import logging
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from polypod.engine.native.build import extension
from polypod.errors import RunError

Name = Literal["heads", "relay"]

_SOURCES: Final = Path(__file__).parent
_LOG: Final = logging.getLogger("polypod.serve")


def prepare() -> None:
    """Compile what is not compiled yet, better now than while a client waits; say in the log where that cannot be."""
    for name in ("heads", "relay"):
        _, why_not = _loaded(name)
        if why_not:
            _LOG.warning("requests take more of a core than they need: %s", why_not)
            return


def module(name: Name) -> Any:  # noqa: ANN401 - it is compiled
    """The compiled module, which is compiled if it is not yet; None where that cannot be."""
    return _loaded(name)[0]


@cache
def _loaded(name: str) -> tuple[Any, str]:
    """The module, or why there is none."""
    try:
        return extension(f"polypod_{name}", _SOURCES / f"{name}.c"), ""
    except RunError as error:
        return None, str(error)
