"""The names that `slim` takes; light to import, so that a mistyped one is refused before a model is loaded."""

from __future__ import annotations

__all__ = ["BUDGETS", "COSTS", "FROM_DATA", "IMPORTANCES", "RANKINGS"]

COSTS = ("params", "macs", "bytes", "activations", "latency_ms")
BUDGETS = (*COSTS, "size_mb")
FROM_DATA = ("activation", "wanda", "fluctuation", "taylor", "fisher")
"""Importances that are measured on data."""
IMPORTANCES = ("magnitude", "uniform", *FROM_DATA)
RANKINGS = ("isomorphic", "global", "uniform")
