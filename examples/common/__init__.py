"""What experiments and benchmarks share: data, intervals, tables, memory, and the form of their results."""
