"""What the workers of the recorded loads execute: ordinary work, a cache, cyclic garbage, and a real leak."""

from __future__ import annotations

import gc
import json
import random
from collections import OrderedDict

_CACHED = 96 << 20
_ENTRY = 64 << 10

_cache: OrderedDict[int, bytes] = OrderedDict()
_kept: list[bytes] = []


def echo(text: str) -> str:
    """Small calls."""
    return text


def render(width: int) -> int:
    """An image: a buffer of four bytes a pixel, and a copy of it that is turned around."""
    image = bytearray(random.randbytes(width)) * (4 * width)
    return len(bytes(reversed(image)))


def parse(rows: int) -> float:
    """Rows of JSON, made, read and summed: many small objects of all sizes."""
    text = json.dumps([{"id": n, "name": f"row {n}", "values": [n * 0.5] * (n % 20)} for n in range(rows)])
    return float(sum(sum(row["values"]) for row in json.loads(text)))


class _Node:
    """Holds something large, and itself: only the collector frees it."""

    def __init__(self, size: int) -> None:
        self.payload = bytes(size)
        self.me = self


def cycles(count: int) -> int:
    """Garbage that waits for the collector, which here comes seldom."""
    gc.set_threshold(4000, 10, 10)
    for _ in range(count):
        _Node(16 << 10)
    return count


def cached(key: int) -> int:
    """An LRU cache of 96 MiB: it fills, and then stays."""
    if key in _cache:
        _cache.move_to_end(key)
    else:
        _cache[key] = random.randbytes(_ENTRY)
        if len(_cache) * _ENTRY > _CACHED:
            _cache.popitem(last=False)
    return len(_cache)


def leaky(size: int) -> int:
    """Keeps `size` bytes for good."""
    _kept.append(random.randbytes(size))
    return len(_kept)
