"""Assembly: merge layers of trained models that do not look alike, without training.

What needs torch is imported when it is first used, so that the commands answer typos and dry runs at once. No module
here has the name of a function of the package: once imported, it would stand in its place.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .alignment import Alignment
    from .alignment_problem import Problem
    from .assembling import Assembly, assemble, replay
    from .connectivity import controls, lmc
    from .curve import Curve
    from .errors import AssemblyError
    from .heatmap import HeatMap
    from .matching import align
    from .merging import merged
    from .options import Search, Solver
    from .pairing import problem
    from .permutation import Permutation
    from .plan import Plan
    from .transplanting import Transplanted, transplant
    from .zoo import ZooEntry, folder

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "alignment": ["Alignment"],
        "alignment_problem": ["Problem"],
        "assembling": ["Assembly", "assemble", "replay"],
        "connectivity": ["controls", "lmc"],
        "curve": ["Curve"],
        "errors": ["AssemblyError"],
        "heatmap": ["HeatMap"],
        "matching": ["align"],
        "merging": ["merged"],
        "options": ["Search", "Solver"],
        "pairing": ["problem"],
        "permutation": ["Permutation"],
        "plan": ["Plan"],
        "transplanting": ["Transplanted", "transplant"],
        "zoo": ["ZooEntry", "folder"],
    },
)

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
