"""look: layer graphs and a mapping -> one offline page, text, DOT, Mermaid; what differs. It changes nothing.

What draws and compares is imported when it is first used, so that ``graftlib --help`` is quick.
"""

from typing import TYPE_CHECKING

import lazy_loader

from .verb import view

if TYPE_CHECKING:
    from .compare import Change, Diff, diff
    from .page import View

__getattr__, _, _ = lazy_loader.attach(
    __name__, submod_attrs={"compare": ["Change", "Diff", "diff"], "page": ["View"]}
)

__all__ = ["Change", "Diff", "View", "diff", "view"]
