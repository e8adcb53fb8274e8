"""What a recording without values still knows: integers and truth values that ops made of nothing but numbers.

In: the graph as far as it is written. Out: the answer of an op that asks for values (``.item()``, ``if tensor``,
``nonzero``), by running on the CPU the recorded ops that they came from. Always true: no value of an input, a
parameter, a buffer or a random number takes part, and what is given is what every run at these shapes gives. Whole
numbers are exact on every device; floating-point numbers are not, and are unknown.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx

from .._torch_private import OpOverload, pytree
from .structure import like_meta

__all__ = ["Constants"]

LIMIT = 1 << 20  # elements of a tensor; larger ones are not made
CPU = torch.device("cpu")


class Constants:
    """The constants of a graph that is being written.

    Args:
        graph: of ops in the order in which they ran, writes too.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph, self._read = graph, 0
        # Views share memory here as they do in a run, so that a write reaches all that it reaches there.
        self._values: dict[object, Any] = {}

    def answer(
        self,
        op: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        find: Callable[[Tensor], fx.Node | str | None],
    ) -> Any:
        """What an op gives, its tensors as meta tensors; None where it asks for what is not constant.

        Args:
            op: an ATen overload that writes into nothing.
            args: positional arguments.
            kwargs: arguments by name.
            find: from a tensor to its node in the graph; anything else where it has none.
        """
        self._replay()
        try:
            self._must_be_sure(op)
            args, kwargs = pytree.tree_map_only(
                Tensor, lambda t: self._values[find(t)], (args, kwargs)
            )
            result = op(*args, **kwargs)
        except Exception:
            return None
        return pytree.tree_map_only(Tensor, like_meta, result)

    def _replay(self) -> None:
        """Run what was written since the last time."""
        for node in islice(self._graph.nodes, self._read, None):
            self._read += 1
            if node.op != "call_function":
                continue
            try:
                self._values[node] = self._run(node)
            except Exception:  # of an unknown operand, or of an op that the CPU does not run
                if isinstance(node.target, OpOverload) and node.target._schema.is_mutable:
                    self._forget(node)

    def _run(self, node: fx.Node) -> Any:
        due = list(_tensors(node.meta["val"]))
        if any(t.is_floating_point() or t.is_complex() or t.numel() > LIMIT for t in due):
            raise LookupError
        if node.target is operator.getitem:
            source: Any
            place: Any
            source, place = node.args
            return self._values[source][place]
        self._must_be_sure(node.target)
        args, kwargs = pytree.tree_map(self._real, (node.args, node.kwargs))
        target: Any = node.target
        result = target(*args, **kwargs)
        if [_form(t) for t in _tensors(result)] != [_form(t) for t in due]:
            raise LookupError
        return result

    @staticmethod
    def _must_be_sure(op: Any) -> None:
        """An op of torch's own that draws no numbers and leaves no memory as it found it."""
        name = op._schema.name
        unset = any(word in name for word in ("empty", "resize"))
        if op.namespace != "aten" or unset or torch.Tag.nondeterministic_seeded in op.tags:
            raise LookupError

    def _real(self, leaf: Any) -> Any:
        if isinstance(leaf, fx.Node):
            return self._values[leaf]
        return CPU if isinstance(leaf, torch.device) else leaf

    def _forget(self, node: fx.Node) -> None:
        """What an op wrote that could not be run: nothing is known any more of the memory that it was given."""
        inputs = [self._values.get(each) for each in node.all_input_nodes]
        lost = {_memory(tensor) for tensor in _tensors(inputs)}
        self._values = {
            each: value
            for each, value in self._values.items()
            if lost.isdisjoint(map(_memory, _tensors(value)))
        }


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.stride()


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
