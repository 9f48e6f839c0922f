"""The library's log: each line goes to the worker's standard error with its level in front, as systemd's daemons write
it (``<3>`` is an error, ``<4>`` a warning, ``<7>`` debugging); the parent logs it at that level.

What the library calls information is debugging for everybody else: a hundred lines for a load. What it calls debugging
is left out.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections import deque
from typing import Any

# Else the library starts a debugger on itself, where there is one, before it aborts. It looks when it is loaded.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

from llama_cpp import llama_cpp as lib

#: ggml's levels: none, debug, info, warn, error; 5 goes on with the line before.
_DEBUG, _ERROR, _CONTINUES = 1, 4, 5
_PREFIXES = {3: "<4>", 4: "<3>"}
_KV_SIZE = re.compile(r"KV buffer size\s*=\s*([\d.]+) MiB")

_heard: list[Any] = []


class Log:
    """Takes the library's log from now on."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=4)
        self._kv = 0.0
        self._line = ""
        self._level = 0
        self._callback = lib.llama_log_callback(self._said)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))
        _heard[:] = [self._callback]  # the library calls it as long as there is no other

    def _said(self, level: int, text: bytes, _: Any) -> None:
        if level != _CONTINUES:
            self._level = level
        self._line += text.decode("utf-8", "replace")
        while "\n" in self._line:
            line, _, self._line = self._line.partition("\n")
            self._note(line.strip())

    def _note(self, line: str) -> None:
        if self._level == _DEBUG or not line.strip("."):  # every tensor of every graph; the dots of its progress
            return
        if self._level == _ERROR:
            self._errors.append(line[:300])
        size = _KV_SIZE.search(line)
        if size is not None:
            self._kv += float(size[1])
        sys.stderr.write(f"{_PREFIXES.get(self._level, '<7>')}{line}\n")

    def clear(self) -> None:
        """Forget what was said."""
        self._errors.clear()
        self._kv = 0.0

    def tail(self) -> str:
        """The last errors, the worst first heard."""
        return "; ".join(self._errors)

    def kv_bytes(self) -> int:
        """Bytes of KV cache that the library said it has made; 0 if it said nothing."""
        return round(self._kv * 2**20)
