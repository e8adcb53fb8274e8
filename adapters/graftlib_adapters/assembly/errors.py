"""The error of this package; light to import, so that a recipe is refused before torch is."""

from __future__ import annotations

from graftlib.errors import GraftError

__all__ = ["AssemblyError"]


class AssemblyError(GraftError):
    """Models cannot be aligned, merged or assembled as asked."""
