"""Attach an adapter to a training, and take it off without a trace."""

from .adapter import Adapter, Link, LinkedMatrix
from .attach import attach
from .cycle import TransferCycle
from .graft import Graft, TransferWarning
from .history import Transfer
from .joined import JoinedGraph
from .optimizer import AdapterOptimizer
from .registry import settled

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
