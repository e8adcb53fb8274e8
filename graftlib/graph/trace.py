"""`trace`: a model and example inputs in, a `LayerGraph` out. The model stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import check
from ..errors import TraceError, shown
from .caches import Caches, find_caches, kept_tensors
from .capture import capture
from .layergraph import LayerGraph
from .structure import unwrap

__all__ = ["trace"]


def trace(
    model: nn.Module,
    args: Sequence[Any] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    device: torch.device | str | None = None,
) -> LayerGraph:
    """See `model` as a graph of layers.

    Runs a forward pass in eval mode on tensors without memory; only a model that branches on values it computed
    is run for real, on a copy of its structure. Parameters, buffers, hooks, training flags and random states stay
    as they are. Forward hooks of the model run too, as they may take part in what it computes.

    Args:
        model: any module, also on the meta device; DataParallel, DistributedDataParallel and `torch.compile`
            are looked through.
        args: positional example inputs, nested as the forward pass takes them; tensors on any device, the
            meta device included. One tensor may stand without its tuple.
        kwargs: keyword example inputs.
        device: the device that the forward pass is meant for; the model's own by default.

    Raises:
        TraceError: an argument is not what it should be, or no way of tracing could follow the model; the message
            says what each one answered. Or the model is a ScriptModule, or holds one.

    Examples:
        >>> graph = trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.empty(1, 3, device="meta"))
        >>> [layer.name for layer in graph.layers]
        ['0', '1']
    """
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"only a torch.nn.Module can be traced, not a {type(model).__name__}.",
            fix="wrap the function in a module: its forward calls the function",
        )
    check(
        TraceError,
        fix="trace(model, (x,)) or trace(model, (), {'name': x}), with inputs that the model takes",
        args=(args if not isinstance(args, (str, bytes, Mapping)) else None, (Tensor, Iterable)),
        kwargs=(kwargs, (Mapping, type(None))),
    )
    _require_device(device)
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    model = unwrap(model)
    # A tensor that an earlier run made from the weights would be taken for a constant.
    places = kept_tensors(model)
    caches = find_caches(model, args, kwargs) if places else Caches({})
    constants = [place for place in places if place not in caches.places]
    seen = capture(caches.without(model), args, kwargs, device=device)
    # Who traces inside `with torch.device("meta")` means the model: reading the graph needs numbers.
    with torch.device("cpu"):
        return LayerGraph(model, seen, args, kwargs, constants=constants)


def _require_device(device: object) -> None:
    try:
        torch.device(device)  # type: ignore[call-overload]
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        if device is not None:
            raise TraceError(
                f"device={shown(device)} is no device.",
                why=str(error).partition("\n")[0],
                fix="device='cpu', 'cuda:0' or 'meta', or None for the model's own",
            ) from None
