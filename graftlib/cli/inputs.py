"""Example inputs: what a model of a library expects, or what the user wrote after ``--input``.

In: a library's own record of its model, or shapes. Out: tensors on a device. Batches hold two, since a capture may take
a batch of one for a constant; detectors take a list of one image.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GraftError, ModelNameError

__all__ = ["InputRequest", "for_hf", "for_torchvision", "plain"]

TOKENS = 16
"""Length of an example text, in tokens; shorter where the model takes fewer."""


@dataclass(frozen=True)
class InputRequest:
    """What the user asked for.

    Attributes:
        shapes: of the positional inputs; empty for the model's own example.
        dtype: of all of them; None for the model's own.
    """

    shapes: tuple[tuple[int, ...], ...] = ()
    dtype: torch.dtype | None = None


def plain(request: InputRequest, default: tuple[int, ...], device: str) -> tuple[Any, ...]:
    """Tensors of the requested shapes, or one of shape `default`."""
    return tuple(_tensor(shape, request.dtype, device) for shape in request.shapes or (default,))


def for_torchvision(
    family: str, weights: Any, request: InputRequest, device: str
) -> tuple[Any, ...]:
    """Inputs for a torchvision model.

    Args:
        family: the module of ``torchvision.models`` it comes from.
        weights: its default entry of the weights enum, which knows the crop it was trained with.
        request: in place of the defaults.
        device: of the tensors.
    """
    if family == "detection":
        return ([_tensor(s, request.dtype, device) for s in request.shapes or ((3, 320, 320),)],)
    if family == "optical_flow":
        pair = InputRequest(request.shapes or ((2, 3, 128, 128),) * 2, request.dtype)
        return plain(pair, (), device)
    crop = getattr(weights.transforms, "keywords", {}).get("crop_size", 224)
    height, width = (crop, crop) if isinstance(crop, int) else crop
    frames = (16,) if family == "video" else ()
    return plain(request, (2, 3, *frames, height, width), device)


def for_hf(
    model: nn.Module, request: InputRequest, device: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs for a transformers model: its main input by name, and what belongs to it.

    Tokens come with an attention mask, as every caller of such a model gives one; encoder-decoders get tokens for both;
    models of text and image get both.

    Raises:
        ModelNameError: an input of this name is not known, and none was given.
    """
    config: Any = model.config
    main = str(getattr(model, "main_input_name", "input_ids"))
    accepted = [name for name in inspect.signature(model.forward).parameters if name != main]
    given = _given(main, accepted, request, device)
    wanted = [] if given else [main]
    if main == "input_ids" and "pixel_values" in accepted and hasattr(config, "vision_config"):
        wanted.append("pixel_values")
    if getattr(config, "is_encoder_decoder", False):
        wanted.append("decoder_input_ids")
    unknown = [name for name in wanted if name not in _HF]
    if unknown:
        raise ModelNameError(
            f"no example of '{unknown[0]}' is known for {type(model).__name__}.",
            fix="give --input SHAPE (and --input-dtype)",
        )
    made = {name: _HF[name](config, device) for name in wanted} | given
    if main == "input_ids" and "attention_mask" in accepted and "attention_mask" not in made:
        made["attention_mask"] = torch.ones_like(made[main])
    return (), made


def _given(main: str, accepted: list[str], request: InputRequest, device: str) -> dict[str, Any]:
    """The requested inputs by name: the main one first, the others in the order of the forward's parameters."""
    if not request.shapes:
        return {}
    tokens = request.dtype is None and main == "input_ids"
    first, *rest = request.shapes
    tensors = [_tensor(first, torch.int64 if tokens else request.dtype, device)]
    tensors += [_tensor(shape, request.dtype, device) for shape in rest]
    return dict(zip([main, *accepted], tensors, strict=False))


def _tokens(config: Any, device: str) -> Tensor:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    most = getattr(text, "max_position_embeddings", None) or TOKENS
    vocabulary = getattr(text, "vocab_size", None) or 2
    return torch.randint(0, vocabulary, (2, min(TOKENS, most)), device=device)


def _pixels(config: Any, device: str) -> Tensor:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    return torch.rand(2, getattr(vision, "num_channels", 3), height, width, device=device)


def _spectrogram(config: Any, device: str) -> Tensor:
    frames = 2 * getattr(config, "max_source_positions", 1500)
    return torch.rand(2, getattr(config, "num_mel_bins", 80), frames, device=device)


def _waveform(config: Any, device: str) -> Tensor:
    return torch.rand(2, 16_000, device=device)  # one second


_HF: dict[str, Callable[[Any, str], Tensor]] = {
    "input_ids": _tokens,
    "decoder_input_ids": _tokens,
    "pixel_values": _pixels,
    "input_features": _spectrogram,
    "input_values": _waveform,
}


def _tensor(shape: tuple[int, ...], dtype: torch.dtype | None, device: str) -> Tensor:
    dtype = dtype or torch.float32
    try:
        if dtype.is_floating_point:
            return torch.rand(shape, dtype=dtype, device=device)
        return torch.randint(0, 2, shape, device=device).to(dtype)
    except (RuntimeError, OverflowError) as error:
        raise GraftError(
            f"an input of shape {shape} cannot be made on {device}.",
            why=str(error).partition("\n")[0],
            fix="give a smaller --input, or --device meta",
        ) from error
