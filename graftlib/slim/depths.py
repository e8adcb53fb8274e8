"""Width and depth for one budget: several numbers of blocks, each brought to the budget by its widths, compared.

In: the original, how a model is brought to a budget by widths. Out: the small model whose outputs are nearest to the
original's. Blocks go in the order of their importance (`surgery.blocks`), the least first; only those that hand on what
they take in its shape, and whose going is proven (`surgery.drop_blocks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from ..graph import LayerGraph, trace
from ..surgery import Block, SurgeryError, blocks, drop_blocks
from ..surgery.blocks import inside
from ..surgery.depth import Order, order_without

if TYPE_CHECKING:
    from .slimming import Slim, _Whole

__all__ = ["by_depth"]

_SHARES = (0.1, 0.2, 0.33, 0.5, 0.67)  # of the blocks that may go
_WORSE = 2  # so many depths in a row that are worse than the best end the search


def by_depth(
    whole: _Whole,
    keep: Sequence[str],
    narrowed: Callable[[LayerGraph, nn.Module, Sequence[str], Order], Slim],
) -> Slim:
    """The best of several depths, the whole one among them.

    Args:
        whole: the original, with data.
        keep: globs of layers; a block that holds one stays.
        narrowed: (graph, model, what to keep, order of the blocks that are left) -> a small model.

    Raises:
        SurgeryError: no depth meets the budget; what the whole depth says.
    """
    graph, model = whole.graph, whole.model
    held = [each.fqn for pattern in keep for each in graph.parameters(pattern)]
    ranked = [
        each
        for each in _innermost(blocks(graph, data=whole.batches, model=model))
        if not any(inside(fqn, each.fqn) for fqn in held)
    ]
    ranked.sort(key=lambda each: each.importance or 0.0)
    found: list[Slim] = []
    refusal: SurgeryError | None = None
    try:
        found.append(narrowed(graph, model, keep, {}))
    except SurgeryError as error:
        if not hasattr(error, "least"):
            raise
        refusal = error  # the budget is below the smallest widths: fewer blocks may meet it
    worse = 0
    for count in sorted({round(len(ranked) * share) for share in _SHARES} - {0}):
        try:
            small = _without(whole, ranked[:count], held, narrowed)
        except SurgeryError:  # not these together: the code or a config knows them
            continue
        worse = 0 if not found or _error(small) < min(map(_error, found)) else worse + 1
        found.append(small)
        if worse == _WORSE:
            break
    if not found:
        raise refusal or SurgeryError("no depth meets the budget.")
    return min(found, key=_error)


def _error(small: Slim) -> float:
    fidelity = small.report.fidelity
    return 0.0 if fidelity is None else fidelity.error


def _innermost(known: Sequence[Block]) -> list[Block]:
    """Blocks that hold no other."""
    return [
        each
        for each in known
        if not any(other is not each and inside(other.fqn, each.fqn) for other in known)
    ]


def _without(
    whole: _Whole,
    gone: Sequence[Block],
    held: Sequence[str],
    narrowed: Callable[[LayerGraph, nn.Module, Sequence[str], Order], Slim],
) -> Slim:
    order = order_without(whole.graph, gone)
    shallow = drop_blocks(whole.graph, gone, model=whole.model)
    args, kwargs = whole.graph.example
    return narrowed(trace(shallow, args, kwargs), shallow, _new_names(whole, order, held), order)


def _new_names(whole: _Whole, order: Order, held: Sequence[str]) -> list[str]:
    """Names of layers that are kept, as they are once blocks are left out."""
    from .edit import Edit

    edit = Edit(whole.graph.name, {}, {}).without(whole.model, order)
    return [new for new in map(edit.renamed, held) if new is not None]
