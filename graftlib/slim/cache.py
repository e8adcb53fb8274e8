"""Importances that were measured on data, kept in a file: a run that was stopped goes on behind them.

In: what they depend on, and the work that measures them. Out: the same numbers to the bit, from the file where it has
them. Always true: the weights, the data, the classes and the measure are in the key by their SHA-256, so that another
model or other data find nothing; a file that cannot be read is none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .._torch_private import pytree
from ..disk import write_whole
from ..graph.axes import AxisClass
from ..surgery import SurgeryError
from ..surgery.recording import Batch
from .edit import digest

__all__ = ["Cache", "digest_of_data"]

Importances = dict[AxisClass, Tensor]


class Cache:
    """A file that `slim` keeps what it measures on data in.

    Args:
        path: a safetensors file; made where it is missing, and left when all is done.

    Attributes:
        used: how many passes over the data were not made again.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.used = 0

    def importances(
        self, facts: Sequence[Any], classes: Sequence[AxisClass], work: Callable[[], Importances]
    ) -> Importances:
        """What `work` gives, class -> (size,) doubles; from the file where it was done before.

        Args:
            facts: all that it depends on, plain values.
            classes: that are asked for, in an order that the same facts give again.
            work: measures them.

        Raises:
            SurgeryError: the file cannot be written.
        """
        text = json.dumps([*facts, [[each.size, *map(str, each.members)] for each in classes]])
        key = hashlib.sha256(text.encode()).hexdigest()
        known = self._read()
        there = {
            each: known[f"{key}.{i}"] for i, each in enumerate(classes) if f"{key}.{i}" in known
        }
        if key in known and all(_sound(tensor, each) for each, tensor in there.items()):
            self.used += 1
            return there
        found = work()
        known |= {f"{key}.{i}": found[each] for i, each in enumerate(classes) if each in found}
        known[key] = torch.zeros(0)  # all of its classes are there
        write_whole(self.path, save(known), error=SurgeryError)
        return found

    def _read(self) -> dict[str, Tensor]:
        if not self.path.is_file():
            return {}
        try:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError):
            return {}


def _sound(importance: Tensor, each: AxisClass) -> bool:
    """Whether it may be the importance of these units: another program may have written the file."""
    return (
        importance.dtype == torch.float64
        and importance.shape == (each.size,)
        and bool(importance.isfinite().all())
    )


def digest_of_data(batches: Sequence[Batch]) -> str:
    """SHA-256 of inputs: where each tensor stands, its dtype, shape and values; all else by what it prints."""
    leaves = [(pytree.keystr(way), leaf) for way, leaf in pytree.tree_leaves_with_path(batches)]
    tensors: Mapping[str, Tensor] = {n: t for n, t in leaves if isinstance(t, Tensor)}
    rest = [[name, repr(leaf)] for name, leaf in leaves if not isinstance(leaf, Tensor)]
    return hashlib.sha256(json.dumps([digest(tensors), rest]).encode()).hexdigest()
