"""Traces an architecture of `transformers` on tensors without data, for models that Polypod has no description of.

Needs the extra `trace` (torch, transformers), imported only when something is traced. Nothing is downloaded and no weights exist: the
"meta" device has shapes alone, so a model of a trillion parameters takes a few hundred megabytes and seconds.

The counting is a dispatch mode of torch that sees every operator below autograd, with torch's own formulas where it has one. Whether an
operand is a weight is known by its storage, followed through copies and casts that involve weights alone.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Final

from polypod.errors import InputError
from polypod.workload.traced import ENCODER, LATENT, Flops, Pass, Traced
from polypod.workload.traced_inputs import Inputs, candidates

PRODUCTS: Final = ("mm", "addmm", "bmm", "baddbmm", "mv", "dot", "addmv")
GROUPED: Final = ("_grouped_mm", "grouped_mm_fallback")
LENGTHS: Final = (32, 64)
"""Below the windows that families have, so that no figure depends on how a window is implemented."""

_EXPERTS = re.compile(r"(^|\.)experts\.")
_RECURRENT = re.compile(
    r"[MmBb]amba|H1Mixer|SSM|Rwkv|RWKV|Delta|Recurren|Retention|LinearAtt|Lightning|LSTM|RgLru|Rglru"
)
_NEEDS_DATA = re.compile(r"meta|item\(\)|nonzero|data.dependent|unique|Cannot copy", re.IGNORECASE)
_ROUTER = re.compile(r"Router|Gate$|Gating")
_UNLIKE: Final = (
    "kv_lora_rank", "qk_rope_head_dim", "ssm_state_size", "mamba_d_state", "num_kv_shared_layers", "attn_layer_period",
    "global_head_dim", "is_encoder_decoder", "multi_query", "v_head_dim", "swa_num_key_value_heads",
)  # fmt: skip
"""Keys of layers whose caches are not all one key and one value of one width."""

_VARIES: Final = "varies"
_EXPERTS_KEYS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN_KEYS: Final = (
    "num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts",
)  # fmt: skip


def trace(config: Mapping[str, Any], lengths: tuple[int, int] = LENGTHS) -> Traced:
    """Trace the architecture that a `config.json` asks for, its `model_type` at least; what is not in it is transformers' default.

    Raises `InputError` where the extra is missing, transformers does not know the family, or the family's code cannot run without data.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        msg = (
            f"tracing a model needs torch and transformers ({error}); pip install 'polypod[trace]'"
        )
        raise InputError(msg) from error
    loaded = _configured(transformers, dict(config))
    problems: list[str] = []
    with torch.no_grad():
        for architecture in _architectures(transformers, loaded):
            for how, place in (("", nullcontext), ("symbolic sizes", _symbolic)):
                try:
                    with place():
                        model = _instance(torch, architecture, copy.deepcopy(loaded))
                        return _traced(torch, transformers, model, lengths, how)
                except Exception as error:  # the family's own code, which can raise anything
                    if how == "" and not _NEEDS_DATA.search(str(error)):
                        problems.append(_problem(architecture, error))
                        break
                    problems.append(_problem(architecture, error))
    msg = f"{config.get('model_type')}: {problems[0] if problems else 'transformers has a config and no model of it alone'}"
    raise InputError(" ".join(msg.split()))


def _problem(architecture: Any, error: Exception) -> str:
    return f"{architecture.__name__} cannot be traced: {type(error).__name__}: {str(error)[:160]}"


def _configured(transformers: Any, config: dict[str, Any]) -> Any:
    """The config object."""
    model_type = config.pop("model_type", None)
    config.pop("quantization_config", None)  # shapes are the same; kernels would be looked for
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        msg = f"transformers {transformers.__version__} has no model_type {model_type!r}"
        raise InputError(msg)
    try:
        return transformers.CONFIG_MAPPING[model_type](**_plain(config))
    except Exception as error:  # as below
        msg = f"transformers cannot read this config of {model_type}: {type(error).__name__}: {str(error)[:200]}"
        raise InputError(" ".join(msg.split())) from error


