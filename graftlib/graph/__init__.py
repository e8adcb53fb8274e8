"""See: a model becomes a graph of layers."""

from .axes import Axis as Axis
from .axes import AxisClass as AxisClass
from .axes import CheckResult as CheckResult
from .axes import Leaf as Leaf
from .axes import Member as Member
from .axes import Product as Product
from .axes import Sum as Sum
from .axes import rule as rule
from .caches import copy_to_edit as copy_to_edit
from .caches import drop_caches as drop_caches
from .layergraph import LayerGraph as LayerGraph
from .layers import Layer as Layer
from .outline import Outline as Outline
from .outline import outline as outline
from .parameter import Parameter as Parameter
from .parameter import Part as Part
from .select import Hit as Hit
from .select import select as select
from .structure import duplicate as duplicate
from .structure import own as own
from .structure import shell as shell
from .structure import unwrap as unwrap
from .trace import trace as trace

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
