"""The `Parameter` records of a traced model: one for every name of every parameter, in the model's own order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import fx

from .kinds import meaning_by_module, meaning_by_read
from .parameter import Parameter
from .reads import Read
from .roles import Projection
from .skeleton import Skeleton

__all__ = ["describe", "with_projections"]


def describe(
    model: Skeleton,
    reads: Mapping[str, Sequence[Read]],
    depths: Mapping[fx.Node, float],
) -> tuple[Parameter, ...]:
    """A record for each name of each parameter of `model`."""
    records = []
    for fqn, (origin, shape, dtype) in model.parameters.items():
        layer, _, leaf = fqn.rpartition(".")
        own = _own_reads(reads.get(origin, ()), layer)
        if own:
            meaning = meaning_by_read(own[0], leaf)
            depth = depths.get(own[0].node, 0.0)
        else:
            meaning, depth = meaning_by_module(model.modules[layer], leaf, shape), None
        records.append(
            Parameter(
                fqn=fqn,
                shape=shape,
                dtype=dtype,
                kind=meaning.kind,
                role=meaning.role,
                layer=layer,
                depth=depth,
                axes=meaning.axes,
                tied_to=origin if origin != fqn else None,
                groups=meaning.groups,
                parts=meaning.parts,
            )
        )
    return tuple(records)


def with_projections(
    records: Iterable[Parameter], projections: Mapping[str, Projection]
) -> Iterator[Parameter]:
    """The records, with the roles of those that are projections of attentions."""
    for record in records:
        projection = projections.get(record.tied_to or record.fqn)
        if projection is not None and record.kind in ("grouped", "other"):
            # The role holds; the parts would cut through groups, or through axes that are not named.
            yield replace(record, role=projection.role, heads=projection.heads)
        elif projection is not None and record.kind in _PROJECTED:
            yield replace(
                record, role=projection.role, heads=projection.heads, parts=projection.parts
            )
        else:
            yield record


_PROJECTED = ("linear", "conv", "bias")


def _own_reads(reads: Sequence[Read], layer: str) -> Sequence[Read]:
    """The reads that belong to this name of a tied parameter: those made by the module that owns the name."""
    return [read for read in reads if read.node.meta["module"] == layer] or reads
