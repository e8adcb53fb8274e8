"""The error of this room."""

from __future__ import annotations

from ..errors import GraftError

__all__ = ["SurgeryError"]


class SurgeryError(GraftError):
    """A model cannot be edited as asked, and was left as it is."""
