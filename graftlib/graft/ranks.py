"""Many processes that train one model: how their grafts stay the same.

In: a process group of torch.distributed, where there is one. Out: nothing, a broadcast, or an error. Always true:
every rank computes the same transfer from the same weights with the same seeds, so nothing has to be sent. That it
stays so is checked by comparing fingerprints, one small collective call every `verify_every` steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import TransferError

__all__ = ["Ranks", "fingerprint"]


@dataclass(frozen=True)
class Ranks:
    """The processes that share one training.

    Attributes:
        sync: ``"verify"``: send nothing, compare fingerprints. ``"broadcast"``: every transfer's written weights are
            those of the group's first rank.
        verify_every: steps of the target between two comparisons; 0 for never.
        group: the process group; None for the default one.
    """

    sync: Literal["verify", "broadcast"] = "verify"
    verify_every: int = 1000
    group: Any = None

    @property
    def count(self) -> int:
        """How many processes there are: 1 where torch.distributed is not in use."""
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.group)

    def due(self, step: int, last: int) -> bool:
        """Whether a comparison is due at `step`, the last one having been at step `last`."""
        every = self.verify_every
        return bool(every) and step // every > last // every and self.count > 1

    def verify(self, tensors: dict[str, Tensor], step: int) -> None:
        """One collective call: compare the fingerprints of `tensors` across the ranks.

        Raises:
            TransferError: on every rank, where one differs; it names the tensors.
        """
        if not tensors:
            return
        device = next(iter(tensors.values())).device
        prints = torch.stack([fingerprint(tensor).to(device) for tensor in tensors.values()])
        # The largest and, negated, the smallest over the ranks, in one call: equal where all are.
        both = torch.cat([prints, -prints])
        dist.all_reduce(both, op=dist.ReduceOp.MAX, group=self.group)
        largest, smallest = both.chunk(2)
        odd = [
            name
            for name, same in zip(tensors, (largest == -smallest).tolist(), strict=True)
            if not same
        ]
        if odd:
            raise TransferError(
                f"the {self.count} processes no longer hold the same values at step {step}.",
                where={"differing": ", ".join(odd[:8])},
                why="each computes its own transfer; other values, devices or kernels give other results",
                fix="load the same weights on every rank, or attach(..., sync='broadcast'); "
                "verify_every=0 where the processes train different models",
                ranks=self.count,
                differing=odd,
            )

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite `tensors` in place with those of the group's first rank, where that is asked for."""
        if self.sync == "verify" or self.count == 1:
            return
        for tensor in tensors:
            dist.broadcast(tensor, group=self.group, group_src=0)


def fingerprint(tensor: Tensor) -> Tensor:
    """A 0-D int64 of the tensor's bits, on its device; the same on every device, and order matters.

    >>> a, b = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    >>> bool(fingerprint(a) == fingerprint(a.clone())), bool(fingerprint(a) == fingerprint(b))
    (True, False)
    """
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.is_floating_point():
        flat = flat.view(
            {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
        )
    bits = flat.to(torch.int64)
    # Each step is one to one, so a single changed bit always shows. Integer sums wrap around, and their order is free.
    bits = (bits ^ (bits >> 29)) * 0x9E3779B97F4A7C1
    bits = bits ^ (bits >> 31)
    return (bits * (torch.arange(len(bits), device=bits.device) * 2 + 1)).sum()
