"""Waiting for the build of llama-cpp-python that `make demo` has started. All that is known of it stands in its log:
``builder PID`` in the first line, ``exit status N`` in the last one.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from runners.cli.progress import Progress

_EVERY = 0.2
_TAIL = 64 * 1024
_END = re.compile(r"^exit status (\d+)\s*\Z", re.MULTILINE)
_STEPS = re.compile(r"\[(\d+)/(\d+)\] ")
_WRONG = re.compile(r"^.*(?:error|Error|ERROR)\b.*$", re.MULTILINE)
_COMPILERS = (("CC", "cc", "gcc", "clang"), ("CXX", "c++", "g++", "clang++"))


def wait(log: Path) -> str | None:
    """Wait until the build has ended, with a progress line. None: it has worked; else what is to be said of it."""
    head, tail = _read(log)
    progress = None
    began = time.perf_counter()
    while (ended := _END.search(tail)) is None and _alive(head):
        progress = progress or Progress("llama-cpp-python is being built, once", total=1)
        progress.say(f"building llama-cpp-python, once: {_steps(tail)}{time.perf_counter() - began:.0f} s waited")
        time.sleep(_EVERY)
        head, tail = _read(log)
    worked = ended is not None and ended[1] == "0"
    if progress is not None:
        progress.done("llama-cpp-python is built" if worked else "llama-cpp-python was not built")
    return None if worked else explain(tail, log)


def explain(tail: str, log: Path) -> str:
    """Why a build has failed, and the mend, from the end of its log."""
    if not all(os.environ.get(names[0]) or any(map(shutil.which, names[1:])) for names in _COMPILERS):
        return (
            "llama-cpp-python is built from source, and there is no C and C++ compiler here. "
            "Get one (Debian, Ubuntu: apt install build-essential; macOS: xcode-select --install) and run it again."
        )
    wrong = _WRONG.findall(tail)
    why = f" It ends with: {wrong[-1].strip()[:200]}" if wrong else ""
    return f"llama-cpp-python could not be built; its log is {log}.{why}"


def _steps(tail: str) -> str:
    found = _STEPS.findall(tail)
    return f"{found[-1][0]} of {found[-1][1]} files, " if found else ""


def _read(log: Path) -> tuple[str, str]:
    """The first line and the last 64 KiB; empty if there is no such file."""
    try:
        with log.open("rb") as file:
            head = file.readline(100)
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return head.decode(errors="replace"), file.read().decode(errors="replace")
    except OSError:
        return "", ""


def _alive(head: str) -> bool:
    """Whether the builder runs."""
    word, _, number = head.strip().partition(" ")
    if word != "builder" or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
