"""graftlib: surgery on the parameters of neural networks that do not look alike.

    trace(model, args)            see: a layer graph                    graftlib.graph
    Mapping(source, target)       choose: pairs of parameters           graftlib.match
    attach(adapter, mapping)      graft: while the target trains        graftlib.graft
    export_onnx(model, path)      ship: ONNX, with its proof            graftlib.export
    view(source, target)          look: one offline page                graftlib.view

The methods themselves, such as MergeNet, are adapters and live in `graftlib_adapters`.
"""

from .errors import GraftError as GraftError
from .export import export_onnx as export_onnx
from .graft import Adapter as Adapter
from .graft import Graft as Graft
from .graft import TransferCycle as TransferCycle
from .graft import attach as attach
from .graph import LayerGraph as LayerGraph
from .graph import Parameter as Parameter
from .graph import trace as trace
from .match import Mapping as Mapping
from .match import matrix as matrix
from .match import unmatrix as unmatrix
from .view import view as view

__version__ = "0.1.0"
