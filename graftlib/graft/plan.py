"""Turn a mapping into what a transfer works on: slots, links, and the tensors behind them.

In: a `Mapping`. Out: a `Plan`. Always true: every (model, address) is one slot, however many links meet there; no two
receiving slots share an element.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from ..errors import AttachError
from ..graph import Parameter
from ..match import Mapping, matrix, matrix_shape
from .adapter import Adapter, Link, Slot
from .linked import LinkedTensor

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """What a transfer reads and writes.

    Attributes:
        mapping: the mapping it was made from.
        parameters: one record per slot.
        tensors: the tensor behind each slot; slots of one tensor share the object.
        slots: shapes, ranks and who receives, in the same order.
        links: who gives to whom.
    """

    mapping: Mapping
    parameters: tuple[Parameter, ...]
    tensors: tuple[LinkedTensor, ...]
    slots: tuple[Slot, ...]
    links: tuple[Link, ...]

    @property
    def receivers(self) -> list[int]:
        """Positions of the slots that are written, in order."""
        return [i for i, slot in enumerate(self.slots) if slot.receives]

    @property
    def written(self) -> list[LinkedTensor]:
        """The tensors that are written, each once, in order."""
        return list(dict.fromkeys(self.tensors[i] for i in self.receivers))

    @property
    def clock(self) -> frozenset[LinkedTensor]:
        """The tensors whose optimizer steps are counted: the target's, or the source's where only it receives."""
        targets = frozenset(tensor for tensor in self.written if tensor.side == "target")
        return targets or frozenset(self.written)

    def matrices(self, values: dict[LinkedTensor, Tensor]) -> list[Tensor]:
        """The 2-D view of each slot, taken from the given values of whole tensors."""
        pairs = zip(self.parameters, self.tensors, strict=True)
        return [matrix(parameter, values[tensor]) for parameter, tensor in pairs]


def plan(mapping: Mapping, adapter: Adapter) -> Plan:
    """Slots and links of `mapping`, with ranks resolved by `adapter` from the values at this moment.

    Raises:
        AttachError: the mapping has no pairs, two receiving slots overlap, or a linked tensor has no values (it is on
            the meta device) or is not floating point.
    """
    if not mapping.pairs:
        raise AttachError(
            "the mapping links nothing, so there is nothing to graft.",
            fix="mapping.link('source.layer', 'target.layer'), or mapping.auto()",
        )
    seats = _Seats(mapping)
    for pair in mapping.pairs:
        source, target = seats.sit("source", pair.source), seats.sit("target", pair.target)
        name = f"{pair.source.address} -> {pair.target.address}"
        if pair.direction in ("forward", "both"):
            seats.link(source, target, name)
        if pair.direction in ("backward", "both"):
            seats.link(target, source, name if pair.direction == "backward" else f"{name} (back)")
    made = seats.plan(adapter)
    _refuse_overlaps(made)
    return made


class _Seats:
    """Hands out one slot per (model, address)."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self.models = {"source": mapping.source.model, "target": mapping.target.model}
        self.tensors: dict[tuple[int, str], LinkedTensor] = {}
        self.places: dict[tuple[int, str], int] = {}
        self.seated: list[tuple[Parameter, LinkedTensor]] = []
        self.links: list[Link] = []

    def sit(self, side: str, parameter: Parameter) -> int:
        model = self.models[side]
        key = (id(model), parameter.fqn)
        if key not in self.tensors:
            self.tensors[key] = LinkedTensor(side, model, parameter.fqn)
        place = (id(model), parameter.address)
        if place not in self.places:
            self.places[place] = len(self.seated)
            self.seated.append((parameter, self.tensors[key]))
        return self.places[place]

    def link(self, giver: int, receiver: int, name: str) -> None:
        self.links.append(Link(giver, receiver, name))

    def plan(self, adapter: Adapter) -> Plan:
        receives = {link.receiver for link in self.links}
        slots = []
        for i, (parameter, tensor) in enumerate(self.seated):
            values = _values(tensor)
            shape = matrix_shape(parameter)
            if i in receives and values.is_inference():
                raise AttachError(
                    f"'{tensor.name}' was made inside torch.inference_mode and can never be written or trained.",
                    fix="make or load the model outside of it",
                )
            rank = _rank(adapter, matrix(parameter, values).float(), min(shape))
            name = f"{tensor.side}:{parameter.address}"
            slots.append(Slot(name, shape, rank, i in receives))
        parameters, tensors = zip(*self.seated, strict=True)
        return Plan(self.mapping, parameters, tensors, tuple(slots), tuple(self.links))


def _rank(adapter: Adapter, values: Tensor, limit: int) -> int | None:
    rank: object = adapter.rank(values, limit)
    if rank is None or (
        isinstance(rank, int) and not isinstance(rank, bool) and 1 <= rank <= limit
    ):
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


def _refuse_overlaps(made: Plan) -> None:
    for i, j in combinations(made.receivers, 2):
        if made.tensors[i] is made.tensors[j] and overlap(made.parameters[i], made.parameters[j]):
            raise AttachError(
                "two links write to the same elements of one parameter.",
                where={"first": f"'{made.slots[i].name}'", "second": f"'{made.slots[j].name}'"},
                fix="link either the whole parameter or its parts",
            )


def overlap(one: Parameter, other: Parameter) -> bool:
    """Whether two records of one parameter share an element."""
    first, second = one.selection, other.selection
    if first is None or second is None or first.axis != second.axis:
        return True
    return not set(first.units).isdisjoint(second.units)
