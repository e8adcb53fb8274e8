"""A copy of the model that shares nothing with it: eval mode, CPU, settled weights.

In: the user's model, in any mode, on any device. Out: a copy to convert and to ask for the right answers.
Always true: the model's mode, device, hooks, gradients and buffers are as before.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from ..errors import ExportError
from ..graph.structure import duplicate, own, unwrap
from ..graph.tensors import replaced, tensor_leaves

__all__ = ["detached", "detached_tree"]


def detached(model: nn.Module, graft: Any = None) -> nn.Module:
    """An eval-mode copy of `model` on the CPU that holds its settled weights.

    Args:
        model: wrappers of DataParallel, DDP and `torch.compile` are looked through. What refuses to be copied (a lock,
            an open file) is shared with the copy.
        graft: the live graft whose pending write must not be shipped; None looks for every graft that owns
            parameters of `model`.

    Raises:
        ExportError: the model has no values (meta device), or is a ScriptModule.
    """
    model = unwrap(model, ExportError)
    _require_values(model)
    settled = graft.settled() if graft is not None else _settled(model)
    with settled:
        twin = duplicate(model, _on_cpu)
    return twin.cpu().eval().requires_grad_(False)


def detached_tree(tree: Any) -> Any:
    """The same nest of containers with every tensor copied to the CPU, without history; each leaf its own.

    Tensors on the meta device have nothing to copy, and stay there.
    """
    copied = [
        t.detach() if t.is_meta else t.detach().to("cpu", copy=True) for t in tensor_leaves(tree)
    ]
    return replaced(tree, copied)


def _require_values(model: nn.Module) -> None:
    named = [*model.named_parameters(), *model.named_buffers()]
    empty = [name for name, tensor in named if tensor.device.type == "meta"]
    if empty:
        raise ExportError(
            f"{type(model).__name__} holds no values: {len(empty)} of its tensors are on the meta device.",
            where={"first": repr(empty[0])},
            fix="load the weights first, for example model.to_empty(device='cpu') and load_state_dict",
            model=type(model).__name__,
        )


def _settled(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    from ..graft import settled

    manager: contextlib.AbstractContextManager[Any] = settled(model)
    return manager


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of its own; one on an accelerator is not doubled there."""
    plain = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer)
    if tensor.device.type == "cpu" or not plain:
        return own(tensor)
    moved = tensor.detach().cpu()
    return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
