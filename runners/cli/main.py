"""``runners``: the command and its subcommands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

_DESCRIPTION = """\
Models in supervised subprocesses: restarted when they pass a memory budget, without losing a request.

examples:
  runners demo                 a real model, a leak, two kills, and no request lost (about a minute)
  runners demo --texts 300     a shorter one
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="runners", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="embed with a real model while its worker leaks and is killed, and count what is lost",
        description=(
            "Embeds texts with all-MiniLM-L6-v2 from 32 callers at once, through a breaker and admission control, "
            "while the worker leaks past its memory budget and is killed with SIGKILL twice. Then compares every "
            "vector with a plain run of the model in this process. Exit status 0 only if every request was answered "
            "exactly once and every vector is right."
        ),
    )
    demo.add_argument("--texts", type=_positive, default=2000, metavar="N", help="requests of one text each (2000)")
    demo.add_argument("--callers", type=_positive, default=32, metavar="N", help="callers at once (32)")
    demo.add_argument("--kills", type=int, default=2, metavar="N", help="times to kill the worker with SIGKILL (2)")
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    from runners.cli.demo import run

    return run(texts=options.texts, callers=options.callers, kills=options.kills)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"{number} is not above 0"
        raise argparse.ArgumentTypeError(msg)
    return number
