"""The columns of a `ReplicaTable` worked on in C, for a node that serves: the same figures to the last bit, in a tenth of the time.

numpy's twin in `router` is the definition. Here a pass over the rows is one call into `engine/native/rows.h`, which reads and writes the table's own columns in
place; nothing is copied, and either twin can go on where the other left off.
"""

import ctypes
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from polypod.engine.native.build import HERE, extension, library
from polypod.errors import RunError
from polypod.policy.kinds import Kinds

if TYPE_CHECKING:
    from polypod.policy.requests import Ask, Load
    from polypod.policy.router import ReplicaTable

_OF_ROWS: Final = [
    "up",
    "in_flight",
    "slots",
    "limit_tokens",
    "blocked_until_s",
    "prompts",
    "prompts_s",
    "prompts_end_s",
    "prompt_share",
    "kv_tokens",
    "kv_capacity",
    "kv_read_s",
    "attend_s",
    "decode_s",
    "prompt_factor",
    "decode_factor",
    "requests",
    "others_running",
    "others_prompt_s",
    "kind",
    "held",
    "data_ranks",
    "given",
    "checked",
    "decoding",
]  # as in the table, less the suffix
_OF_KINDS: Final = {
    "used": np.int64, "first_knot": np.int64, "knots": np.int64, "budget": np.int64, "kv_token_s": np.float64, "pair_s": np.float64,
    "sequence_s": np.float64, "knot_tokens": np.float64, "knot_seconds": np.float64, "prompt_alone_s": np.float64, "prompt_steps": np.int64,
}  # fmt: skip
_ANSWERS: Final = ("first_s", "token_s", "best", "cached")


class _Rows(ctypes.Structure):
    _fields_ = [("rows", ctypes.c_int64), ("kinds", ctypes.c_int64)] + [
        (name, ctypes.c_void_p) for name in (*_OF_ROWS, *_OF_KINDS, *_ANSWERS)
    ]


class _Added(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in ("prompt_s", "first_s", "token_s", "model_token_s")]  # fmt: skip


class CompiledRows:
    """What a table hands to C. `bind` must be called when a column or a kind is another one."""

    def __init__(self, functions: "Functions") -> None:
        self._functions = functions
        self._rows = _Rows()
        self._at = ctypes.addressof(self._rows)
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._of_kinds: dict[str, npt.NDArray[Any]] = {}
        self._version = -1
        self.first_s_R: npt.NDArray[np.float64] = np.empty(0)
        self.token_s_R: npt.NDArray[np.float64] = np.empty(0)
        self._best: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._cached: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)  # all zero between calls

    def bind(self, table: "ReplicaTable", kinds: Kinds) -> None:
        """Say where the columns are."""
        rows = len(table.up)
        if kinds.version != self._version:
            self._version, self._of_kinds = kinds.version, _of_kinds(kinds)
        arrays = {name: getattr(table, f"{name}_R") for name in _OF_ROWS} | self._of_kinds
        if len(self.first_s_R) != rows:
            self.first_s_R, self.token_s_R = np.zeros(rows), np.zeros(rows)
            self._best = np.zeros(rows, dtype=np.int64)
            self._cached = np.zeros(rows, dtype=np.int64)
        arrays["first_s"], arrays["token_s"] = self.first_s_R, self.token_s_R
        arrays["best"], arrays["cached"] = self._best, self._cached
        self._arrays = arrays  # kept while C has their addresses
        self._rows.rows, self._rows.kinds = rows, len(kinds)
        for name, array in arrays.items():
            assert array.flags.c_contiguous, name
            assert array.dtype.itemsize == (1 if name == "up" else 8), name
            setattr(self._rows, name, array.ctypes.data)

    def have_room(self, now_s: float) -> bool:
        return self._functions.have_room(self._at, now_s)

    def best(
        self, ask: "Ask", among_R: npt.NDArray[np.bool_] | None, now_s: float, kept: float, cached: Mapping[int, int]
    ) -> npt.NDArray[np.intp]:  # fmt: skip
        """The rows where the request would finish first; `first_s_R` and `token_s_R` hold the forecast of all that may be chosen, until the next time."""
        among = None if among_R is None else among_R.ctypes.data
        ties = self._functions.best(
            self._at, now_s, kept, ask.input_tokens, ask.need_tokens, ask.output_tokens, ask.mean_kv_tokens, among, cached
        )  # fmt: skip
        return self._best[:ties]

    def dispatched(
        self, row: int, ask: "Ask", cached: int, now_s: float, grown: float
    ) -> tuple[float, float, float, float]:
        """Add the request; seconds of its prompt, to its first token, for each further one, and for each as the model has it."""
        return self._functions.dispatched(
            self._at, row, now_s, grown, ask.input_tokens, ask.mean_kv_tokens, cached, ask.is_streamed
        )  # fmt: skip

    def prompt_over(self, load: "Load", now_s: float, *, is_given_up: bool) -> None:
        self._functions.prompt_over(self._at, load.row, now_s, load.prompt_s, is_given_up)

    def left(self, load: "Load") -> None:
        self._functions.left(self._at, load.row, load.kv_tokens)

    def refresh(self, row: int) -> None:
        self._functions.refresh(self._at, row)


