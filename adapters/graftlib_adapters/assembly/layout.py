"""The files of an assembly's folder, which a dry run names before anything that writes them is imported."""

from __future__ import annotations

__all__ = ["FILES"]

FILES = {
    "model.safetensors": "the weights",
    "config.json": "the base's class, and the shape of every tensor",
    "plan.json": "every step, for graftlib_adapters.assembly.replay",
    "report.json": "the steps without their permutations, metrics, versions",
    "README.md": "the model card",
}
