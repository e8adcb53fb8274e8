"""The error of surgery, and its warning."""

from __future__ import annotations

from ..errors import GraftError

__all__ = ["SurgeryError", "SurgeryWarning"]


class SurgeryError(GraftError):
    """A model cannot be edited as asked, and was left as it is."""


class SurgeryWarning(UserWarning):
    """A part of an edit that was asked for in general could not be done, and was left out; the text names it."""
