"""Attach an adapter to a training, and take it off without a trace."""

from .adapter import Adapter as Adapter
from .adapter import Link as Link
from .adapter import Slot as Slot
from .attach import attach as attach
from .cycle import TransferCycle as TransferCycle
from .graft import Graft as Graft
from .graft import TransferWarning as TransferWarning
from .joined import JoinedGraph as JoinedGraph
from .live import settled as settled

__all__ = [
    "Adapter",
    "Graft",
    "JoinedGraph",
    "Link",
    "Slot",
    "TransferCycle",
    "TransferWarning",
    "attach",
    "settled",
]
