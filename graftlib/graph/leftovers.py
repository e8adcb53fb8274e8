"""What the run of a copy leaves outside of it: caches in closures, globals, classes and `functools.lru_cache`.

In: tensors that the run made. Out: nothing holds them any more that fills itself again: entries of dicts and lists,
cells of closures, caches of functions. So the user's model does not find in them what a copy computed.
"""

from __future__ import annotations

import functools
import gc
import types
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from .._torch_private import TensorWeakRef
from .structure import Call

__all__ = ["Leftovers"]


class Leftovers:
    """Tensors that a run made, held weakly."""

    def __init__(self) -> None:
        self._made: dict[int, TensorWeakRef] = {}

    def note(self, tensors: Iterable[Tensor]) -> None:
        """These are the run's."""
        self._made.update((id(tensor), TensorWeakRef(tensor)) for tensor in tensors)

    def noting(self, call: Call) -> Call:
        """As `call`, and what it gives is the run's, unless it was given to it: ``weight.double()`` is the weight."""

        def noted(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = call(func, args, kwargs)
            given = {*map(id, args), *map(id, kwargs.values())}
            results = result if isinstance(result, (tuple, list)) else (result,)
            self.note(t for t in results if isinstance(t, Tensor) and id(t) not in given)
            return result

        return noted

    def forget(self, *kept: object) -> None:
        """Take those that are still there out of what holds them, but for `kept`: dicts and lists of the caller's.

        Costs a look at every object of the process where any are left, and next to nothing where none are.
        """
        alive = [tensor for ref in self._made.values() if (tensor := ref()) is not None]
        self._made.clear()
        ours = {id(alive), *map(id, kept)}
        for holder in gc.get_referrers(*alive) if alive else ():
            if id(holder) not in ours:
                _empty(holder, {*map(id, alive)})


def _empty(holder: Any, tensors: set[int]) -> None:
    if type(holder) is dict:
        for key in [key for key, value in holder.items() if id(value) in tensors]:
            if "__builtins__" in holder:
                holder[key] = None  # a global that the code names
            else:
                del holder[key]
    elif type(holder) is list:
        holder[:] = [item for item in holder if id(item) not in tensors]
    elif isinstance(holder, types.CellType):
        holder.cell_contents = None
    elif isinstance(holder, functools._lru_cache_wrapper):
        holder.cache_clear()
