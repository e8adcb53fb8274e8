"""graftlib: surgery on the parameters of neural networks that do not look alike.

    trace(model, args)            see: a layer graph                    graftlib.graph
    Mapping(source, target)       choose: pairs of parameters           graftlib.match
    attach(adapter, mapping)      graft: while the target trains        graftlib.graft
    export_onnx(model, path)      ship: ONNX, with its proof            graftlib.export
    view(source, target)          look: one offline page                graftlib.view
    surgery.narrow(model, graph)  cut: edits by axis class              graftlib.surgery
    slim(graph, budget=…)         slim: a small model for a budget      graftlib.slim

The methods themselves, such as MergeNet, are adapters and live in `graftlib_adapters`.

The rooms that need torch are imported when a name of theirs is first used, so that ``graftlib --help`` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import GraftError as GraftError
from .slim import slim as slim  # like `view`, it needs no torch until it is called
from .view import (
    view as view,  # needs no torch; late, the sub-package of the same name would stand in its place
)

if TYPE_CHECKING:
    from . import surgery as surgery
    from .export import export_onnx as export_onnx
    from .graft import Adapter as Adapter
    from .graft import Graft as Graft
    from .graft import TransferCycle as TransferCycle
    from .graft import attach as attach
    from .graph import LayerGraph as LayerGraph
    from .graph import Parameter as Parameter
    from .graph import rule as rule
    from .graph import trace as trace
    from .match import Mapping as Mapping
    from .match import matrix as matrix
    from .match import unmatrix as unmatrix
    from .slim import Edit as Edit
    from .slim import Slim as Slim
    from .slim import load as load

__version__ = "0.1.0"

_ROOMS = {
    "graph": ("LayerGraph", "Parameter", "rule", "trace"),
    "match": ("Mapping", "matrix", "unmatrix"),
    "graft": ("Adapter", "Graft", "TransferCycle", "attach"),
    "export": ("export_onnx",),
    "slim": ("Edit", "Slim", "load"),
}


def __getattr__(name: str) -> Any:
    if name == "surgery":
        return import_module(".surgery", __name__)
    for room, names in _ROOMS.items():
        if name in names:
            globals()[name] = getattr(import_module(f".{room}", __name__), name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for names in _ROOMS.values() for name in names)})
