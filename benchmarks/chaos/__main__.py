"""The command line of the chaos run."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time

from rich.console import Console
from rich.table import Table

from benchmarks import chaos
from benchmarks.chaos.rows import ROWS, Options

#: Rows that only a long run is about.
_LONG = {"soak": 600}


async def run(names: list[str], options: Options) -> bool:
    """Run the rows, print the table; whether all were good."""
    table = Table(title=f"chaos, seed {options.seed}", title_justify="left")
    for column in ("fault", "engine", "measured", ""):
        table.add_column(column, overflow="fold")
    console = Console()
    good = True
    for name in names:
        if options.seconds < _LONG.get(name, 0):
            console.print(f"{name}: left out, it needs --seconds {_LONG[name]}")
            continue
        began = time.perf_counter()
        console.print(f"{name}: {(ROWS[name].__doc__ or '').strip()}")
        async for result in ROWS[name](options):
            table.add_row(name, result.engine, result.measured, "good" if result.good else "SHORT")
            console.print(f"  {result.engine}: {result.measured} {'' if result.good else '  << SHORT'}")
            good = good and result.good
        console.print(f"  {time.perf_counter() - began:.0f} s", style="dim")
    console.print(table)
    return good


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos",
        description=chaos.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="which faults; by default all"
    )
    parser.add_argument("--seconds", type=float, default=60, help="of a row that has no end of its own (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn by chance (default: 1)")
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)
    return 0 if asyncio.run(run(arguments.rows, Options(arguments.seconds, arguments.seed))) else 1


if __name__ == "__main__":
    sys.exit(main())
