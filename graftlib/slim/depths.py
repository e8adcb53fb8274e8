"""Width and depth for one budget: several numbers of blocks, each brought to the budget by its widths, compared.

In: the original, how a model is brought to a budget by widths. Out: the small model whose outputs are nearest to the
original's. Blocks go in the order of their importance (`surgery.blocks`), the least first; only those that hand on what
they take in its shape, and whose going is proven (`surgery.drop_blocks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

from ..graph import LayerGraph, trace
from ..progress import part, track
from ..surgery import Block, SurgeryError, blocks, drop_blocks
from ..surgery.blocks import inside
from ..surgery.order import Order, order_of
from ..surgery.recording import Batch
from .edit import Edit

S = TypeVar("S")
# (graph, model, globs of what to keep, order of the blocks that are left) -> a small model.
Narrowed = Callable[[LayerGraph, nn.Module, Sequence[str], Order], S]

__all__ = ["by_depth"]

_SHARES = (0.1, 0.2, 0.33, 0.5, 0.67)  # of the blocks that may go
_WORSE = 2  # so many depths in a row that are worse than the best end the search


def by_depth(
    graph: LayerGraph,
    model: nn.Module,
    batches: Sequence[Batch],
    keep: Sequence[str],
    narrowed: Narrowed[S],
    error: Callable[[S], float],
) -> S:
    """The best of several depths, the whole one among them.

    Args:
        graph: of the original.
        model: the original.
        batches: inputs, for the importance of blocks.
        keep: globs of layers; a block that holds one stays.
        narrowed: brings a model to the budget by its widths.
        error: how far the outputs of a small model are from the original's.

    Raises:
        SurgeryError: no depth meets the budget; what the whole depth says.
    """
    held = [each.fqn for pattern in keep for each in graph.parameters(pattern)]
    ranked = [
        each
        for each in _innermost(blocks(graph, data=batches, model=model))
        if not any(inside(fqn, each.fqn) for fqn in held)
    ]
    ranked.sort(key=lambda each: each.importance or 0.0)
    found: list[S] = []
    refusal = SurgeryError("no depth meets the budget.", fix="give a larger budget")
    try:
        with part(0.1, 0.3):
            found.append(narrowed(graph, model, keep, {}))
    except SurgeryError as smallest:
        if not hasattr(smallest, "least"):
            raise
        refusal = smallest  # the budget is below the smallest widths: fewer blocks may meet it
    worse = 0
    counts = sorted({round(len(ranked) * share) for share in _SHARES} - {0})
    with part(0.3, 1.0):
        for count in track(counts):
            try:
                small = _without(graph, model, ranked[:count], held, narrowed)
            except SurgeryError:  # not these together: the code or a config knows them
                continue
            worse = 0 if not found or error(small) < min(map(error, found)) else worse + 1
            found.append(small)
            if worse == _WORSE:
                break
    if not found:
        raise refusal
    return min(found, key=error)


def _innermost(known: Sequence[Block]) -> list[Block]:
    """Blocks that hold no other."""
    return [
        each
        for each in known
        if not any(other is not each and inside(other.fqn, each.fqn) for other in known)
    ]


def _without(
    graph: LayerGraph,
    model: nn.Module,
    gone: Sequence[Block],
    held: Sequence[str],
    narrowed: Narrowed[S],
) -> S:
    order = order_of(graph.model, {each.fqn: 0 for each in gone})
    shallow = drop_blocks(graph, gone, model=model)
    args, kwargs = graph.example
    names = Edit(graph.name, {}, {}).without(model, order)
    kept = [new for new in map(names.renamed, held) if new is not None]
    return narrowed(trace(shallow, args, kwargs), shallow, kept, order)
