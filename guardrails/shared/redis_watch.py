"""A Redis' memory, watched: the alert ``redis_memory`` while it is nearly full."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Any, Self

from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.events import emit
from guardrails.core.sizes import format_size
from guardrails.memory.signals import AlertCleared, AlertRaised, Severity
from guardrails.shared.redis_report import CRITICAL, HIGH, Numbers
from guardrails.shared.redis_server import RedisUnreachable, connection, numbers_of, within

_ALERT = "redis_memory"
_ACTION = "Give keys a TTL, raise maxmemory, or set maxmemory-policy allkeys-lru; redis_health() says which keys."
#: Seconds for one answer.
_PATIENCE = 5.0

_log = logging.getLogger("guardrails.redis")


class RedisWatch:
    """Looks at a Redis' memory again and again, and raises the alert ``redis_memory`` while it is nearly full.

    An async context manager. One INFO a look; keys are not touched. A server that does not answer is logged, once, and
    watched again when it is back.

    Args:
        client: a `redis.asyncio.Redis`, or a URL.
        interval: seconds between two looks.
        high: share of ``maxmemory`` (without one: of its machine) at which the alert is raised; from 95 % on, and from
            `high` on where that is more, it is critical.
        low: share below which it is cleared.
        name: what the alert is about: its `source`.
        clock: for tests.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        client: Any,
        *,
        interval: float = 60,
        high: float = HIGH,
        low: float = 0.70,
        name: str = "redis",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not interval > 0:
            msg = f"interval takes a number of seconds above 0, not {interval!r}"
            raise ValueError(msg)
        if not 0 < low <= high <= 1:
            msg = f"low and high must rise, 0 < low <= high <= 1, not {low!r} and {high!r}"
            raise ValueError(msg)
        self.name = name
        self.interval = interval
        self.high = high
        self.low = low
        self._client = client
        self._clock = clock
        self._since: float | None = None
        self._severity: Severity = "warning"
        self._reached = True
        self._task: asyncio.Task[None] | None = None

    @property
    def alerting(self) -> bool:
        """Whether the alert stands."""
        return self._since is not None

    async def __aenter__(self) -> Self:
        """Begin."""
        async with connection(self._client):  # what is wrong with the client is said here, and not in the background
            pass
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    async def __aexit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        """End."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        while True:
            try:
                async with connection(self._client) as client:
                    while True:
                        self.note(numbers_of(await within(_PATIENCE, client.info("all"))))
                        await self._clock.sleep(self.interval)
            except RedisUnreachable as error:
                if self._reached:
                    _log.warning("%s cannot be watched: %s", self.name, error)
                self._reached = False
            await self._clock.sleep(self.interval)

    def note(self, numbers: Numbers) -> None:
        """Decide on one reading, and emit what follows."""
        if not self._reached:
            _log.warning("%s is watched again", self.name)
            self._reached = True
        limit = numbers.limit or numbers.system
        share = numbers.used / limit if limit else 0.0
        severity: Severity = "critical" if share >= max(CRITICAL, self.high) else "warning"
        worse = severity == "critical" and self._severity == "warning"
        if share >= self.high and (self._since is None or worse):
            self._since = self._clock.now() if self._since is None else self._since
            self._severity = severity
            emit(self._alert(numbers, limit, share))
        elif share < self.low and self._since is not None:
            emit(AlertCleared(self.name, _ALERT, self._clock.now() - self._since))
            self._since = None
            self._severity = "warning"

    def _alert(self, numbers: Numbers, limit: int, share: float) -> AlertRaised:
        of = "maxmemory" if numbers.limit else "its machine's memory, since it has no maxmemory"
        if numbers.limit is None:
            full = "the kernel kills it"
        else:
            full = "writes fail" if numbers.policy == "noeviction" else "keys are evicted"
        return AlertRaised(
            self.name,
            _ALERT,
            self._severity,
            f"Redis holds {format_size(numbers.used)}, {share:.0%} of {of} ({format_size(limit)}); at all of it {full}",
            _ACTION,
            {"used": numbers.used, "limit": limit, "share": share, "evicted": numbers.evicted},
        )
