"""Choose: parameters of two models as matrices, and the pairs that exchange knowledge."""

from .mapping import Mapping as Mapping
from .pairing import Pair as Pair
from .views import matrix as matrix
from .views import matrix_shape as matrix_shape
from .views import unmatrix as unmatrix

__all__ = [
    "Mapping",
    "Pair",
    "matrix",
    "matrix_shape",
    "unmatrix",
]
