"""Slim: from a large model and a budget to a small one that is proven, loadable and fast.

What needs torch is imported when it is first used, so that ``graftlib --help`` is quick.
"""

from typing import TYPE_CHECKING

import lazy_loader

from .verb import slim

if TYPE_CHECKING:
    from .cache import Cache
    from .costs import Costs, costs_of
    from .edit import Edit
    from .latency import Latency, latency_of
    from .saving import load
    from .slimming import Slim
    from .streaming import slim_folder

__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cache": ["Cache"],
        "costs": ["Costs", "costs_of"],
        "edit": ["Edit"],
        "latency": ["Latency", "latency_of"],
        "saving": ["load"],
        "slimming": ["Slim"],
        "streaming": ["slim_folder"],
    },
)

__all__ = [
    "Cache",
    "Costs",
    "Edit",
    "Latency",
    "Slim",
    "costs_of",
    "latency_of",
    "load",
    "slim",
    "slim_folder",
]
