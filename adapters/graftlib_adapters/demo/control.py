"""The control: a source that knows nothing, but looks as if it did.

In: a trained source and the names of its linked parameters. Out: a copy in which those are noise of the same moments.
If grafting from it helps as much as grafting from the source, the gain was not the source's knowledge.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import nn

__all__ = ["noise_source"]


def noise_source(source: nn.Module, names: Iterable[str], seed: int) -> nn.Module:
    """A copy of `source` whose parameters `names` are normal noise of the same mean and standard deviation.

    Args:
        source: the model that gives; it is not changed.
        names: parameters' names, as `named_parameters` has them.
        seed: of the noise.
    """
    copy = deepcopy(source)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in dict.fromkeys(names):
            weight = copy.get_parameter(name)
            noise = torch.randn(weight.shape, generator=generator)
            # The sample's own moments, not the distribution's: small layers would miss them by several percent.
            noise = (noise - noise.mean()) / noise.std()
            weight.copy_(noise.to(weight) * weight.std() + weight.mean())
    return copy
