"""Merge an aligned source into a base: W + λ (W' - W).

A factor of 0 gives the base to the bit, and so does a source that is an embedded twin of the base, at every factor. A
running variance is interpolated itself, not its root.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from graftlib.surgery.blocks import inside

from .alignment import Alignment
from .errors import AssemblyError
from .options import PADS, Pad

__all__ = ["lerp", "merged", "selected"]


def merged(
    base_state: Mapping[str, Tensor],
    alignment: Alignment,
    source_state: Mapping[str, Tensor],
    factor: float,
    *,
    pad: Pad = "zero",
    layers: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """The base with an aligned source merged into it.

    Args:
        base_state: FQN -> tensor; not changed.
        alignment: of the two.
        source_state: FQN -> tensor.
        factor: lambda, from 0 (the base, to the bit) to 1 (the transported source).
        pad: base entries that no source entry reaches: ``zero`` merges a 0 into them (a running variance: 1), so they
            shrink by 1 - factor; ``keep`` leaves them as they are.
        layers: only tensors of these base modules (`TensorPair.layer`) and of the modules inside of them; None: all.

    Returns:
        base FQN -> new tensor of the base's shape, dtype and device, for the tensors that read one of the source;
        load it with ``strict=False``. Nothing else of the base changes.

    Raises:
        AssemblyError: `factor` is not within 0 … 1, `pad` is no choice, or no tensor of a layer is paired.
    """
    if not 0 <= factor <= 1:
        raise AssemblyError(f"a merging factor of {factor}.", fix="use one from 0.0 to 1.0")
    if pad not in PADS:
        raise AssemblyError(f"pad='{pad}' is no choice.", fix="use one of " + ", ".join(PADS))
    wanted = selected(alignment, layers)
    tensors = {}
    for fqn, moved in alignment.each(source_state, only=wanted):
        base = base_state[fqn].detach()
        if not base.is_floating_point():
            continue
        mixed = lerp(base, moved.to(base.device), factor)
        stay = ~(alignment.mask(fqn) if pad == "keep" else alignment.region(fqn))
        if bool(stay.any()):
            mixed = torch.where(stay.to(base.device), base, mixed)
        tensors[fqn] = mixed
    return tensors


def lerp(base: Tensor, source: Tensor, factor: float) -> Tensor:
    """Base + factor (source - base), in single precision at least; `base` to the bit where both are equal."""
    if factor == 0:
        return base.clone()
    wide = torch.promote_types(base.dtype, torch.float32)
    start = base.to(wide)
    return (start + factor * (source.to(wide) - start)).to(base.dtype)


def selected(alignment: Alignment, layers: Iterable[str] | None) -> set[str]:
    """FQNs of the base tensors that read one of the source and belong to some layers.

    Raises:
        AssemblyError: no tensor of a layer is paired.
    """
    pairs = alignment.problem.pairs
    if layers is None:
        return {pair.base for pair in pairs}
    names: set[str] = set()
    for layer in layers:
        part = {pair.base for pair in pairs if not layer or inside(pair.layer, layer)}
        if not part:
            raise AssemblyError(
                f"no tensor of the base's '{layer}' is paired with one of the source.",
                fix="name modules of tensors in print(alignment.problem)",
            )
        names |= part
    return names
