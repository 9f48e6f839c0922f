"""32 callers who ask without a pause, and keep the books: what was asked, answered, and how long it took."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Self

CALLERS = 32

#: Makes call number n; its answer must be right, which the function checks itself.
Ask = Callable[[int], Awaitable[Any]]


class Crowd:
    """Callers who ask until told to stop.

    A call took as long as `ask` took, unless that returns a number of seconds. With `books=False` only errors are kept:
    what grows with the number of calls would look like a leak.

    Attributes:
        answered: how often each call was answered; once is right.
        errors: how calls ended that got no answer, by type.
        taken: when each answer came, and how many seconds it had taken.
    """

    def __init__(self, ask: Ask, *, callers: int = CALLERS, books: bool = True) -> None:
        self._books = books
        self._ask = ask
        self._callers = callers
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []
        self.asked = 0
        self.answered: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.taken: list[tuple[float, float]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._call()) for _ in range(self._callers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _call(self) -> None:
        while not self._stop:
            self.asked += 1
            number = self.asked
            began = time.perf_counter()
            try:
                taken = await self._ask(number)
            except Exception as error:
                self.errors[type(error).__name__] += 1
                await asyncio.sleep(0.01)
            else:
                if not self._books:
                    continue
                self.answered[number] += 1
                now = time.perf_counter()
                self.taken.append((now, taken if isinstance(taken, float) else now - began))

    @property
    def lost(self) -> int:
        """Calls that ended without an answer."""
        return self.asked - len(self.answered)

    @property
    def twice(self) -> int:
        """Calls that were answered more than once."""
        return sum(count > 1 for count in self.answered.values())

    def p99(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Seconds that all but the slowest hundredth took, of those answered in this time."""
        found = sorted(seconds for when, seconds in self.taken if since <= when <= until)
        return found[int(len(found) * 0.99)] if found else float("nan")


def texts(chance: random.Random, count: int) -> list[str]:
    """Texts of 1 to 60 words."""
    words = [
        "breaker",
        "bulkhead",
        "cache",
        "drain",
        "embed",
        "fallback",
        "guard",
        "hedge",
        "limit",
        "memory",
        "probe",
        "queue",
        "retry",
        "token",
        "worker",
    ]
    return [" ".join(chance.choices(words, k=chance.choice((1, 4, 12, 30, 60)))) for _ in range(count)]
