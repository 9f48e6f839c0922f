"""What the workers of the chaos run execute."""

from __future__ import annotations

import ctypes
import threading
import time

_kept: list[bytearray] = []


def echo(number: int, text: str) -> list[object]:
    """Mixed sizes: the text comes back, with the number of the call."""
    return [number, text]


def leak(number: int, size: int) -> list[object]:
    """Keeps `size` bytes, written to, for good."""
    _kept.append(bytearray(b"\x01" * size))
    return [number, size]


def act(kind: str, number: int) -> list[object]:
    """An echo, or one of the ways in which native code goes wrong."""
    if kind == "loop":  # a native call that never returns, with the interpreter locked out
        ctypes.PyDLL(None).pause()
    elif kind == "deadlock":
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()
    elif kind == "jump":
        block = bytearray()
        for _ in range(128):  # 8 MiB at a time, as an allocator of a library would, 1 GiB in all
            block += bytes(8 * 2**20)
        time.sleep(5)
    elif kind == "nap":
        time.sleep(0.002)
    return [number, kind]
