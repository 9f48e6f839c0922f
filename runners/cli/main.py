"""``runners``: the command and its subcommands."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from guardrails.core.errors import MissingExtra
from runners.cli import doctor, generate, streams

_DESCRIPTION = """\
Models in supervised subprocesses: restarted when they pass a memory budget, without losing a request.

examples:
  runners demo                 real models, a leak, kills in the middle, and no request lost (about a minute)
  runners demo --act 2         only its second act: 16 chats at once
  runners chat model.gguf      talk with a model
  runners complete model.gguf "Once upon a time"
  runners top                  the runners of your other programs, live
  runners top --once           the same, once
  runners doctor               the checklist for production, run against this machine
"""
_TOP = """\
Shows the runners of this user's other programs: workers, memory against its budget, queue, rates and restarts.

A program is seen when it publishes its status: start it with RUNNERS_STATUS=1 in its environment, or give its runner
publish_status=True. It then writes numbers, and nothing of any request, to a private folder once a second. q or Ctrl-C
ends the view; nothing in the other program is touched.

examples:
  RUNNERS_STATUS=1 python my_program.py &
  runners top                  live
  runners top --once           one snapshot, also without a terminal
  runners top --json           one snapshot for programs, sizes in bytes
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    return streams.run(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="runners", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="embed and chat with real models while workers leak and are killed, and count what is lost",
        description=(
            "Act 1: embeds texts with all-MiniLM-L6-v2 from 32 callers at once, through a breaker and admission "
            "control, while the worker leaks past its memory budget and is killed with SIGKILL twice. Then compares "
            "every vector with a plain run of the model in this process. Act 2: 16 chats at once with SmolLM2-135M in "
            "two workers, one of which is killed in the middle. Exit status 0 only if every request was answered "
            "exactly once, every vector is right, and every chat came to its end."
        ),
    )
    demo.add_argument("--texts", type=_positive, default=2000, metavar="N", help="requests of one text each (2000)")
    demo.add_argument("--callers", type=_positive, default=32, metavar="N", help="callers at once (32)")
    demo.add_argument("--kills", type=int, default=2, metavar="N", help="times to kill the worker with SIGKILL (2)")
    demo.add_argument("--tokens", type=_positive, default=96, metavar="N", help="of each chat's answer (96)")
    demo.add_argument("--act", type=int, choices=(1, 2), help="play only this act")
    demo.add_argument("--llama-build", type=Path, metavar="LOG", help=argparse.SUPPRESS)  # `make demo` builds meanwhile
    top = commands.add_parser(
        "top",
        help="a live view of the runners of this user's other programs",
        description=_TOP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--once", action="store_true", help="print one snapshot and end")
    top.add_argument("--json", action="store_true", help="print one snapshot as JSON and end")
    top.add_argument("--interval", type=_seconds, default=1.0, metavar="S", help="seconds between two looks (1)")
    top.add_argument(
        "--folder", type=Path, metavar="PATH", help="where the status files are, if not in the usual place"
    )
    doctor.add(commands)
    generate.add(commands)
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    if options.command == "top":
        return _top(options)
    if options.command == "doctor":
        return doctor.run(options)
    if options.command in ("complete", "chat"):
        return generate.run(options)
    from runners.cli import demo as the_demo

    acts = (1, 2) if options.act is None else (options.act,)
    try:
        return the_demo.run(
            acts,
            texts=options.texts,
            callers=options.callers,
            kills=options.kills,
            tokens=options.tokens,
            build=options.llama_build,
        )
    except KeyboardInterrupt:
        print("\nended by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT


def _top(options: argparse.Namespace) -> int:
    from runners.cli import top

    try:
        return top.run(once=options.once, as_json=options.json, folder=options.folder, interval=options.interval)
    except MissingExtra as missing:
        print(missing, file=sys.stderr)
        return 2


def _seconds(text: str) -> float:
    number = float(text)
    if not 0.05 <= number <= 3600:
        msg = f"{text} is not from 0.05 to 3600 seconds"
        raise argparse.ArgumentTypeError(msg)
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"{number} is not above 0"
        raise argparse.ArgumentTypeError(msg)
    return number
