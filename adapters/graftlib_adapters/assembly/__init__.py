"""Assembly: merge layers of trained models that do not look alike, without training."""

from .alignment import Alignment
from .assemble import Assembly, assemble, replay
from .curve import Curve
from .heatmap import HeatMap
from .lmc import controls, lmc
from .matching import align
from .merging import merged
from .options import Search, Solver
from .pairing import problem
from .permutation import AssemblyError, Permutation
from .plan import Plan
from .problem import Problem
from .transplant import Transplanted, transplant
from .zoo import ZooEntry, folder

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
