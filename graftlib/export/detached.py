"""A copy of the model that shares nothing with it: eval mode, CPU, settled weights.

In: the user's model, in any mode, on any device. Out: a copy to convert and to ask for the right answers.
Always true: the model's mode, device, hooks, gradients and buffers are as before, and so are the random generators
after `undisturbed` closes.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import ExportError
from ..graph.structure import unwrap
from ..graph.tensors import replaced, tensor_leaves

__all__ = ["detached", "detached_tree", "undisturbed"]


def detached(model: nn.Module, graft: Any = None) -> nn.Module:
    """An eval-mode copy of `model` on the CPU that holds its settled weights.

    Args:
        model: wrappers of DDP and `torch.compile` are looked through.
        graft: the live graft whose pending write must not be shipped; None looks for every graft that owns
            parameters of `model`.

    Raises:
        ExportError: the model has no values (meta device), or cannot be copied.
    """
    model = unwrap(model)
    _require_values(model)
    settled = graft.settled() if graft is not None else _settled(model)
    with settled:
        try:
            twin = copy.deepcopy(model, _on_cpu(model))
        except Exception as error:
            raise ExportError(
                f"{type(model).__name__} cannot be copied, and an export never works on the model itself.",
                why=f"{type(error).__name__}: {_first_line(error)}",
                fix="make copy.deepcopy(model) work: take off hooks or attributes that hold tensors with a "
                "gradient history, locks or open files",
                model=type(model).__name__,
            ) from error
    return twin.cpu().eval().requires_grad_(False)


def detached_tree(tree: Any) -> Any:
    """The same nest of containers with every tensor copied to the CPU, without history; each leaf its own."""
    return replaced(tree, [t.detach().to("cpu", copy=True) for t in tensor_leaves(tree)])


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """The random generators of Python, numpy and torch leave this block as they entered it."""
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()
    # A device that nothing was run on yet has no state to keep, and asking would wake it.
    woken = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if woken else ()
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


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


def _on_cpu(model: nn.Module) -> dict[int, Any]:
    """`deepcopy`'s memo, filled with CPU copies, so that a model on an accelerator is not doubled there."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if parameter.device.type != "cpu" and type(parameter) is nn.Parameter:
            memo[id(parameter)] = nn.Parameter(parameter.detach().cpu(), parameter.requires_grad)
    for buffer in model.buffers():
        if buffer.device.type != "cpu" and type(buffer) is torch.Tensor:
            memo[id(buffer)] = buffer.detach().cpu()
    return memo


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
