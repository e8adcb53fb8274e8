"""What the ops that follow will do with a tensor. Only views and element-wise ops of one tensor are looked through."""

from __future__ import annotations

from torch import Tensor, fx

from ..ops import arguments, name_of, order_of, spec, words
from ..walk import follow, reach, users

__all__ = ["picked", "written"]

# More parts than this are positions rather than query, key and value.
_MOST = 16
# Give a view of their input, or may give one, though their schema does not say so.
_VIEWS = words("contiguous reshape flatten to expand_as view_as unflatten")

Dims = tuple[int | None, ...]


def picked(node: fx.Node) -> int | None:
    """The dimension of `node` that a later op takes apart by position; None where none does."""
    shape = tuple(node.meta["val"].shape)
    dims: Dims = tuple(range(len(shape)))
    for user, here, known, _ in follow(node, dims, _after, limit=40):
        dim = _taken_apart(user, here, known)
        if dim is not None and 1 < shape[dim] <= _MOST:
            return dim
    return None


def _taken_apart(user: fx.Node, here: fx.Node, dims: Dims) -> int | None:
    if spec(user).how != "split" or user.args[0] is not here or not dims:
        return None
    dim = arguments(user).get("dim")
    if not isinstance(dim, int):
        return None
    dim %= len(dims)
    sliced = name_of(user) == "slice"
    if sliced and user.meta["val"].shape[dim] == here.meta["val"].shape[dim]:
        return None
    return dims[dim]


def _after(user: fx.Node, here: fx.Node, dims: Dims) -> Dims | None:
    """Where the dimensions stand after `user`; None where they are lost."""
    value = user.meta.get("val")
    called = user.op == "call_function" and user.all_input_nodes[:1] == [here]
    if not called or not isinstance(value, Tensor):
        return None
    name, before, after = name_of(user), tuple(here.meta["val"].shape), tuple(value.shape)
    if spec(user).how == "permute":
        return tuple(dims[i] for i in order_of(user))
    if after == before and name not in ("view", "reshape"):
        alone = all(n is here or n.meta["val"].ndim == 0 for n in user.all_input_nodes)
        return dims if alone else None
    if name == "slice":
        return tuple(None if a != b else d for a, b, d in zip(before, after, dims, strict=True))
    if name in ("unsqueeze", "squeeze"):
        long = [d for d, size in zip(dims, before, strict=True) if size != 1]
        fits = len(long) == sum(size != 1 for size in after)
        return tuple(None if size == 1 else long.pop(0) for size in after) if fits else None
    return None


def written(node: fx.Node) -> bool:
    """Whether an op writes into `node` or into a view of it."""
    return any(map(_writes, reach([node], users, _may_be_view)))


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and not schema.name.endswith("detach_")


def _may_be_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.op == "call_function"
    return name_of(node) in _VIEWS or any(argument.alias_info for argument in schema.arguments)
