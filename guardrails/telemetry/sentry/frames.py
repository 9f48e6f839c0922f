"""The Python stack in the last lines of a process's standard error: where it was, without what it said. Pure.

Two things write one there: the interpreter, about an exception that nobody caught ("most recent call last"), and
`faulthandler`, about a signal ("most recent call first")::

    Traceback (most recent call last):               Fatal Python error: Segmentation fault
      File "/app/images.py", line 8, in resize
        return native(image, width)                  Current thread 0x00007f4e (most recent call first):
    ValueError: no such size                           File "/app/images.py", line 8 in resize

Files, lines and names of functions and of classes of exceptions are taken. Not taken are the lines of source, and the
exception's message is kept apart: it may hold anything that the code was working on.

Standard error is text that anybody may have written to, so what is taken must look like what it should be: a name that
is no identifier, or a class that is not named as one of exceptions, is left out.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_MAX_FRAMES = 100
_MAX_CHAIN = 5
_MAX_MESSAGE = 4096

#: The margin of an exception group: "  | ", "  + ".
_MARGIN = re.compile(r"^ *[|+] ?")
_HEADER = re.compile(r"^(?:Exception Group )?Traceback \(most recent call last\):$")
_CURRENT = re.compile(r"^Current thread 0x[0-9a-f]+ .*\(most recent call first\):$")
_FRAME = re.compile(r'^ +File "(?P<file>[^"]{1,512})", line (?P<line>\d{1,9})(?:,? in (?P<function>[\w.<>]{1,200}))?$')
_CLASS = re.compile(r"^(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:: (?P<message>.*))?:?$")
_LINKS = frozenset({
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
})  # fmt: skip
#: How classes of exceptions are named, for one that is not dotted and no builtin.
_LIKE_AN_EXCEPTION = re.compile(r"[A-Z]\w{0,80}(?:Error|Exception|Warning|Exit|Interrupt|Timeout|Failure|Failed|Group)")


@dataclass(frozen=True, slots=True)
class Frame:
    """One call on a stack. `function` is None where it is not said, or is no name."""

    file: str
    line: int
    function: str | None


@dataclass(frozen=True, slots=True)
class Raised:
    """One exception, or one death by signal.

    Attributes:
        type: qualified name of the exception's class; None for a signal, and for a name that is none.
        frames: its stack, the outermost call first.
        message: what it said, which may hold anything.
    """

    type: str | None
    frames: tuple[Frame, ...]
    message: str = field(default="", repr=False)


def uncaught(text: str) -> list[Raised]:
    """The last exception in `text` and what it came from, the first of them first. Empty if there is none.

    Where the beginning of `text` is cut off, what is left of the stack is taken.
    """
    chain: list[Raised] = []
    frames: list[Frame] = []
    said: list[str] | None = None  # lines of the last exception's message, while they may go on
    linked = False
    for line in _lines(text):
        frame = _frame(line)
        if frame is not None:
            said = None
            frames.append(frame)
        elif _HEADER.match(line):
            said, frames = None, []
            if not linked:
                chain = []  # one that was caught, and logged
            linked = False
        elif line in _LINKS:
            said, linked = None, True
        elif frames and line[:1] not in ("", " "):
            name, message = _named(line)
            said = [message]
            chain.append(Raised(name, tuple(frames[-_MAX_FRAMES:]), message))
            frames = []
        elif said is not None and chain:
            said.append(line)
            chain[-1] = Raised(chain[-1].type, chain[-1].frames, "\n".join(said).rstrip()[:_MAX_MESSAGE])
    return chain[-_MAX_CHAIN:]


def fatal(text: str) -> list[Raised]:
    """Where the thread was that a signal hit, as `faulthandler` told it last. Empty if it did not."""
    found: list[Frame] = []
    inside = False
    for line in text.splitlines():
        if _CURRENT.match(line):
            found, inside = [], True
        elif inside:
            frame = _frame(line)
            if frame is None:
                inside = False
            else:
                found.append(frame)
    return [Raised(None, tuple(reversed(found[:_MAX_FRAMES])))] if found else []


def _lines(text: str) -> Iterator[str]:
    group = False
    for line in text.splitlines():
        bare = _MARGIN.sub("", line) if line.lstrip()[:1] in ("|", "+") else line
        if _HEADER.match(bare):
            group = bare != line
        elif group and bare.startswith("+-"):
            return  # its parts follow, each with a stack of its own: that of the group is what brought the process down
        yield bare if group else line


def _frame(line: str) -> Frame | None:
    match = _FRAME.match(line)
    return Frame(match["file"], int(match["line"]), match["function"]) if match else None


def _named(line: str) -> tuple[str | None, str]:
    match = _CLASS.match(line)
    if match is None:
        return None, line
    name = match["name"]
    last = name.rpartition(".")[2]
    known = getattr(builtins, last, None)
    if (
        (isinstance(known, type) and issubclass(known, BaseException))
        or _LIKE_AN_EXCEPTION.fullmatch(last)
        or (last != name and last[0].isupper())
    ):
        return name[-200:], match["message"] or ""
    return None, line
