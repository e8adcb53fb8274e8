"""The command line: parses, calls, prints; every verb lives in a package of its own.

In: words from a shell. Out: text or JSON on stdout, everything else on stderr, and an exit code: 0 fine, 1 a
`GraftError` or another failure, 2 wrong usage. Nothing here imports torch before a command needs it.
"""

from .app import main as main