def _plain(value: Any) -> Any:
    """Without the wrapping that configs have around numbers that JSON cannot say: {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _architectures(transformers: Any, config: Any) -> Iterator[Any]:
    """Classes for this config, the one that computes most first: with a head if there is one."""
    causal = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    seen = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    seq2seq = [
        transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        transformers.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    ]
    first = [*seq2seq, causal] if getattr(config, "is_encoder_decoder", False) else [causal]
    first = [seen, *first] if getattr(config, "text_config", None) is not None else [*first, seen]
    found: list[Any] = []
    for mapping in (*first, transformers.MODEL_MAPPING):
        if type(config) not in mapping:
            continue
        classes = mapping[type(config)]
        one = classes[0] if isinstance(classes, tuple) else classes
        if one not in found:
            found.append(one)
            yield one


@contextmanager
def _symbolic() -> Iterator[None]:
    """Sizes that depend on data become symbols."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        yield


def _instance(torch: Any, architecture: Any, config: Any) -> Any:
    """The model on meta in bf16, with attention written out and the experts' products grouped."""
    if hasattr(config, "is_decoder") and architecture.__name__.endswith(
        ("CausalLM", "LMHeadModel")
    ):
        config.is_decoder = True
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = architecture(config)
    finally:
        torch.set_default_dtype(before)
    model.eval()
    for setting, value in (
        ("set_attn_implementation", "eager"),
        ("set_experts_implementation", "grouped_mm"),
    ):
        try:
            getattr(model, setting)(value)
        except (AttributeError, ValueError, KeyError):
            continue  # a family without the choice
    return model


def _traced(
    torch: Any, transformers: Any, model: Any, lengths: tuple[int, int], how: str
) -> Traced:
    weights = dict(model.named_parameters())  # tied ones come once
    inputs, first = _working(torch, model, lengths)
    if inputs.unit == "inputs":
        lengths = (1, 2)
    second = _passes(torch, model, inputs, lengths[1])
    prompts, steps = (first[0], second[0]), (first[1], second[1])
    experts, used = second[2], second[3]
    total = sum(weight.numel() for weight in weights.values())
    notes = [
        how,
        inputs.how,
        ENCODER if inputs.has_encoder else "",
        LATENT if _expands(model.config) else "",
    ]
    return Traced(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        transformers=transformers.__version__,
        torch=str(torch.__version__),
        unit=inputs.unit,
        parameters=total,
        used_parameters=used,
        expert_parameters=experts,
        weight_bytes=2 * total,
        prompt=prompts,
        decode=tuple(step for step in steps if step is not None),
        experts=_first(model.config, _EXPERTS_KEYS) if experts else None,
        experts_per_token=_first(model.config, _CHOSEN_KEYS) if experts else None,
        formula_cache_bytes=_standard_cache(model.config)
        if all(steps) and prompts[0].cache_bytes
        else None,
        how=tuple(note for note in notes if note),
    )


_Passes = tuple[Pass, Pass | None, int, int]
"""A prompt, the step after it, parameters of experts, parameters that were read."""


def _working(torch: Any, model: Any, lengths: tuple[int, int]) -> tuple[Inputs, _Passes]:
    """The first inputs that the model takes, and its passes over them; raises what the first of them met."""
    first: Exception | None = None
    for inputs in candidates(torch, model):
        try:
            n = 1 if inputs.unit == "inputs" else lengths[0]
            return inputs, _passes(torch, model, inputs, n)
        except Exception as error:  # the family's own code again
            first = first or error
    raise first or InputError("no inputs are known for it")


def _passes(torch: Any, model: Any, inputs: Inputs, n: int) -> _Passes:
    arguments = inputs.make(n)
    count = _Counter(torch, model)
    with count:
        out = model(**arguments)
    prompt = count.result(n, cache_bytes=_tensor_bytes(torch, inputs.kept(out)))
    arguments_of_step = inputs.step(n, out)
    after = None
    if arguments_of_step is not None:
        again = _Counter(torch, model)
        with again:
            model(**arguments_of_step)
        after = again.result(n)
    return prompt, after, count.expert_parameters(), count.used_parameters()


