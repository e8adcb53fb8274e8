"""Which modules of a model are its blocks: what is repeated, and what one model may have more of than another.

In: a model. Out: for a tensor, the blocks that it lies in, the outer first. A block is a module with two weights or
more that stands in a list of modules (``ModuleList``, ``Sequential``, ``ModuleDict``), or beside another one of its
class: a layer of BERT or GPT-2, a residual block of a ResNet, a stage of a Swin and a block in it. A bare
``Sequential`` is one in a ``ModuleList`` alone: elsewhere it groups whatever follows each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

from torch import nn

__all__ = ["Blocks", "around", "blocks_of", "same_depth"]

Blocks = tuple[str, ...]  # FQNs of modules, the outer first
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks_of(model: nn.Module) -> tuple[str, ...]:
    """FQNs of the blocks, outer before inner."""
    names = []
    for fqn, parent in model.named_modules():
        kinds = Counter(type(child) for child in parent.children())
        for name, child in parent.named_children():
            if _weights(child) < 2:
                continue
            if type(child) in _LISTS:
                repeated = isinstance(parent, nn.ModuleList) and type(child) is nn.Sequential
            else:
                repeated = isinstance(parent, _LISTS) or kinds[type(child)] > 1
            if repeated:
                names.append(f"{fqn}.{name}" if fqn else name)
    return tuple(names)


def _weights(module: nn.Module) -> int:
    return sum(parameter.ndim > 1 for parameter in module.parameters())


def around(fqn: str, blocks: Sequence[str]) -> Blocks:
    """The blocks that a tensor lies in."""
    return tuple(block for block in blocks if fqn.startswith(f"{block}."))


def same_depth(
    ones: Sequence[Blocks], others: Sequence[Blocks]
) -> Iterator[tuple[list[Blocks], list[Blocks]]]:
    """Every way in which blocks inside of blocks can be paired, where one model nests them deeper than the other.

    Layers of experts go with plain layers, and the stages or the blocks of a Swin with those of a ViT.

    >>> [*same_depth([("stage", "block")], [("layer",)])]
    [([('stage',)], [('layer',)]), ([('block',)], [('layer',)])]
    """
    depths = [max(map(len, each), default=0) for each in (ones, others)]
    shared = min(depths)
    for levels in combinations(range(depths[0]), shared):
        for other_levels in combinations(range(depths[1]), shared):
            yield _at(ones, levels), _at(others, other_levels)


def _at(every: Sequence[Blocks], levels: Sequence[int]) -> list[Blocks]:
    return [tuple(blocks[level] for level in levels if level < len(blocks)) for blocks in every]
