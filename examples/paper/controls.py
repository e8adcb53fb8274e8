"""What a graft must beat before a gain is knowledge: sources that know nothing, and noise of the transfers' size.

In: a graft, trained models. Out: a frozen source whose linked weights carry nothing; or noise that is added where and
when the graft would have written. Always true: models that are passed in are not changed, but for the noise.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from graftlib import Mapping, trace
from graftlib.match import matrix, unmatrix
from graftlib_adapters.assembly import transplant

from .experiment import Graft

__all__ = ["Noise", "aligned", "link", "spoiled"]


def link(
    graft: Graft,
    source: nn.Module,
    target: nn.Module,
    source_example: tuple[Tensor, ...],
    target_example: tuple[Tensor, ...],
) -> Mapping:
    """The graft's links between two models; one model is traced once.

    Where the graft is ``aligned``, `source` is what `aligned` gave, and a layer is linked to itself.
    """
    receiving = trace(target, target_example)
    giving = receiving if source is target else trace(source, source_example)
    mapping = Mapping(giving, receiving)
    for one, other in graft.links:
        source = other if graft.aligned else one
        mapping.link(source, other, direction=graft.direction)  # type: ignore[arg-type]
    return mapping


def aligned(
    links: tuple[tuple[str, str], ...],
    source: nn.Module,
    target: nn.Module,
    source_example: tuple[Tensor, ...],
    target_example: tuple[Tensor, ...],
) -> nn.Module:
    """A copy of the target with the source's weights in it, unit for unit; what meets nothing is as in `target`.

    Args:
        links: (source pattern, target pattern) pairs of layers that meet; empty to pair them by kind, order and depth.
        source: trained.
        target: whose shapes the copy has.
        source_example: inputs to trace the source with.
        target_example: the same of the target.
    """
    mapping = Mapping(trace(source, source_example), trace(target, target_example))
    for one, other in links:
        mapping.link(one, other)
    model: nn.Module = transplant(mapping).model
    return model


def spoiled(trained: nn.Module, fresh: nn.Module, graft: Graft, seed: int) -> nn.Module:
    """A copy of the source whose linked weights carry no knowledge.

    Args:
        trained: the source; its other weights stay, and are never read by the graft.
        fresh: the same model with initial weights, the answer where ``graft.spoil`` is ``"initial"``.
        graft: says which weights are linked, and what becomes of them.
        seed: of the noise or the shuffling.
    """
    if graft.spoil == "initial":
        return fresh
    copy = deepcopy(trained)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in dict.fromkeys(name for name, _ in graft.links):
            weight = copy.get_submodule(name.partition("::")[0]).weight
            assert isinstance(weight, Tensor)
            if graft.spoil == "random":
                noise = torch.randn(weight.shape, generator=generator)
                noise = (noise - noise.mean()) / noise.std()
                weight.copy_(noise.to(weight) * weight.std() + weight.mean())
            else:
                order = torch.randperm(len(weight), generator=generator).to(weight.device)
                weight.copy_(weight[order])
    return copy


class Noise:
    """Adds noise to what a graft would have written, when it would have, and of the same norm.

    Args:
        clock: the network whose steps are counted: the graft's target.
        mapping: the graft's links between the models in training (or the frozen source).
        sizes: (step, target -> size over the norm before), as the graft left them.
        seed: of the noise.
    """

    def __init__(self, clock: str, mapping: Mapping, sizes: list[Any], seed: int) -> None:
        self.clock, self.seed = clock, seed
        self.sizes: dict[int, dict[str, float]] = dict(sizes)
        self.places = {
            f"{side}:{parameter.address}": (graph.model, parameter)
            for pair in mapping.pairs
            for side, graph, parameter in (
                ("source", mapping.source, pair.source),
                ("target", mapping.target, pair.target),
            )
        }

    @torch.no_grad()
    def add(self, step: int) -> None:
        """What the graft's transfer before `step` is here; nothing where there was none."""
        for name, size in self.sizes.get(step, {}).items():
            model, parameter = self.places[name]
            weight = model.get_parameter(parameter.fqn)
            old = matrix(parameter, weight.detach())
            generator = torch.Generator().manual_seed(self.seed + step)
            noise = torch.randn(old.shape, generator=generator).to(old)
            new = old + noise * (size * old.norm() / noise.norm())
            weight.copy_(unmatrix(parameter, new, into=weight.detach().clone()))
