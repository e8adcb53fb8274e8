"""What the ops that follow will do with a tensor.

In: a node of a graph in the normal form. Out: which of its dimensions is taken apart (`picked`), and whether
somebody writes into it (`written`). Only views and element-wise ops of one tensor are looked through.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["overload", "picked", "written"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TAKES_APART = _words(
    """
    aten::select aten::unbind aten::split aten::split_with_sizes aten::chunk aten::slice
    aten::tensor_split aten::narrow aten::unsafe_split aten::unsafe_chunk
    """
)
_PERMUTES = _words(
    """
    aten::permute aten::transpose aten::t aten::movedim aten::moveaxis aten::swapaxes
    aten::swapdims aten::numpy_T aten::mT
    """
)
# More parts than this are positions rather than query, key and value.
_MOST = 16


def overload(node: fx.Node) -> str:
    """``aten.add_.Tensor``; the name of the function where no op is called."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return str(getattr(node.target, "__name__", node.target))
    return f"{schema.name.replace('::', '.')}.{schema.overload_name or 'default'}"


def picked(node: fx.Node) -> int | None:
    """The dimension of `node` that a later op takes apart by position; None where none does."""
    shape = tuple(node.meta["val"].shape)
    queue: list[tuple[fx.Node, tuple[int | None, ...]]] = [(node, tuple(range(len(shape))))]
    for _ in range(40):
        if not queue:
            return None
        here, dims = queue.pop(0)
        for user in here.users:
            found = _taken_apart(user, here, dims)
            if found is not None and 1 < shape[found] <= _MOST:
                return found
            after = _after(user, here, dims)
            if after is not None:
                queue.append((user, after))
    return None


def _schema_name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return str(schema.name) if schema is not None else ""


def _taken_apart(user: fx.Node, here: fx.Node, dims: tuple[int | None, ...]) -> int | None:
    name = _schema_name(user)
    if name not in _TAKES_APART or user.args[0] is not here:
        return None
    default = 0
    at = (
        2
        if name.split("::")[1]
        in ("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
        else 1
    )
    d: Any = user.args[at] if len(user.args) > at else user.kwargs.get("dim", default)
    if not isinstance(d, int) or not dims:
        return None
    at_dim = d % len(dims)
    if name == "aten::slice" and user.meta["val"].shape[at_dim] == here.meta["val"].shape[at_dim]:
        return None
    return dims[at_dim]


def _after(
    user: fx.Node, here: fx.Node, dims: tuple[int | None, ...]
) -> tuple[int | None, ...] | None:
    """Where the dimensions stand after `user`; None where they are lost."""
    value = user.meta.get("val")
    if (
        user.op != "call_function"
        or not isinstance(value, Tensor)
        or user.all_input_nodes[:1] != [here]
    ):
        return None
    name, shape = _schema_name(user), tuple(here.meta["val"].shape)
    if name in _PERMUTES:
        labels = list(range(2, 2 + len(dims)))
        function = getattr(torch.ops.aten, name.split("::")[1])
        moved = function(torch.empty(labels, device="meta"), *user.args[1:], **user.kwargs)
        return tuple(dims[label - 2] for label in moved.shape)
    if tuple(value.shape) == shape and name not in ("aten::view", "aten::reshape"):
        alone = len(user.all_input_nodes) == 1
        small = all(n is here or n.meta["val"].ndim == 0 for n in user.all_input_nodes)
        return dims if alone or small else None
    if name in ("aten::unsqueeze", "aten::squeeze", "aten::slice"):
        return _matched(shape, tuple(value.shape), dims, name)
    return None


def _matched(
    before: tuple[int, ...], after: tuple[int, ...], dims: tuple[int | None, ...], name: str
) -> tuple[int | None, ...] | None:
    if name == "aten::slice":
        return tuple(None if a != b else d for a, b, d in zip(before, after, dims, strict=True))
    long = [d for d, size in zip(dims, before, strict=True) if size != 1]
    if len(long) != sum(size != 1 for size in after):
        return None
    return tuple(None if size == 1 else long.pop(0) for size in after)


def written(node: fx.Node) -> bool:
    """Whether an op writes into `node` or into a view of it."""
    queue, seen = [node], {node}
    while queue:
        here = queue.pop()
        for user in here.users:
            schema = getattr(user.target, "_schema", None)
            if schema is None:
                follow = user.op == "call_function"
            else:
                if schema.is_mutable and not schema.name.endswith("detach_"):
                    return True
                follow = (
                    any(argument.alias_info for argument in schema.arguments)
                    or "contiguous" in schema.name
                )
                follow |= schema.name in (
                    "aten::reshape",
                    "aten::flatten",
                    "aten::to",
                    "aten::expand_as",
                    "aten::view_as",
                    "aten::unflatten",
                )
            if follow and user not in seen:
                seen.add(user)
                queue.append(user)
    return False
