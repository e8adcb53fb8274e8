"""Assembly: merge layers of trained models that do not look alike, without training."""

from .alignment import Alignment as Alignment
from .assemble import Assembly as Assembly
from .assemble import assemble as assemble
from .assemble import replay as replay
from .curve import Curve as Curve
from .heatmap import HeatMap as HeatMap
from .lmc import controls as controls
from .lmc import lmc as lmc
from .matching import align as align
from .merging import merged as merged
from .options import Search as Search
from .options import Solver as Solver
from .pairing import problem as problem
from .permutation import AssemblyError as AssemblyError
from .permutation import Permutation as Permutation
from .plan import Plan as Plan
from .problem import Problem as Problem
from .transplant import Transplanted as Transplanted
from .transplant import transplant as transplant
from .zoo import ZooEntry as ZooEntry
from .zoo import folder as folder

__all__ = [
    "Alignment",
    "Assembly",
    "AssemblyError",
    "Curve",
    "HeatMap",
    "Permutation",
    "Plan",
    "Problem",
    "Search",
    "Solver",
    "Transplanted",
    "ZooEntry",
    "align",
    "assemble",
    "controls",
    "folder",
    "lmc",
    "merged",
    "problem",
    "replay",
    "transplant",
]
