"""Attach an adapter to a training, and take it off without a trace."""

from .adapter import Adapter as Adapter
from .adapter import Link as Link
from .adapter import LinkedMatrix as LinkedMatrix
from .attach import attach as attach
from .cycle import TransferCycle as TransferCycle
from .graft import Graft as Graft
from .graft import TransferWarning as TransferWarning
from .history import Transfer as Transfer
from .joined import JoinedGraph as JoinedGraph
from .optimizer import AdapterOptimizer as AdapterOptimizer
from .registry import settled as settled

__all__ = [
    "Adapter",
    "AdapterOptimizer",
    "Graft",
    "JoinedGraph",
    "Link",
    "LinkedMatrix",
    "Transfer",
    "TransferCycle",
    "TransferWarning",
    "attach",
    "settled",
]