def _expands(config: Any) -> bool:
    return bool(_stated(config.get_text_config(decoder=True), "kv_lora_rank"))


def _first(config: Any, keys: tuple[str, ...]) -> int | None:
    config = config.get_text_config(decoder=True)
    figures = (_stated(config, key) for key in keys)
    return next((figure for figure in figures if isinstance(figure, int)), None)


def _stated(config: Any, key: str) -> Any:
    """A key's value, None where it is missing or differs from layer to layer, which some configs raise an error for."""
    try:
        return getattr(config, key)
    except Exception as error:  # AttributeError, and transformers' own for a key of each layer
        return _VARIES if "per-layer" in str(error) else None


def _standard_cache(config: Any) -> int | None:
    """2 x layers x key-value heads x head dimension x 2 bytes, where the config names all of them and nothing else mixes tokens."""
    config = config.get_text_config(decoder=True)
    kinds = set(_stated(config, "layer_types") or ())
    if kinds - {"full_attention", "sliding_attention"}:
        return None
    if any(_stated(config, key) for key in _UNLIKE):
        return None
    layers, hidden, heads, groups, width = (
        _stated(config, key)
        for key in (
            "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
        )
    )  # fmt: skip
    if not (isinstance(layers, int) and isinstance(hidden, int) and isinstance(heads, int)):
        return None
    groups = groups or heads
    width = width or hidden // heads
    if not (isinstance(groups, int) and isinstance(width, int)):
        return None
    return 2 * layers * groups * width * 2


def _tensor_bytes(torch: Any, kept: Any) -> int:
    """Bytes of every tensor reachable from a cache, each once; single numbers are positions, not cache."""
    seen: set[int] = set()
    total = 0
    todo = [kept]
    while todo:
        one = todo.pop()
        if one is None or isinstance(one, str | int | float | type) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            total += one.numel() * one.element_size() if one.numel() > 1 else 0
            continue
        todo += _inside(one)
    return int(total)


def _inside(one: Any) -> list[Any]:
    if isinstance(one, Mapping):
        return list(one.values())
    if isinstance(one, list | tuple):
        return list(one)
    if type(one).__name__.endswith("Config") or callable(one):
        return []
    return list(getattr(one, "__dict__", {}).values())


