"""Slim: from a large model and a budget to a small one that is proven, loadable and fast.

What needs torch is imported when it is first used, so that ``graftlib --help`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .verb import slim as slim

if TYPE_CHECKING:
    from .costs import Costs as Costs
    from .costs import costs_of as costs_of
    from .edit import Edit as Edit
    from .saving import load as load
    from .slimming import Slim as Slim

__all__ = ["Costs", "Edit", "Slim", "costs_of", "load", "slim"]

_HOMES = {
    "Costs": "costs",
    "costs_of": "costs",
    "Edit": "edit",
    "load": "saving",
    "Slim": "slimming",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
