"""What things cost and how often they hold: ``python -m examples.benchmarks.NAME``."""
