"""The rules of `job_rules` compiled with Numba (an optional extra): the same text, function by function, so the two cannot drift apart.

Compiled code is cached beside the module, and made again when `job_rules.py` changes.
"""

from collections.abc import Callable
from functools import cache
from types import FunctionType, SimpleNamespace
from typing import Any, Final, NamedTuple

from polypod.errors import RunError
from polypod.policy import job_rules
from polypod.policy.job_state import State

RULES: Final = tuple(
    name
    for name, rule in vars(job_rules).items()
    if isinstance(rule, FunctionType) and rule.__module__ == job_rules.__name__
)
INLINED: Final = ("_release_into", "_shift")
"""Called once for every run or node: handing them the whole state would take longer than what they do."""


class Rules(NamedTuple):
    """The entry points, plain or compiled."""

    submit: Callable[[State, int, float], int]
    sweep: Callable[[State, float], int]
    sweep_afresh: Callable[[State, float], int]
    release: Callable[[State, int], None]
    withdraw: Callable[[State, int], None]
    force: Callable[[State, int, int, float], bool]
    evict: Callable[[State, int, int, int, int], int]
    largest: Callable[[State, int], int]
    lose: Callable[[State, int], None]
    restore: Callable[[State, int], None]
    allowed_kinds: Callable[[State, int, int], int]


def _rules(of: Any) -> Rules:  # noqa: ANN401 (a module, or functions by name)
    return Rules(**{name: getattr(of, name) for name in Rules._fields})


PLAIN: Final = _rules(job_rules)


def has_numba() -> bool:
    """Whether the compiled rules can be had here."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def compiled() -> Rules:
    """The rules compiled. Raises `RunError` where Numba is not installed."""
    try:
        from numba import njit
    except ImportError as error:
        msg = "Numba is not installed, and the job scheduler was asked for compiled; pip install numba, or take the plain rules"
        raise RunError(msg) from error
    names: dict[str, Any] = dict(vars(job_rules))
    for name in RULES:
        rule = getattr(job_rules, name)
        copy = FunctionType(rule.__code__, names, name, rule.__defaults__)
        copy.__module__ = rule.__module__
        options: dict[str, Any] = {"inline": "always" if name in INLINED else "never"}
        if name not in Rules._fields:  # never called from Python: a way in takes long to compile
            options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        names[name] = njit(cache=True, **options)(copy)
    return _rules(SimpleNamespace(**names))