class _Counter:
    """Counts what a model does inside `with`; once."""

    def __init__(self, torch: Any, model: Any) -> None:
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils.flop_counter import flop_registry

        self._torch = torch
        self._formulas = flop_registry
        self._kinds = dict.fromkeys(Flops.__struct_fields__, 0)
        self._linear = 0
        self._weights = {_place(weight): name for name, weight in model.named_parameters()}
        self._sizes = {_place(weight): weight.numel() for weight in model.parameters()}
        self._read: set[int] = set()
        self._held: list[
            Any
        ] = []  # storages made of weights alone, so that none is given to another tensor
        self._experts: dict[str, Any] = {}
        self._inside: list[str] = []
        self._model = model

        def dispatch(_: Any, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return self._dispatch(func, args, kwargs or {})

        mode = type("_Mode", (TorchDispatchMode,), {"__torch_dispatch__": dispatch})
        self._mode: AbstractContextManager[Any] = mode()
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for name, module in self._model.named_modules():
            self._hook(name, module)
        self._stack.enter_context(self._mode)

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def result(self, n: int, cache_bytes: int = 0) -> Pass:
        kinds = {kind: int(flops) for kind, flops in self._kinds.items()}
        return Pass(
            n=n, flops=Flops(**kinds), linear_flops=int(self._linear), cache_bytes=cache_bytes
        )

    def used_parameters(self) -> int:
        """Weights that any operator read."""
        return sum(size for place, size in self._sizes.items() if place in self._read)

    def expert_parameters(self) -> int:
        """Weights that experts' products used, and the biases that lie beside them."""
        total = 0
        for name, weight in self._model.named_parameters():
            folder = name.rpartition(".")[0]
            total += weight.numel() if folder in self._experts else 0
        return int(total)

    def _hook(self, name: str, module: Any) -> None:
        kind = type(module).__name__
        count = self._linear_count(module)
        if count and not _EXPERTS.search(f"{name}."):
            self._stack.callback(module.register_forward_hook(count).remove)
        if _RECURRENT.search(kind):
            before = module.register_forward_pre_hook(lambda *_: self._inside.append(kind))
            after = module.register_forward_hook(lambda *_: self._leave(), always_call=True)
            self._stack.callback(before.remove)
            self._stack.callback(after.remove)

    def _leave(self) -> None:
        self._inside.pop()

    def _linear_count(self, module: Any) -> Callable[[Any, Any, Any], None] | None:
        """A hook that adds what a linear layer or a router does: 2 x inputs x outputs x rows; None for any other module."""
        weight = getattr(module, "weight", None)
        is_linear = isinstance(module, self._torch.nn.Linear)
        inner = int(module.in_features) if is_linear else 0
        if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
            inner = int(module.weight.shape[0])

        def outputs(_module: Any, _args: Any, out: Any) -> None:
            first = (
                out[0] if isinstance(out, tuple) else out
            )  # a router that chooses gives its scores too
            self._linear += 2 * inner * first.numel()

        def routes(_module: Any, args: Any, _out: Any) -> None:
            self._linear += 2 * args[0].numel() * int(module.weight.shape[0])

        if inner:
            return outputs
        is_router = bool(_ROUTER.search(type(module).__name__))
        return routes if is_router and weight is not None and weight.ndim == 2 else None

    def _dispatch(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        name = packet.__name__.removesuffix(".default")
        tensors = [one for one in args if isinstance(one, self._torch.Tensor)]
        if name in GROUPED:
            self._grouped(tensors)
        elif packet in self._formulas:
            kind = self._kind(name, tensors)
            self._kinds[kind] += self._formulas[packet](*args, **kwargs, out_val=out)
        elif self._torch.Tag.pointwise in func.tags and isinstance(out, self._torch.Tensor):
            self._kinds["elementwise"] += out.numel()
        self._read |= {_place(one) for one in _flat(self._torch, args, kwargs)}
        self._follow(tensors, args, out)
        return out

    def _grouped(self, tensors: list[Any]) -> None:
        rows, weight = tensors[0], tensors[1]
        self._kinds["experts"] += 2 * rows.numel() * weight.shape[-1]
        self._used(weight)

    def _used(self, weight: Any) -> None:
        name = self._weights.get(_place(weight))
        if name is not None:
            self._experts[name.rpartition(".")[0]] = True

    def _kind(self, name: str, tensors: list[Any]) -> str:
        """Which kind of product: with a weight or without, and where."""
        if name not in PRODUCTS:
            return "conv" if "conv" in name else "attention"
        operands = tensors[-2:]
        weights = [one for one in operands if _place(one) in self._weights]
        for weight in weights:
            if _EXPERTS.search(self._weights[_place(weight)]):
                self._used(weight)
                return "experts"
        if weights:
            return "gemm"
        if operands[0].shape[-1] == 1:
            return "elementwise"  # an outer product: positions times frequencies
        return "scan" if self._inside else "attention"

    def _follow(self, tensors: list[Any], args: Any, out: Any) -> None:
        """What is made of one weight alone, or of weights alone, is a weight."""
        if not tensors or not isinstance(out, self._torch.Tensor):
            return
        names = [self._weights.get(_place(one)) for one in tensors]
        if (
            names[0] is None
            or None in names
            or any(
                isinstance(one, list | tuple) and one and isinstance(one[0], self._torch.Tensor)
                for one in args
            )
        ):
            return
        if _place(out) not in self._weights:
            self._weights[_place(out)] = names[0]
            self._held.append(out)


def _flat(torch: Any, args: Any, kwargs: Any) -> Iterator[Any]:
    """Tensors among an operator's arguments, and in lists among them."""
    for one in (*args, *kwargs.values()):
        many = one if isinstance(one, list | tuple) else (one,)
        yield from (tensor for tensor in many if isinstance(tensor, torch.Tensor))


def _place(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)
