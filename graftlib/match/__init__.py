"""Choose: parameters of two models as matrices, and the pairs that exchange knowledge."""

from .mapping import Mapping
from .pairing import Pair
from .views import matrix, matrix_shape, unmatrix

__all__ = ["Mapping", "Pair", "matrix", "matrix_shape", "unmatrix"]
