"""Engine settings and load conditions that no benchmark's columns tell, and that move TTFT and TPOT: what a user may say of them.

`EngineArgs` holds what was said. What was not is the engine's default (`default_args`), and `moves` says by how much the answer changes where
an unsaid one is what public launch scripts also set it to. Names are the engines' own: `--engine-args "--max-num-batched-tokens 4096"` is read as well
as `max_num_batched_tokens=4096`, and `ALIASES` knows what the other engines call the same thing.
"""

import math
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np

from polypod.catalog.schema import Strict
from polypod.cost.roofline import Number
from polypod.engine.closed_loop import Behaviour, Load, Times
from polypod.errors import InputError
from polypod.workload.model import Mla, Model
from polypod.workload.reals import plain

Steps = Annotated[float, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class EngineArgs(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """What was said; None: nothing.

    Of the engine: `prefill` is chunked (prompts share steps with decode) or exclusive (decode waits); `max_num_batched_tokens` a step's token
    budget per data-parallel rank; `stream_interval` tokens between two sends to the client; `scheduler_recv_interval` steps between two looks at
    the queue; `batch_wait_timeout_iters` steps that a prompt waits for others; `num_speculative_tokens` drafted a step and `acceptance`, how
    likely each is to be kept after those before it; `prefix_hits`, the share of a prompt that is cached already.
    Of the load: `requests_per_client` in a row; `length_spread`, half the range of lengths over their mean; `cold_start_s` of an engine that
    was not warmed up.
    """

    prefill: Literal["chunked", "exclusive"] | None = None
    max_num_batched_tokens: Annotated[float, msgspec.Meta(ge=1)] | None = None
    stream_interval: Steps | None = None
    scheduler_recv_interval: Steps | None = None
    batch_wait_timeout_iters: Steps | None = None
    num_speculative_tokens: Annotated[int, msgspec.Meta(ge=0, le=16)] | None = None
    acceptance: Fraction | None = None
    prefix_hits: Fraction | None = None
    requests_per_client: Annotated[float, msgspec.Meta(ge=1)] | None = None
    length_spread: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    cold_start_s: Annotated[float, msgspec.Meta(ge=0)] | None = None

    def over(self, other: "EngineArgs") -> "EngineArgs":
        """What this says, and for the rest what the other does."""
        said = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}  # fmt: skip
        return msgspec.structs.replace(other, **said)


NOTHING: Final = EngineArgs()

NAMES: Final = EngineArgs.__struct_fields__

PLAYED: Final = ("prefill", "num_speculative_tokens", "acceptance", "prefix_hits")
"""What the emulation of single requests plays; the others are of the load, of the front end, or the plan's own."""

ALIASES: Final = {
    "max_num_tokens": "max_num_batched_tokens",
    "chunked_prefill_size": "max_num_batched_tokens",
    "speculative_num_draft_tokens": "num_speculative_tokens",
    "speculative_num_steps": "num_speculative_tokens",
    "num_nextn_predict_layers": "num_speculative_tokens",
    "max_draft_len": "num_speculative_tokens",
    "prefix_cache_hit_rate": "prefix_hits",
}
"""What TensorRT-LLM and SGLang call a setting of `NAMES`."""

_FLAGS: Final = {
    "enable_chunked_prefill": ("prefill", "chunked"),
    "no_enable_chunked_prefill": ("prefill", "exclusive"),
    "enable_mixed_chunk": ("prefill", "chunked"),
}
"""Switches without a value."""

_ELSEWHERE: Final = {
    "tensor_parallel_size": "--tp", "tp_size": "--tp", "pipeline_parallel_size": "--pp", "data_parallel_size": "--dp",
    "enable_expert_parallel": "--ep", "ep_size": "--ep", "kv_cache_dtype": "--kv", "quantization": "--precision", "max_num_seqs": "--concurrency",
    "max_running_requests": "--concurrency",
}  # fmt: skip


def read_engine_args(text: str) -> EngineArgs:
    """Read `name=value` pairs or engine flags, between spaces or commas.

    >>> said = read_engine_args("stream_interval=10, prefill=exclusive")
    >>> said == EngineArgs(stream_interval=10, prefill="exclusive")
    True
    >>> flags = read_engine_args("--max-num-batched-tokens 4096 --no-enable-chunked-prefill")
    >>> flags.max_num_batched_tokens, flags.prefill
    (4096.0, 'exclusive')

    Raises `InputError` for a name that is none, a value that cannot be, or a setting said twice.
    """
    said: dict[str, Any] = {}
    for given, value in _pairs(text):
        name, value = _FLAGS.get(given, (ALIASES.get(given, given), value))
        if name in _ELSEWHERE:
            msg = f"--engine-args: {given} is said with {_ELSEWHERE[name]}, not here"
            raise InputError(msg)
        if name not in NAMES:
            msg = f"--engine-args: {given!r} is no setting that moves a prediction; known are {', '.join(NAMES)}"
            raise InputError(msg)
        if value is None:
            msg = f"--engine-args: {given} has no value; write {given}=VALUE"
            raise InputError(msg)
        if name in said:
            msg = f"--engine-args: {name} is said twice, {said[name]} and {value}; say it once"
            raise InputError(msg)
        said[name] = value
    try:
        args = msgspec.convert(said, EngineArgs, strict=False)
    except msgspec.ValidationError as error:
        msg = f"--engine-args {text!r}: {error}"
        raise InputError(msg) from error
    if args.acceptance is not None and not args.num_speculative_tokens:
        msg = f"--engine-args: acceptance={args.acceptance:g} without drafts; say num_speculative_tokens=N too"
        raise InputError(msg)
    return args


def read_plan_args(text: str) -> EngineArgs:
    """The same for a plan, which what is of a benchmark's load or of the front end does not move: that is refused by name."""
    said = read_engine_args(text)
    known = (*PLAYED, "max_num_batched_tokens")
    for name in NAMES:
        if name not in known and getattr(said, name) is not None:
            msg = f"--engine-args: {name} moves no plan, which knows {', '.join(known)}; polypod estimate --concurrency takes it"
            raise InputError(msg)
    return said


def _pairs(text: str) -> Iterator[tuple[str, str | None]]:
    """Names in the engines' spelling, dashes as underscores, and their values."""
    try:
        words = shlex.split(text.replace(",", " "))
    except ValueError as error:
        msg = f"--engine-args {text!r}: {error}"
        raise InputError(msg) from error
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        plain = name.lstrip("-").replace("-", "_")
        if equals:
            yield plain, value
        elif plain in _FLAGS or not words or words[0].startswith("--") or "=" in words[0]:
            yield plain, None
        else:
            yield plain, words.pop(0)


_FIXED_S: Final = 0.020
"""HTTP, tokenising and queueing of a prompt, whatever the engine: fitted to the shipped rows, the one constant that is."""

_LAUNCH_S: Final = {"sglang": 45e-6, "trtllm": 27e-6, "vllm": 25e-6}
"""Seconds a kernel takes to launch in a prompt computed eagerly, by engine: set while looking at TTFT of the shipped rows."""

_COMMON: Final = EngineArgs(
    prefill="chunked", max_num_batched_tokens=8192, stream_interval=0, scheduler_recv_interval=0, batch_wait_timeout_iters=0,
    num_speculative_tokens=0, prefix_hits=0, requests_per_client=10, length_spread=1 / 9, cold_start_s=0,
)  # fmt: skip

_DEFAULTS: Final = {"sglang": EngineArgs(prefill="exclusive").over(_COMMON)}


def default_args(backend: str | None) -> EngineArgs:
    """What an engine does where nothing is said, and what benchmarks usually ask: ten requests a client, lengths from 0.8 to 1.0."""
    return _DEFAULTS.get(backend or "", _COMMON)


_MLA_KERNELS: Final = {"trtllm": 60}
"""Kernels a layer of latent attention and experts launches, quantising and permuting among them, 32 elsewhere. Like `_LAUNCH_S`, set while looking at TTFT
of the shipped rows."""


def launched_kernels(model: Model, backend: str | None = None) -> int:
    """Kernels of one step, where no captured graph replays them."""
    mla = any(isinstance(group.attention, Mla) for group in model.layers)
    per_layer = _MLA_KERNELS.get(backend or "", 32) if mla else 17 if model.is_moe else 10
    return per_layer * model.num_layers


def launched_s(model: Model, backend: str | None) -> float:
    """Seconds to launch the kernels of one eager pass over all layers."""
    return _LAUNCH_S.get(backend or "", 27e-6) * launched_kernels(model, backend)


def speculative_gain(concurrency: Number) -> Number:
    """Tokens a step where drafts are on and nothing says how many are accepted, net of what drafting costs.

    The more sequences, the less a step gains, because verifying drafts is no longer free: TPOT without over TPOT with drafts was 1.4 to 1.8
    up to 8 clients and 1.0 to 1.6 above 32 in public runs of DeepSeek-R1. A straight line in the logarithm through the middles.

    >>> [round(float(speculative_gain(clients)), 2) for clients in (1, 8, 64, 512)]
    [1.6, 1.6, 1.3, 1.0]
    """
    gain = 1.6 - 0.1 * np.log2(np.maximum(concurrency, 1.0) / 8)
    return plain(np.asarray(np.clip(gain, 1.0, 1.6)))


def accepted_tokens(drafts: int, acceptance: float) -> float:
    """Tokens that a step gives where each of its drafts is kept with one probability after those before it: 1 + a + a^2 + ...

    Leviathan, Kalman, Matias 2023, equation 1 (https://arxiv.org/abs/2211.17192).

    >>> accepted_tokens(1, 0.7), round(accepted_tokens(3, 0.7), 3)
    (1.7, 2.533)
    """
    return sum(acceptance**n for n in range(drafts + 1))


def tokens_per_step(args: EngineArgs, concurrency: Number) -> Number:
    """Tokens that a step gives each sequence, with so many on the replica; net of drafting where acceptance is not known."""
    if not args.num_speculative_tokens:
        return 1.0
    if args.acceptance is None:
        return speculative_gain(concurrency)
    return accepted_tokens(args.num_speculative_tokens, args.acceptance)


def behaviour_of(
    args: EngineArgs, model: Model, backend: str | None, concurrency: float
) -> Behaviour:
    """The engine's scheduling under these settings, defaults where none is said."""
    full = args.over(default_args(backend))
    drafts = full.num_speculative_tokens or 0
    modelled = full.acceptance is not None  # else what is known of drafting is its gain, net
    return Behaviour(
        exclusive_prefill=full.prefill == "exclusive",
        step_tokens=full.max_num_batched_tokens or 0.0,
        stream_interval=_waited(full.stream_interval),
        poll_steps=_waited(full.scheduler_recv_interval),
        wait_steps=full.batch_wait_timeout_iters or 0.0,
        fixed_s=_FIXED_S,
        launch_s=launched_s(model, backend),
        tokens_per_step=float(tokens_per_step(full, concurrency)),
        drafts=float(drafts) if modelled else 0.0,
        draft_share=1 / model.num_layers if modelled else 0.0,
        prefix_hits=full.prefix_hits or 0.0,
    )


def played(
    args: EngineArgs, model: Model, backend: str | None, concurrency: float
) -> Behaviour | None:
    """The part of it that the emulation of single requests plays; None where that is nothing but chunked prefill."""
    full = behaviour_of(args, model, backend, concurrency)
    kept = Behaviour(
        exclusive_prefill=full.exclusive_prefill,
        tokens_per_step=full.tokens_per_step,
        drafts=full.drafts,
        draft_share=full.draft_share,
        prefix_hits=full.prefix_hits,
    )
    return None if kept == Behaviour() else kept


def _waited(interval: float | None) -> float:
    """An interval of one step or less holds nothing back."""
    return interval if interval is not None and interval > 1 else 0.0


def load_of(
    args: EngineArgs, backend: str | None, *, input_tokens: float, output_tokens: float, concurrency: float
) -> Load:  # fmt: skip
    """The load under these conditions."""
    full = args.over(default_args(backend))
    assert full.requests_per_client is not None
    assert full.length_spread is not None
    return Load(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        concurrency=concurrency,
        waves=full.requests_per_client,
        length_spread=full.length_spread,
        cold_s=full.cold_start_s or 0.0,
    )


ALTERNATIVES: Final[dict[str, tuple[EngineArgs, ...]]] = {
    "prefill": (EngineArgs(prefill="chunked"), EngineArgs(prefill="exclusive")),
    "max_num_batched_tokens": (EngineArgs(max_num_batched_tokens=2048), EngineArgs(max_num_batched_tokens=32768)),
    "stream_interval": (EngineArgs(stream_interval=10), EngineArgs(stream_interval=30)),
    "scheduler_recv_interval": (EngineArgs(scheduler_recv_interval=10), EngineArgs(scheduler_recv_interval=30)),
    "batch_wait_timeout_iters": (EngineArgs(batch_wait_timeout_iters=20),),
    "num_speculative_tokens": (EngineArgs(num_speculative_tokens=1, acceptance=0.7), EngineArgs(num_speculative_tokens=3, acceptance=0.7)),
    "prefix_hits": (EngineArgs(prefix_hits=0.5),),
    "requests_per_client": (EngineArgs(requests_per_client=3), EngineArgs(requests_per_client=1000)),
    "length_spread": (EngineArgs(length_spread=0), EngineArgs(length_spread=1)),
    "cold_start_s": (EngineArgs(cold_start_s=30),),
}  # fmt: skip
"""Values that a setting has in public launch scripts and benchmarks beside its default (InferenceX's `benchmarks/`, vLLM's and SGLang's documentation)."""

_ONLY: Final = {"scheduler_recv_interval": "sglang", "batch_wait_timeout_iters": "trtllm"}
"""Settings that one engine alone has."""

LEAST_MOVE: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """An unsaid setting that moves the answer: to what, and TTFT and TPOT then over what was predicted."""

    setting: str
    value: str
    ttft_ratio: float
    tpot_ratio: float

    @property
    def size(self) -> float:
        """How far it moves the answer, on a log scale."""
        return max(abs(math.log(self.ttft_ratio)), abs(math.log(self.tpot_ratio)))


def moves(
    said: EngineArgs,
    base: Times,
    answer: Callable[[EngineArgs], Times],
    backend: str | None = None,
) -> list[Move]:
    """What each unsaid setting of the engine would change by `LEAST_MOVE` or more, the largest first. `answer` predicts under other settings."""
    found = []
    for name, values in ALTERNATIVES.items():
        if getattr(said, name) is not None or not has_setting(backend, name):
            continue
        tried = [_move(name, other, base, answer(said.over(other))) for other in values]
        largest = max(tried, key=lambda one: one.size)
        if largest.size >= math.log1p(LEAST_MOVE):
            found.append(largest)
    return sorted(found, key=lambda one: -one.size)


def has_setting(backend: str | None, name: str) -> bool:
    """Whether an engine has the setting; of one that is not known, all do."""
    return backend is None or _ONLY.get(name, backend) == backend


def _move(name: str, other: EngineArgs, base: Times, times: Times) -> Move:
    value = getattr(other, name)
    kept = f" with acceptance = {other.acceptance:g}" if other.acceptance is not None else ""
    return Move(
        setting=name,
        value=value if isinstance(value, str) else f"{value:g}{kept}",
        ttft_ratio=times.ttft_s / base.ttft_s,
        tpot_ratio=times.tpot_s / base.tpot_s,
    )
