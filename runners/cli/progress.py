"""A progress line: one that rewrites itself on a terminal, one line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time

_EVERY = 0.1
_EVERY_IN_A_LOG = 5.0
_BAR = 20


class Progress:
    """The line for one piece of work. Writes to standard error."""

    def __init__(self, what: str, *, total: int) -> None:
        self._what = what
        self._total = total
        self._began = time.perf_counter()
        self._last = 0.0
        self._live = sys.stderr.isatty()
        self._write(f"{what} ...")

    def show(self, count: int, detail: str) -> None:
        """So much is done. Cheap to call often."""
        if not self._due():
            return
        now = self._last
        filled = int(_BAR * count / self._total)
        rate = count / max(now - self._began, 1e-9)
        self._write(f"{'█' * filled}{'░' * (_BAR - filled)} {count:,}/{self._total:,}  {rate:,.0f}/s  {detail}")

    def say(self, text: str) -> None:
        """What there is to say, instead of a bar. Cheap to call often."""
        if self._due():
            self._write(text)

    def done(self, text: str) -> None:
        """The last line."""
        self._write(text)
        if self._live:
            sys.stderr.write("\n")
            sys.stderr.flush()

    def _due(self) -> bool:
        now = time.perf_counter()
        if now - self._last < (_EVERY if self._live else _EVERY_IN_A_LOG):
            return False
        self._last = now
        return True

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[2K{text}" if self._live else f"{text}\n")
        sys.stderr.flush()
