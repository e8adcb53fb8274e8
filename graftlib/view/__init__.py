"""look: layer graphs and a mapping -> one offline page, text, DOT, Mermaid; what differs. It changes nothing."""

from typing import TYPE_CHECKING

import lazy_loader

from .page import View, view

if TYPE_CHECKING:
    from .compare import Change, Diff, diff

# These need torch, the page does not.
__getattr__, _, _ = lazy_loader.attach(
    __name__, submod_attrs={"compare": ["Change", "Diff", "diff"]}
)

__all__ = ["Change", "Diff", "View", "diff", "view"]
