"""Plans are confirmed by the compiled core."""

import pytest

from polypod.engine.native.build import prepare


@pytest.fixture(autouse=True)
def _core(_no_own_catalog: None) -> None:
    prepare()
