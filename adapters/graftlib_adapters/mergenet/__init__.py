"""MergeNet (arXiv 2404.13322): a parameter adapter that reads one layer's weights and rewrites another's.

    matrix --encoding--> code --transfer: L layers of lpka--> change of the code --encoding--> new matrix

In the repository, `README.md` beside this file says what is promised and why it is built so.
"""

from .adapter import MergeNet

__all__ = ["MergeNet"]
