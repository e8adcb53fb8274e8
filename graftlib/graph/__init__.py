"""See: a model becomes a graph of layers."""

from .axes import AxisClass as AxisClass
from .axes import CheckResult as CheckResult
from .axes import Member as Member
from .axes import rule as rule
from .layergraph import LayerGraph as LayerGraph
from .layers import Layer as Layer
from .parameter import Parameter as Parameter
from .parameter import Part as Part
from .select import Hit as Hit
from .select import select as select
from .trace import trace as trace

__all__ = [
    "AxisClass",
    "CheckResult",
    "Hit",
    "Layer",
    "LayerGraph",
    "Member",
    "Parameter",
    "Part",
    "rule",
    "select",
    "trace",
]
