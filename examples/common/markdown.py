"""Markdown of figures: tables, paragraphs, and differences with their intervals."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

__all__ = ["paragraph", "signed", "table"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; `rows` have as many cells as `head`."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def signed(found: Sequence[float | None] | None, digits: int = 2) -> str:
    """[mean, low, high] of a difference; the mean alone where there are no bounds, nothing where there is nothing.

    >>> signed([0.5, -0.25, 1.25]), signed([0.5, None, None]), signed(None)
    ('+0.50 [-0.25, +1.25]', '+0.50', '')
    """
    mean, low, high = found or (None, None, None)
    if mean is None:
        return ""
    if low is None or high is None:
        return f"{mean:+.{digits}f}"
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def paragraph(text: str) -> str:
    """`text` with its lines filled anew."""
    return textwrap.fill(
        " ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False
    )
