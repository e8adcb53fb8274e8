"""Slim: from a large model and a budget to a small one that is proven and loadable."""

from .costs import Costs as Costs
from .costs import costs_of as costs_of

__all__ = ["Costs", "costs_of"]
