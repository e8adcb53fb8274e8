"""Results that are reports: in a notebook they show what `print` shows; those with rows become tables.

In: a record that prints. Out: its text as HTML, its rows as a `pandas.DataFrame`. Always true: names in the text are
text and never markup.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

from .errors import optional

__all__ = ["Report", "Table"]


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


class Table(Report):
    """A report with rows: what a subclass gives by `table`."""

    def table(self) -> tuple[tuple[str, ...], Iterable[tuple[Any, ...]]]:
        """The names of the columns, and a value for each, row by row."""
        raise NotImplementedError

    def to_dataframe(self) -> Any:
        """`table` as a `pandas.DataFrame`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = optional("pandas", "to_dataframe needs pandas.", "dataframe")
        columns, rows = self.table()
        return pandas.DataFrame(list(rows), columns=columns)
