"""A bounded look at the keys of a Redis: how many have no TTL, which are large. No value is ever read."""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from guardrails.shared.redis_report import BigKey, Keys

#: Part of the keys of pybreaker's storage, which sets no TTL and whose number is that of the breakers.
_FIXED = b":pybreaker:"
#: Keys that Redis looks at for one SCAN, keys of one pipeline, and the largest that are kept.
_COUNT, _CHUNK, _BIGGEST = 500, 100, 10
#: SCANs of one pass: with _COUNT, the part of the database that is searched for the keys of a prefix.
_ROUNDS = 200
_NAME = 60
#: Of this process: a masked name tells keys of one process apart, and nothing else.
_SECRET = os.urandom(16)


class Look:
    """Looks at keys, and counts.

    Args:
        prefixes: what this toolkit's own keys begin with.
        show_keys: whether keys are named as they are.
    """

    def __init__(self, prefixes: Sequence[str], *, show_keys: bool) -> None:
        self._prefixes = tuple(prefix.encode() for prefix in prefixes)
        self._show = show_keys
        self._seen: set[bytes] = set()
        self._biggest: list[tuple[int, bytes, float | None]] = []
        self._unlimited = self._own = self._own_unlimited = self._fixed = self._gone = 0
        #: Whether every key was looked at.
        self.complete = False

    async def take(self, client: Any, sample: int) -> None:
        """Look at up to `sample` keys, whichever come first, and at up to as many of each prefix."""
        self.complete = await self._scan(client, sample, None)
        if not self.complete:
            for prefix in self._prefixes:
                await self._scan(client, sample, prefix)

    async def _scan(self, client: Any, sample: int, prefix: bytes | None) -> bool:
        """One pass; whether it came to the end of the database with all of its keys looked at."""
        match = None if prefix is None else _literally(prefix) + b"*"
        cursor, left = 0, sample
        for _ in range(_ROUNDS):
            cursor, names = await client.scan(cursor, match=match, count=_COUNT)
            new = [name for name in dict.fromkeys(map(_bytes, names)) if name not in self._seen]
            for start in range(0, min(left, len(new)), _CHUNK):
                await self._ask(client, new[start : min(left, start + _CHUNK)])
            left -= len(new)
            if cursor == 0 or left <= 0:
                return cursor == 0 and left >= 0
        return False

    async def _ask(self, client: Any, names: Sequence[bytes]) -> None:
        async with client.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.pttl(name)
                pipeline.memory_usage(name, samples=5)
            answers = await pipeline.execute(raise_on_error=False)
        for name, ttl, size in zip(names, answers[::2], answers[1::2], strict=True):
            if isinstance(ttl, Exception):
                raise ttl
            self._note(name, ttl, size if isinstance(size, int) else 0)  # a hosted Redis may refuse to say

    def _note(self, name: bytes, ttl: int, size: int) -> None:
        self._seen.add(name)
        if ttl == -2:  # it went while we looked
            self._gone += 1
            return
        if _FIXED in name:
            self._fixed += 1
        elif name.startswith(self._prefixes):
            self._own += 1
            self._own_unlimited += ttl == -1
        else:
            self._unlimited += ttl == -1
        if size:
            heapq.heappush(self._biggest, (size, name, None if ttl < 0 else ttl / 1000))
            if len(self._biggest) > _BIGGEST:
                heapq.heappop(self._biggest)

    def keys(self, total: int) -> Keys:
        """What was seen, of `total` keys."""
        return Keys(
            total=total,
            looked=len(self._seen) - self._gone,
            unlimited=self._unlimited,
            own=self._own,
            own_unlimited=self._own_unlimited,
            fixed=self._fixed,
            complete=self.complete,
            biggest=tuple(
                BigKey(self._shown(name), size, ttl) for size, name, ttl in sorted(self._biggest, reverse=True)
            ),
        )

    def _shown(self, name: bytes) -> str:
        if self._show:
            text = name.decode("utf-8", "backslashreplace")
            text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
            return text if len(text) <= _NAME else f"{text[: _NAME - 1]}…"
        begin = next((prefix for prefix in self._prefixes if name.startswith(prefix)), b"").decode()
        return f"{begin}#{blake2b(name, key=_SECRET, digest_size=4).hexdigest()}"


def _bytes(name: str | bytes) -> bytes:
    return name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name


def _literally(prefix: bytes) -> bytes:
    """A pattern of SCAN for exactly this."""
    return b"".join(b"\\" + each if each in b"*?[]^-\\" else each for each in (bytes([n]) for n in prefix))
