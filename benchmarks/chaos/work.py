"""What the workers of the chaos run execute."""

from __future__ import annotations

import ctypes
import time

_begun: list[tuple[int, float]] = []


def echo(number: int, text: str) -> list[object]:
    """Mixed sizes: the text comes back, with the number of the call."""
    return [number, text]


def nap(number: int) -> object:
    """2 ms of work, of which it is remembered when it began; for -1, what is remembered."""
    if number < 0:
        return _begun
    _begun.append((number, time.monotonic()))
    time.sleep(0.002)
    return number


def hang(number: int) -> None:
    """A native call that never returns, with the interpreter locked out."""
    _ = number
    ctypes.PyDLL(None).pause()
