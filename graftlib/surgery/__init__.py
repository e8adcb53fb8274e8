"""Cut: edits of a model by axis class, and of what goes stale with them."""

from .edits import preview as preview
from .narrow import narrow as narrow
from .permute import permute as permute
from .refusal import SurgeryError as SurgeryError
from .refusal import SurgeryWarning as SurgeryWarning
from .widen import widen as widen

__all__ = [
    "SurgeryError",
    "SurgeryWarning",
    "narrow",
    "permute",
    "preview",
    "widen",
]
