"""What must be scaled when units of zero join others: RMS norms over them, and the queries of an attention.

With n units among N, the others zero: mean_N(x^2) = n/N mean_n(x^2), so x / sqrt(mean_N(x^2) + eps n/N) is the old
norm times sqrt(N/n), and a gain of sqrt(n/N) takes that back. q.k / sqrt(D) is q.k / sqrt(d) where q took the factor
sqrt(D/d).
Nothing here is believed: the wider model is run next to the old one afterwards.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._torch_private import Norm
from ..graph import LayerGraph
from ..graph.axes import AxisClass
from ..graph.parameter import Parameter
from ..graph.structure import duplicate, own
from .edits import Rows, tensor_of
from .importance import parameter_of, reads

__all__ = [
    "EPS",
    "Rms",
    "meets_norm",
    "rescale_norms",
    "rescale_queries",
    "rms_norms",
    "role_places",
    "scores_only",
]

# What norms call their small number.
EPS = ("eps", "variance_epsilon", "epsilon", "norm_eps")
"""The names under which modules of norms keep what they add to a variance."""


def meets_norm(graph: LayerGraph, each: AxisClass, kept: Container[str] = ()) -> bool:
    """Whether a norm that looks at all units has its gain in the class; those of `kept` gains are scaled."""
    for member in each.members:
        found = parameter_of(graph, member.fqn)
        if found is not None and found.kind == "norm" and found.fqn not in kept:
            module = graph.model.get_submodule(found.layer)
            if not isinstance(module, Norm):
                return True
    return False


def scores_only(graph: LayerGraph, each: AxisClass) -> bool:
    """Whether nothing but the scores of attentions reads the units: the class of a head's query and key."""
    if any(reads(graph, member) for member in each.members):
        return False
    return any(len(role_places(graph, m.fqn, m.axis, "attention.query")) for m in each.members)


def role_places(graph: LayerGraph, fqn: str, axis: int, role: str) -> Tensor:
    """(n,) int64: the places on an axis of a parameter that have a role in an attention; a bias by its weight."""
    found = parameter_of(graph, fqn)
    if found is None:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    if found.kind == "bias":
        weight = parameter_of(graph, _weight_beside(found))
        if weight is None or weight.kind != "linear":
            return torch.empty(0, dtype=torch.int64, device="cpu")
        found, axis = weight, weight.axes.index("out")
    if found.role == role and "out" in found.axes and found.axes.index("out") == axis:
        return torch.arange(found.shape[axis], device="cpu")
    units = [u for p in found.parts.values() if p.role == role and p.axis == axis for u in p.units]
    return torch.tensor(sorted(set(units)), dtype=torch.int64, device="cpu")


def _weight_beside(bias: Parameter) -> str:
    owner, dot, leaf = bias.fqn.rpartition(".")
    return f"{owner}{dot}{leaf.replace('bias', 'weight')}"


def rescale_queries(
    edited: nn.Module, graph: LayerGraph, widths: Mapping[AxisClass, int], rows: Rows
) -> None:
    """Queries over the widened units, in place, times the root of how much wider they are."""
    done: set[tuple[str, int]] = set()
    for each, width in widths.items():
        if not scores_only(graph, each):
            continue
        for member in each.members:
            key = (member.fqn, member.axis)
            if key in done:
                continue
            done.add(key)
            old = role_places(graph, *key, "attention.query")
            tensor = tensor_of(edited, member.fqn).detach()
            places = torch.isin(rows[key], old).nonzero().flatten().to(tensor.device)
            part = tensor.index_select(member.axis, places) * (width / each.size) ** 0.5
            tensor.index_copy_(member.axis, places, part)


@dataclass(frozen=True)
class Rms:
    """An RMS norm over widened units, as it was before.

    Attributes:
        fqn: of its gain.
        layer: FQN of its module.
        units: how many its gain had.
        offset: 1 where it multiplies by 1 + gain, else 0.
        eps: name of the attribute -> its small number.
    """

    fqn: str
    layer: str
    units: int
    offset: float
    eps: Mapping[str, float]


def rms_norms(graph: LayerGraph, model: nn.Module, classes: Iterable[AxisClass]) -> list[Rms]:
    """The RMS norms whose gains are members of the classes."""
    found: dict[str, Rms] = {}
    for member in (member for each in classes for member in each.members):
        known = parameter_of(graph, member.fqn)
        if known is None or known.role != "gain" or member.fqn in found:
            continue
        module = model.get_submodule(known.layer)
        offset = _rms_offset(module, known.shape)
        if offset is not None:
            held = {name: module.__dict__.get(name) for name in EPS}
            eps = {name: value for name, value in held.items() if isinstance(value, float)}
            found[member.fqn] = Rms(member.fqn, known.layer, known.shape[0], offset, eps)
    return list(found.values())


def rescale_norms(edited: nn.Module, norms: Iterable[Rms]) -> None:
    """RMS norms over units of zero, in place: gain and eps."""
    for norm in norms:
        gain = tensor_of(edited, norm.fqn).detach()
        share = norm.units / gain.shape[0]
        gain.copy_((gain + norm.offset) * share**0.5 - norm.offset)
        for name, value in norm.eps.items():
            setattr(edited.get_submodule(norm.layer), name, value * share)


def _rms_offset(module: nn.Module, shape: tuple[int, ...]) -> float | None:
    """0 for an RMS norm by its gain, 1 for one by 1 + gain, None for neither; by what the module does."""
    if len(shape) != 1 or len(list(module.parameters())) != 1:
        return None
    twin = duplicate(module, own).to("cpu", torch.float64).eval()
    random = torch.Generator().manual_seed(0)
    # Large, so that eps is nothing beside it.
    x = 1e4 * torch.randn(3, *shape, dtype=torch.float64, generator=random, device="cpu")
    (gain,) = twin.parameters()
    with torch.no_grad():
        gain.copy_(torch.rand(shape, dtype=torch.float64, generator=random, device="cpu") + 0.5)
        try:
            given = twin(x)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return None
        if not isinstance(given, Tensor) or given.shape != x.shape:
            return None
        plain = x / x.square().mean(-1, keepdim=True).sqrt()
        for offset in (0.0, 1.0):
            # A norm that computes in single precision by itself is one, too.
            if torch.allclose(given.double(), plain * (gain + offset), rtol=1e-5, atol=1e-5):
                return offset
    return None
