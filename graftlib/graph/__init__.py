"""See: a model becomes a graph of layers."""

from .axes import Axis, AxisClass, CheckResult, Leaf, Member, Product, Sum, rule
from .caches import copy_to_edit, drop_caches
from .layergraph import LayerGraph
from .layers import Layer
from .outline import Outline, outline
from .parameter import Parameter, Part
from .select import Hit, select
from .structure import duplicate, own, shell, unwrap
from .trace import trace

__all__ = [
    "Axis",
    "AxisClass",
    "CheckResult",
    "Hit",
    "Layer",
    "LayerGraph",
    "Leaf",
    "Member",
    "Outline",
    "Parameter",
    "Part",
    "Product",
    "Sum",
    "copy_to_edit",
    "drop_caches",
    "duplicate",
    "outline",
    "own",
    "rule",
    "select",
    "shell",
    "trace",
    "unwrap",
]
