"""graftlib: surgery on the parameters of neural networks that do not look alike.

    trace(model, args)            see: a layer graph                    graftlib.graph
    Mapping(source, target)       choose: pairs of parameters           graftlib.match
    attach(adapter, mapping)      graft: while the target trains        graftlib.graft
    export_onnx(model, path)      ship: ONNX, with its proof            graftlib.export
    view(source, target)          look: one offline page                graftlib.view
    surgery.prune(graph, …)      cut: edits by axis class              graftlib.surgery
    slim(graph, budget=…)         slim: a small model for a budget      graftlib.slim

The methods themselves, such as MergeNet, are adapters and live in `graftlib_adapters`.

Packages that need torch are imported when a name of theirs is first used, so that ``graftlib --help`` is quick.
"""

from typing import TYPE_CHECKING

import lazy_loader

from .errors import GraftError
from .slim import slim  # like `view`, it needs no torch until it is called

# Needs no torch; late, the sub-package of the same name would stand in its place.
from .view import view

if TYPE_CHECKING:
    from . import surgery
    from .export import export_onnx
    from .graft import Adapter, Graft, TransferCycle, attach
    from .graph import LayerGraph, Parameter, rule, trace
    from .match import Mapping, matrix, unmatrix
    from .slim import Edit, Slim, load, slim_folder

__version__ = "0.1.0"

# Imported when first used: torch takes seconds.
__getattr__, _, _ = lazy_loader.attach(
    __name__,
    submodules={"surgery"},
    submod_attrs={
        "export": ["export_onnx"],
        "graft": ["Adapter", "Graft", "TransferCycle", "attach"],
        "graph": ["LayerGraph", "Parameter", "rule", "trace"],
        "match": ["Mapping", "matrix", "unmatrix"],
        "slim": ["Edit", "Slim", "load", "slim_folder"],
    },
)

__all__ = [
    "Adapter",
    "Edit",
    "Graft",
    "GraftError",
    "LayerGraph",
    "Mapping",
    "Parameter",
    "Slim",
    "TransferCycle",
    "attach",
    "export_onnx",
    "load",
    "matrix",
    "rule",
    "slim",
    "slim_folder",
    "surgery",
    "trace",
    "unmatrix",
    "view",
]


def __dir__() -> list[str]:
    return __all__
