"""look: layer graphs and a mapping -> one offline page, text, DOT. It reads and changes nothing."""

from .page import View as View
from .page import view as view

__all__ = ["View", "view"]
