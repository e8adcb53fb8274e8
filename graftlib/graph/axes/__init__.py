"""Which axes of which parameters move together, and the check that says so."""

from ..ops import rule
from .check import CheckResult, check
from .classes import (
    AxisClass,
    Member,
    axes_of,
    axis_classes,
    class_of,
    freedom,
    frozen_ops,
    frozen_shares,
)
from .tree import Axis, Leaf, Pattern, Product, Sum

__all__ = [
    "Axis",
    "AxisClass",
    "CheckResult",
    "Leaf",
    "Member",
    "Pattern",
    "Product",
    "Sum",
    "axes_of",
    "axis_classes",
    "check",
    "class_of",
    "freedom",
    "frozen_ops",
    "frozen_shares",
    "rule",
]
