"""Compiled twins of a module of plain functions, which call each other compiled too. Needs Numba, an optional extra."""

from types import FunctionType, ModuleType, SimpleNamespace

from numba import njit


def jitted(module: ModuleType) -> SimpleNamespace:
    """The module's own functions, compiled when first called and kept on disk; the rest of its names as they are.

    >>> from polypod.engine import prefix_kernels
    >>> fast = jitted(prefix_kernels)
    >>> store = prefix_kernels.empty_store(8, 1)
    >>> fast.put(store, 0, 42)
    >>> fast.find(store, 0, 42), fast.find(store, 0, 43)
    (0, -1)
    """
    names = dict(vars(module))
    for name, value in vars(module).items():
        if isinstance(value, FunctionType) and value.__module__ == module.__name__:
            own = FunctionType(value.__code__, names, name, value.__defaults__, value.__closure__)
            own.__module__ = module.__name__
            names[name] = njit(own, cache=True)
    return SimpleNamespace(**names)
