"""Inputs without data for whatever an architecture of `transformers` takes: tokens, pixels, sounds.

Which of them a class takes is known from its main input's name and its signature; which of the usual shapes it wants, by trying.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, Literal

_CACHES: Final = ("past_key_values", "cache_params", "state")
_TEXT: Final = ("input_ids", "decoder_input_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One way of calling a model. `shapes` are of one input, without the batch."""

    torch: Any
    takes: frozenset[str]  # arguments that the class has
    shapes: dict[str, tuple[int, ...]]  # of what is not text
    is_text: bool
    has_encoder: bool
    has_mask: bool
    tokens: int | None = None  # beside images or sounds: a fixed number

    @property
    def unit(self) -> Literal["tokens", "inputs"]:
        return "inputs" if self.shapes else "tokens"

    @property
    def how(self) -> str:
        parts = [f"{name} {'x'.join(map(str, shape))}" for name, shape in self.shapes.items()]
        if self.is_text and not self.has_mask:
            parts.append("no attention mask")
        return ", ".join(parts)

    def make(self, n: int) -> dict[str, Any]:
        """Arguments for n tokens of one sequence, or for n inputs at once."""
        batch = n if self.shapes else 1
        found = {
            name: self._tensor((batch, *shape), integers="ids" in name)
            for name, shape in self.shapes.items()
        }
        length = self.tokens if self.shapes else n
        if self.is_text and length:
            found["input_ids"] = self._tensor((batch, length), integers=True)
            if self.has_mask:
                found["attention_mask"] = self._ones(batch, length)
        if self.has_encoder:
            found["decoder_input_ids"] = self._tensor((batch, length or 8), integers=True)
        if "use_cache" in self.takes and not self.shapes:
            found["use_cache"] = True
        return found

    def kept(self, out: Any) -> Any:
        """The cache that a pass leaves, if it leaves one."""
        if self.shapes:
            return None
        return next((out[name] for name in _CACHES if name in self.takes and _has(out, name)), None)

    def step(self, n: int, out: Any) -> dict[str, Any] | None:
        """Arguments for one token after a pass of n, or None of what keeps no cache."""
        if self.kept(out) is None:
            return None
        name = next(name for name in _CACHES if name in self.takes and _has(out, name))
        found = {name: out[name], "use_cache": True}
        if self.has_encoder:
            states = out["encoder_last_hidden_state"]
            found["encoder_outputs"] = (states,)
            found["decoder_input_ids"] = self._tensor((1, 1), integers=True)
            if self.has_mask:
                found["attention_mask"] = self._ones(1, n)
            return found
        found["input_ids"] = self._tensor((1, 1), integers=True)
        if self.has_mask:
            found["attention_mask"] = self._ones(1, n + 1)
        return {key: value for key, value in found.items() if key in self.takes}

    def _tensor(self, shape: tuple[int, ...], *, integers: bool) -> Any:
        dtype = self.torch.long if integers else self.torch.bfloat16
        return self.torch.zeros(shape, dtype=dtype, device="meta")

    def _ones(self, batch: int, length: int) -> Any:
        return self.torch.ones((batch, length), dtype=self.torch.long, device="meta")


def candidates(torch: Any, model: Any) -> Iterator[Inputs]:
    """Ways of calling the model, the likeliest first."""
    takes = frozenset(inspect.signature(model.forward).parameters)
    main = getattr(model, "main_input_name", "input_ids")
    has_encoder = "decoder_input_ids" in takes and bool(
        getattr(model.config, "is_encoder_decoder", False)
    )
    is_text = "input_ids" in takes
    if is_text:
        for has_mask in (True, False):
            if has_mask and "attention_mask" not in takes:
                continue
            yield Inputs(
                torch=torch, takes=takes, shapes={}, is_text=True, has_encoder=has_encoder, has_mask=has_mask
            )  # fmt: skip
    names = [name for name in dict.fromkeys((main, *_SHAPES)) if name in takes and name in _SHAPES]
    for name in names:
        for shape in _SHAPES[name](model.config):
            for tokens in (16, None) if is_text else (None,):
                yield Inputs(
                    torch=torch, takes=takes, shapes={name: shape}, is_text=is_text, has_encoder=has_encoder,
                    has_mask="attention_mask" in takes, tokens=tokens,
                )  # fmt: skip


def _has(out: Any, name: str) -> bool:
    try:
        return out[name] is not None
    except (KeyError, TypeError, IndexError):
        return False


def _numbers(config: Any, *names: str) -> list[Any]:
    """Values of the first of these keys that the config, or a part of it, states."""
    parts = [config, *(getattr(config, part, None) for part in _PARTS)]
    return [
        getattr(part, name)
        for part, name in product(parts, names)
        if getattr(part, name, None) is not None
    ]


def _images(config: Any) -> Iterator[tuple[int, ...]]:
    channels = next(
        (
            x
            for x in _numbers(config, "num_channels", "in_channels", "in_chans")
            if isinstance(x, int)
        ),
        3,
    )
    sizes = [*_numbers(config, "image_size", "img_size"), 224, 384, 512]
    for size in sizes[:6]:
        edges = (
            (size, size)
            if isinstance(size, int)
            else tuple(size)
            if isinstance(size, list | tuple)
            else None
        )
        if edges is None or len(edges) < 2:
            continue
        yield (channels, *edges[-2:])
        frames = next(iter(_numbers(config, "num_frames", "frames_per_clip", "tubelet_size")), None)
        if isinstance(frames, int):
            yield (frames, channels, *edges[-2:])


def _videos(config: Any) -> Iterator[tuple[int, ...]]:
    frames = next(
        (x for x in _numbers(config, "num_frames", "frames_per_clip") if isinstance(x, int)), 16
    )
    for shape in _images(config):
        yield (frames, *shape[-3:])


def _waves(config: Any) -> Iterator[tuple[int, ...]]:
    yield (16_000,)
    yield (1, 16_000)
    yield (1, 24_000)


def _spectra(config: Any) -> Iterator[tuple[int, ...]]:
    bins = [
        x
        for x in _numbers(
            config,
            "num_mel_bins",
            "input_feat_per_channel",
            "feature_size",
            "feature_projection_input_dim",
            "input_dim",
        )
        if isinstance(x, int)
    ]
    times = [2 * x for x in _numbers(config, "max_source_positions") if isinstance(x, int)]
    for wide, long in product([*bins, 80, 128, 160], [*times, 3000, 1024, 400]):
        yield (wide, long)
        yield (long, wide)


_PARTS: Final = (
    "vision_config",
    "audio_config",
    "backbone_config",
    "encoder",
    "encoder_config",
    "text_config",
)
_SHAPES: Final = {
    "pixel_values": _images,
    "pixel_values_videos": _videos,
    "input_values": _waves,
    "input_features": _spectra,
}
