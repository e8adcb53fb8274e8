"""look: layer graphs and a mapping -> one offline page, text, DOT, Mermaid; what differs. It changes nothing."""

from typing import TYPE_CHECKING, Any

from .page import View as View
from .page import view as view

if TYPE_CHECKING:
    from .compare import Change as Change
    from .compare import Diff as Diff
    from .compare import diff as diff

__all__ = ["Change", "Diff", "View", "diff", "view"]


def __getattr__(name: str) -> Any:
    if name in ("Change", "Diff", "diff"):  # these need torch, the page does not
        from . import compare

        return getattr(compare, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
