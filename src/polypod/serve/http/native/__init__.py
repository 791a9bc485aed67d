"""What of the gateway's wire is C: `heads`, messages that come whole, and `relay`, streams that go past Python.

Compiled once on a machine (`engine.native.build`). Everything here has a twin in Python that does the same, and all that is unusual is left to it.
"""

import logging
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

from polypod.engine.native.build import extension
from polypod.errors import RunError

_SOURCES: Final = Path(__file__).parent
_LOG: Final = logging.getLogger("polypod.serve")


Name = Literal["heads", "relay"]


def prepare() -> None:
    """Compile what is not compiled yet: better now than while a client waits."""
    for name in get_args(Name):
        module(name)


@cache
def module(name: Name) -> Any:  # noqa: ANN401 - it is compiled
    """The compiled module, which is compiled if it is not yet; None where that cannot be, which is logged."""
    try:
        return extension(f"polypod_{name}", _SOURCES / f"{name}.c")
    except RunError as error:
        _LOG.warning("the gateway's %s goes through Python: %s", name, error)
        return None
