"""Which axes of which parameters move together, and the check that says so."""

from ..ops import rule as rule
from .check import CheckResult as CheckResult
from .check import check as check
from .classes import AxisClass as AxisClass
from .classes import Member as Member
from .classes import axes_of as axes_of
from .classes import axis_classes as axis_classes
from .classes import class_of as class_of
from .classes import freedom as freedom
from .classes import frozen_ops as frozen_ops
from .classes import frozen_shares as frozen_shares
from .tree import Axis as Axis
from .tree import Leaf as Leaf
from .tree import Pattern as Pattern
from .tree import Product as Product
from .tree import Sum as Sum

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
