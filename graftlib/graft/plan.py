"""Turn a mapping into what a transfer works on: linked matrices, links, and the tensors behind them.

In: a `Mapping`. Out: a `Plan`. Always true: every (model, address) is one linked matrix, however many links name it; no
two that are written share an element.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ..errors import AttachError
from ..graph import Parameter
from ..match import Mapping, matrix, matrix_shape, unmatrix
from ..match.pairing import overlap
from .adapter import Adapter, Link, LinkedMatrix
from .linked import LinkedTensor

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """What a transfer reads and writes.

    Attributes:
        mapping: the mapping it was made from.
        parameters: one record per linked matrix.
        tensors: the tensor behind each; matrices of one tensor share the object.
        matrices: shapes, ranks and which are written, in the same order.
        links: which matrix is written from which.
    """

    mapping: Mapping
    parameters: tuple[Parameter, ...]
    tensors: tuple[LinkedTensor, ...]
    matrices: tuple[LinkedMatrix, ...]
    links: tuple[Link, ...]

    @property
    def targets(self) -> list[int]:
        """Positions of the matrices that are written, in order."""
        return [i for i, matrix in enumerate(self.matrices) if matrix.written]

    @property
    def written(self) -> list[LinkedTensor]:
        """The tensors that are written, each once, in order."""
        return list(dict.fromkeys(self.tensors[i] for i in self.targets))

    @property
    def counted(self) -> frozenset[LinkedTensor]:
        """The tensors whose optimizer steps are counted: the target model's, or the source's if only it is written."""
        targets = frozenset(tensor for tensor in self.written if tensor.side == "target")
        return targets or frozenset(self.written)

    def views(self, values: dict[LinkedTensor, Tensor]) -> list[Tensor]:
        """The 2-D view of each linked matrix, taken from the given values of whole tensors."""
        pairs = zip(self.parameters, self.tensors, strict=True)
        return [matrix(parameter, values[tensor]) for parameter, tensor in pairs]

    def rewritten(
        self, values: dict[LinkedTensor, Tensor], outputs: Iterable[Tensor]
    ) -> dict[LinkedTensor, Tensor]:
        """The written tensors whole, in their own dtype, from one new matrix for each that is written."""
        written: dict[LinkedTensor, Tensor] = {}
        for i, output in zip(self.targets, outputs, strict=True):
            tensor = self.tensors[i]
            into = written.get(tensor, values[tensor])
            new = output.to(into.device, into.dtype)
            written[tensor] = unmatrix(self.parameters[i], new, into=into)
        return written

    def device(self, values: dict[LinkedTensor, Tensor]) -> torch.device:
        """Where the adapter runs: where the first written tensor is."""
        return values[self.tensors[self.targets[0]]].device


def plan(mapping: Mapping, adapter: Adapter) -> Plan:
    """Linked matrices and links of `mapping`, with ranks resolved by `adapter` from the values at this moment.

    Raises:
        AttachError: the mapping has no pairs, two written matrices overlap, or a linked tensor has no values (it is on
            the meta device) or is not floating point.
    """
    if not mapping.pairs:
        raise AttachError(
            "the mapping links nothing, so there is nothing to graft.",
            fix="mapping.link('source.layer', 'target.layer'), or mapping.auto()",
        )
    builder = _Builder(mapping)
    for pair in mapping.pairs:
        source, target = builder.add("source", pair.source), builder.add("target", pair.target)
        name = f"{pair.source.address} -> {pair.target.address}"
        if pair.direction in ("forward", "both"):
            builder.links.append(Link(source, target, name))
        if pair.direction in ("backward", "both"):
            back = name if pair.direction == "backward" else f"{name} (back)"
            builder.links.append(Link(target, source, back))
    result = builder.plan(adapter)
    _refuse_overlaps(result)
    return result


class _Builder:
    """Numbers the linked matrices, one per (model, address)."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self.models = {"source": mapping.source.model, "target": mapping.target.model}
        self.tensors: dict[tuple[int, str], LinkedTensor] = {}
        self.positions: dict[tuple[int, str], int] = {}
        self.linked: list[tuple[Parameter, LinkedTensor]] = []
        self.links: list[Link] = []

    def add(self, side: str, parameter: Parameter) -> int:
        model = self.models[side]
        key = (id(model), parameter.fqn)
        if key not in self.tensors:
            self.tensors[key] = LinkedTensor(side, model, parameter.fqn)
        address = (id(model), parameter.address)
        if address not in self.positions:
            self.positions[address] = len(self.linked)
            self.linked.append((parameter, self.tensors[key]))
        return self.positions[address]

    def plan(self, adapter: Adapter) -> Plan:
        targets = {link.target for link in self.links}
        matrices = []
        for i, (parameter, tensor) in enumerate(self.linked):
            values = _values(tensor)
            shape = matrix_shape(parameter)
            if i in targets and values.is_inference():
                raise AttachError(
                    f"'{tensor.name}' was made inside torch.inference_mode and can never be written or trained.",
                    fix="make or load the model outside of it",
                )
            rank = _rank(adapter, matrix(parameter, values).float(), min(shape))
            name = f"{tensor.side}:{parameter.address}"
            matrices.append(LinkedMatrix(name, shape, rank, i in targets, values.dtype))
        parameters, tensors = zip(*self.linked, strict=True)
        return Plan(self.mapping, parameters, tensors, tuple(matrices), tuple(self.links))


def _rank(adapter: Adapter, values: Tensor, limit: int) -> int | None:
    rank: object = adapter.rank(values, limit)
    if rank is None or (type(rank) is int and 1 <= rank <= limit):
        return rank
    raise AttachError(
        f"{type(adapter).__name__}.rank returned {rank!r} for a matrix of rank {limit} at most.",
        fix=f"return an int from 1 to {limit}, or None for the whole matrix",
    )


def _values(tensor: LinkedTensor) -> Tensor:
    live = tensor.live().detach()
    if live.device.type == "meta":
        raise AttachError(
            f"'{tensor.name}' is on the meta device and has no values to graft with.",
            fix="materialise the model (model.to_empty, then load its weights) and trace it again",
        )
    if not live.is_floating_point():
        raise AttachError(
            f"'{tensor.name}' has dtype {live.dtype}; only floating point weights can be rewritten.",
            fix="dequantise the layer, or leave it out of the mapping",
        )
    return tensor.read() if tensor.sharded else live


def _refuse_overlaps(plan: Plan) -> None:
    for i, j in combinations(plan.targets, 2):
        one, other = plan.parameters[i].selection, plan.parameters[j].selection
        if plan.tensors[i] is plan.tensors[j] and overlap(one, other):
            raise AttachError(
                "two links write to the same elements of one parameter.",
                where={
                    "first": f"'{plan.matrices[i].name}'",
                    "second": f"'{plan.matrices[j].name}'",
                },
                fix="link either the whole parameter or its parts",
            )
