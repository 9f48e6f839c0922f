"""``runners doctor``: the production checklist, run against this machine and a configuration."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import msgspec

if TYPE_CHECKING:
    from runners.doctor import Finding, Mend

_DESCRIPTION = """\
Goes through the checklist for production, and says for each line what it found, why it matters, and the exact setting
that mends it. Nothing is changed.

examples:
  runners doctor                           this machine, and runners.toml where there is one
  runners doctor runners.toml              a configuration on this machine
  runners doctor runners.toml --pid 4711   the cgroup, variables and limits of a running service
  runners doctor runners.toml --only budgets,redis
  runners doctor runners.toml --json --strict    for CI
  runners doctor --example > runners.toml        a complete file with comments, to begin with

exit status: 0 nothing failed; 1 something did (with --strict a warning too); 2 it could not be run

checks:
{checks}
"""
_BEGIN = """\
That was the machine alone. To have everything checked that a launch needs, describe it in a file:

  runners doctor --example > runners.toml    # complete, with comments: keep what you have, drop the rest
  runners doctor runners.toml"""
_FILE = "runners.toml"
_SIGNS = {"ok": "✓", "warning": "!", "failure": "✗"}
_COLOURS = {"ok": "32", "warning": "33", "failure": "31"}
_INTERRUPTED = 128 + 2


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    doctor = commands.add_parser(
        "doctor",
        help="the checklist for production, run against this machine and a configuration",
        description=_DESCRIPTION,  # the checks are filled in when it is shown: they take a while to import
        formatter_class=_Help,
    )
    doctor.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="the file; ./runners.toml if it is there"
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.add_argument("--strict", action="store_true", help="exit status 1 for warnings too")
    doctor.add_argument("--only", type=_names, default=(), metavar="CHECKS", help="make these checks, joined by commas")
    doctor.add_argument("--skip", type=_names, default=(), metavar="CHECKS", help="leave these out")
    doctor.add_argument("--pid", type=int, metavar="PID", help="look at this process' cgroup, variables and limits")
    doctor.add_argument("--offline", action="store_true", help="ask neither Redis nor Sentry nor a collector")
    doctor.add_argument("--quiet", action="store_true", help="show only what is not ok")
    doctor.add_argument("--example", action="store_true", help="print a complete runners.toml, and end")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Fills in the checks when somebody asks."""

    def add_text(self, text: str | None) -> None:
        if text is not None and "{checks}" in text:
            from runners.doctor.checks import CHECKS

            lines = (f"  {check.name:<14} {check.title}" for check in CHECKS)
            text = text.replace("{checks}", "\n".join(lines))
        super().add_text(text)


def run(options: argparse.Namespace) -> int:
    """Run it; the exit status. What cannot be run is one line on standard error for each problem."""
    try:
        return _run(options)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return _INTERRUPTED


def _run(options: argparse.Namespace) -> int:
    from runners.config import EXAMPLE, ConfigError, load
    from runners.doctor import examine, gather
    from runners.doctor.checks import chosen

    if options.example:
        print(EXAMPLE.read_text(), end="")
        return 0
    file: Path | None = options.config
    if file is None and Path(_FILE).is_file():
        file = Path(_FILE)
    progress = _Progress(sys.stderr)
    try:
        names = chosen(options.only, options.skip)
        config = None if file is None else load(file)
        asked = () if options.offline else names
        facts = gather(config, pid=options.pid, ask=asked, say=progress.say)
        progress.end()
        findings = examine(config, facts, only=options.only, skip=options.skip)
    except ProcessLookupError:
        return _refused(f"there is no process {options.pid}")
    except PermissionError:
        return _refused(f"process {options.pid} is somebody else's: ask as root or as its user")
    except ConfigError as error:
        return _refused(*str(error).splitlines())
    except ValueError as error:
        return _refused(str(error))
    if options.json:
        print(_json(findings, file))
    else:
        _print(findings, file, quiet=options.quiet)
    counts = _counts(findings)
    return 1 if counts["failure"] or (options.strict and counts["warning"]) else 0


def _refused(*lines: str) -> int:
    for line in lines:
        print(f"runners doctor: {line}", file=sys.stderr)
    return 2


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    return {level: sum(found.level == level for found in findings) for level in _SIGNS}


# What is shown


def _json(findings: Sequence[Finding], file: Path | None) -> str:
    counts = _counts(findings)
    answer = {
        "config": None if file is None else str(file),
        "ok": not counts["failure"],
        "counts": counts,
        "findings": findings,
    }
    return msgspec.json.format(msgspec.json.encode(answer), indent=2).decode()


def _print(findings: Sequence[Finding], file: Path | None, *, quiet: bool) -> None:
    from runners.doctor import CHECKS

    paint = _painter(sys.stdout)
    width = _width()
    titles = {check.name: check.title for check in CHECKS}
    check = ""
    for found in findings:
        if quiet and found.level == "ok":
            continue
        if found.check != check:
            check = found.check
            print(f"{paint(check, '1')}  {paint(titles[check], '2')}")
        sign = paint(_SIGNS[found.level], _COLOURS[found.level])
        text = textwrap.wrap(f"{found.subject}: {found.why}", width - 4, break_long_words=False, break_on_hyphens=False)
        print(f"  {sign} " + "\n    ".join(text))
        for mend in found.mends:
            _print_mend(mend, file, paint)
    counts = _counts(findings)
    summary = []
    for level, count in reversed(counts.items()):
        word = level if level == "ok" or count == 1 else f"{level}s"
        summary.append(paint(f"{count} {word}", _COLOURS[level]) if count else f"0 {word}")
    print(", ".join(summary))
    if file is None:
        print(f"\n{_BEGIN}")


def _print_mend(mend: Mend, file: Path | None, paint: Callable[[str, str], str]) -> None:
    """The setting alone on its lines, so that it can be copied."""
    where = {"config": f"in {file}", "environment": "in its environment", "command": "run"}[mend.kind]
    print(paint(f"      {where}" + (f" ({mend.note})" if mend.note else "") + ":", "2"))
    for line in mend.text.splitlines():
        print(f"        {paint(line, '36')}")


def _painter(stream: TextIO) -> Callable[[str, str], str]:
    coloured = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return lambda text, code: f"\x1b[{code}m{text}\x1b[0m" if coloured else text


def _width() -> int:
    try:
        columns = int(os.environ.get("COLUMNS") or os.get_terminal_size(sys.stdout.fileno()).columns)
    except (ValueError, OSError):  # no terminal
        columns = 120
    return min(max(columns, 60), 140)


class _Progress:
    """One line on a terminal that says what is waited for, and is gone afterwards."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._said: list[str] = []

    def say(self, text: str) -> None:
        self._said.append(text)
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[2K{', '.join(self._said)} ...")
            self._stream.flush()

    def end(self) -> None:
        if self._said and self._stream.isatty():
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