class Functions(Protocol):
    """Those of `rows.h`. Each gets the address of the rows first, then what `CompiledRows` hands on."""

    @property
    def have_room(self) -> Callable[[int, float], bool]: ...

    @property
    def best(self) -> Callable[..., int]: ...

    @property
    def dispatched(self) -> Callable[..., tuple[float, float, float, float]]: ...

    @property
    def prompt_over(self) -> Callable[[int, int, float, float, bool], None]: ...

    @property
    def left(self) -> Callable[[int, int, float], None]: ...

    @property
    def refresh(self) -> Callable[[int, int], None]: ...


class Called:
    """The functions of the library through ctypes: slower, and there without Python's headers."""

    def __init__(self, core: ctypes.CDLL) -> None:
        whole, real, at = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
        self._added = _Added()
        self._added_at = ctypes.addressof(self._added)
        self.have_room = _typed(core.rows_have_room, ctypes.c_bool, at, real)
        self._best = _typed(
            core.rows_best, whole, at, real, real, whole, whole, real, real, at, whole, at, at
        )
        self._dispatched = _typed(
            core.rows_dispatched, None, at, whole, real, real, whole, real, whole, whole, at
        )
        self.prompt_over = _typed(core.rows_prompt_over, None, at, whole, real, real, whole)
        self.left = _typed(core.rows_left, None, at, whole, real)
        self.refresh = _typed(core.rows_refresh, None, at, whole)

    def best(self, *arguments: Any) -> int:  # noqa: ANN401 - as in `CompiledRows`
        *others, cached = arguments
        warm = len(cached)
        rows = (ctypes.c_int64 * warm)(*cached) if warm else None
        tokens = (ctypes.c_int64 * warm)(*cached.values()) if warm else None
        ties: int = self._best(*others, warm, rows, tokens)
        return ties

    def dispatched(self, *arguments: Any) -> tuple[float, float, float, float]:  # noqa: ANN401 - as in `Functions`
        self._dispatched(*arguments, self._added_at)
        added = self._added
        return added.prompt_s, added.first_s, added.token_s, added.model_token_s


def functions() -> Functions | None:
    """Those of the core, which is compiled if it is not yet; None where there is no compiler."""
    try:
        return cast(Functions, extension("polypod_rows", HERE / "rows_calls.c"))
    except RunError:
        return called()


def called() -> Functions | None:
    """The same through ctypes."""
    try:
        return Called(library())
    except RunError:
        return None


def _typed(function: Any, returned: Any, *arguments: Any) -> Callable[..., Any]:  # noqa: ANN401 - ctypes' own
    function.restype, function.argtypes = returned, arguments
    return function  # type: ignore[no-any-return]


def _of_kinds(kinds: Kinds) -> dict[str, npt.NDArray[Any]]:
    values: dict[str, list[float]] = {name: [] for name in _OF_KINDS}
    for number in range(len(kinds)):
        kind = kinds[number]
        step = kind.step_time
        values["used"].append(kind.replicas > 0)
        values["first_knot"].append(len(values["knot_tokens"]))
        values["knots"].append(len(step.tokens))
        values["budget"].append(kind.budget)
        for name in ("kv_token_s", "pair_s", "sequence_s"):
            values[name].append(getattr(step, name))
        values["knot_tokens"] += step.tokens
        values["knot_seconds"] += step.seconds
        values["prompt_alone_s"].append(0.0)
        values["prompt_steps"].append(0)
    return {name: np.array(values[name], dtype=dtype) for name, dtype in _OF_KINDS.items()}
