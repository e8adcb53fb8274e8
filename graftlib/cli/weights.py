"""Read a state_dict from a file into a model.

In: ``.safetensors``, or a torch file that holds tensors alone. Out: the model, filled. All keys and shapes are compared
before the first tensor is written, and all offenders are named at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, nearest, shown

__all__ = ["load_weights", "read_weights"]


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` with the state_dict in `path`.

    Raises:
        CheckpointError: the file is missing, truncated, not a state_dict or of another model; `model` is as it was.
    """
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise CheckpointError(
            f"{shown(str(path))} has values, and a model on the meta device holds none.",
            fix="use --device cpu, or leave --weights out",
        )
    state = read_weights(path)
    offenders = _offenders(own, state)
    if offenders:
        raise CheckpointError(
            f"{shown(str(path))} is not a checkpoint of this {type(model).__name__}.",
            where=dict(list(offenders.items())[:8]),
            why=f"{len(offenders)} entries differ",
            fix="name the model that this file was saved from",
        )
    # A tied tensor is saved once and stands under two names: the missing one is filled through the other.
    model.load_state_dict(state, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in `path` on the CPU, by name.

    Raises:
        CheckpointError: the file is missing, truncated, or holds anything but named tensors.
    """
    try:
        if path.exists() and not path.is_file():  # a FIFO or a device might have no end
            raise OSError("it is no regular file")
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own exceptions, none of them a contract
        why = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{shown(str(path))} cannot be read as a checkpoint.",
            why=f"it is missing, truncated, or not of its format: {why}",
            fix="fetch or save it again; graftlib reads .safetensors, and .pt files that hold tensors alone",
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise CheckpointError(
            f"{shown(str(path))} holds no state_dict.", fix="save model.state_dict()"
        )
    return dict(content)


def _offenders(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Key -> what is wrong with it."""
    places = {_place(own[key]) for key in own.keys() & state.keys()}
    rows: dict[str, str] = {}
    for key, tensor in own.items():
        if key not in state:
            if _place(tensor) not in places:
                rows[shown(key)] = "is missing from the file"
        elif state[key].shape != tensor.shape:
            rows[shown(key)] = f"{tuple(tensor.shape)} here, {tuple(state[key].shape)} in the file"
    for key in state.keys() - own.keys():
        near = nearest(key, list(own), n=1)
        rows[shown(key)] = "is unknown here" + (f"; nearest {near[0]}" if near else "")
    return rows


def _place(tensor: Tensor) -> tuple[int, int]:
    return (tensor.data_ptr(), tensor.numel()) if tensor.numel() else (id(tensor), 0)
