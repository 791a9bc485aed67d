"""Numbers that may be arrays: every formula here takes either and broadcasts."""

import numpy as np
from numpy.typing import NDArray

Reals = float | NDArray[np.float64]


def plain(value: Reals) -> Reals:
    """A Python float where the value is one number, so that reports and JSON see no numpy scalars."""
    return float(value) if np.ndim(value) == 0 else value


def above(value: Reals, limit: int) -> Reals:
    """1 where the value is above the limit, else 0.

    >>> above(3, 1), above(np.array([0.0, 2.0]), 0)
    (1.0, array([0., 1.]))
    """
    if isinstance(value, int | float):
        return 1.0 if value > limit else 0.0
    return plain(np.asarray(np.asarray(value) > limit, dtype=np.float64))


def some(value: Reals) -> bool:
    """Whether any of it is not 0.

    >>> some(0.0), some(np.array([0.0, 2.0]))
    (False, True)
    """
    return bool(value) if isinstance(value, int | float) else bool(np.any(value))
