"""Which call of which module is running now.

The hooks are global ones: they belong to no module, answer for the modules of some models alone, and are gone on exit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks

from .skeleton import modules_of

__all__ = ["Call", "CallStack"]


@dataclass
class Call:
    """One call of a module.

    Attributes:
        id: position in `CallStack.calls`; 0 is what runs outside every module (and belongs to the root).
        fqn: of the module in the user's model; ``""`` is the root.
        parent: id of the call around it, None for the outermost.
        leaf: no module was called inside this call.
    """

    id: int
    fqn: str
    parent: int | None
    leaf: bool = True


class CallStack:
    """Follows the calls of a model's modules while it is entered.

    Attributes:
        current: the innermost running call.
        calls: every call so far.

    Args:
        models: the user's model first, then copies of it; a module that several of them share counts once.
        moved: called just before `current` changes, with the call that was current.
    """

    def __init__(self, *models: nn.Module, moved: Callable[[Call], None] | None = None) -> None:
        self._fqns = {
            id(module): fqn for model in reversed(models) for fqn, module in modules_of(model)
        }
        self._moved = moved or (lambda call: None)
        self.calls = [Call(0, "", None)]
        self.current = self.calls[0]
        self._handles: list[Any] = []

    def __enter__(self) -> CallStack:
        self._handles = [
            hooks.register_module_forward_pre_hook(self._enter_module),
            # `always_call`: a model that catches an exception of its own child must not unbalance us.
            hooks.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter_module(self, module: nn.Module, args: object) -> None:
        fqn = self._fqns.get(id(module))
        if fqn is None:
            return
        self._moved(self.current)
        self.current.leaf = False
        self.current = Call(len(self.calls), fqn, self.current.id)
        self.calls.append(self.current)

    def _leave_module(self, module: nn.Module, args: object, out: object) -> None:
        if self._fqns.get(id(module)) != self.current.fqn or self.current.parent is None:
            return
        self._moved(self.current)
        self.current = self.calls[self.current.parent]
