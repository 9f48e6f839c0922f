"""A seeded chaos run: faults against real workers, and what callers saw of them.

    python -m benchmarks.chaos                      # every row, some minutes
    python -m benchmarks.chaos --rows kill hang     # some of them
    python -m benchmarks.chaos --seconds 10         # shorter

Each row is run with a function engine, and with the real embedding model where that makes sense, with 32 callers and
calls of mixed sizes. It prints a table, and exits with 1 if a row fell short.
"""
