"""Results that are reports: in a notebook they show what `print` shows.

In: a record that prints. Out: the same text as HTML. Always true: names in it are text and never markup.
"""

from __future__ import annotations

import html

__all__ = ["Report"]


class Report:
    """A record whose form in a notebook is its print.

    >>> class Answer(Report):
    ...     def __str__(self) -> str:
    ...         return "a < b"
    >>> Answer()._repr_html_()
    '<pre>a &lt; b</pre>'
    """

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"
