"""The experiments of the papers, each at a size given on the command line: ``python -m examples.paper.NAME``."""
