"""When a crashed worker is started again: the restart intensity of Erlang/OTP, with backoff. Pure.

Up to `intensity` crashes for each worker within `period` seconds are answered by a restart. One more, and the runner is
*failed*: it refuses requests, and goes on trying every `probe_interval` seconds.

The restart comes at once when the worker had answered something since it was started: it was of use, and so will the
next one be. Workers that die in a row without an answer are followed after a delay that doubles.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Restart:
    """Start again in `delay` seconds. With `failed`, requests are refused until a worker is ready again."""

    delay: float
    failed: bool


class RestartPolicy:
    """Remembers crashes, decides what follows.

    Args:
        intensity: crashes within `period`, times the number of workers, that are still answered by a plain restart.
        period: seconds.
        backoff: delay before the restart that follows a second crash in a row without an answer, in seconds; it
            doubles with each further one.
        max_backoff: the longest delay.
        probe_interval: seconds between two attempts while failed.
    """

    def __init__(
        self,
        *,
        intensity: int = 5,
        period: float = 60,
        backoff: float = 0.1,
        max_backoff: float = 5,
        probe_interval: float = 5,
    ) -> None:
        self.intensity = intensity
        self.period = period
        self.backoff = backoff
        self.max_backoff = max_backoff
        self.probe_interval = probe_interval
        self._crashes: deque[float] = deque()
        self._in_a_row = 0

    def crashed(self, now: float, jitter: float = 1.0, *, productive: bool = False, workers: int = 1) -> Restart:
        """A worker crashed at `now`; `productive` says that it had answered something. `jitter`, 0.5 to 1.0, scales
        the delay so that many runners do not restart in step. Of several `workers`, as many times more may crash.
        """
        self._in_a_row = 1 if productive else self._in_a_row + 1
        self._crashes.append(now)
        while self._crashes and self._crashes[0] <= now - self.period:
            self._crashes.popleft()
        if len(self._crashes) == 1:
            self._in_a_row = 1  # those before are too long ago
        if len(self._crashes) > self.intensity * workers:
            return Restart(self.probe_interval * jitter, failed=True)
        rounds = -(-self._in_a_row // workers)  # workers that crash together are one round
        if rounds == 1:
            return Restart(0.0, failed=False)
        doubled = self.backoff * 2.0 ** min(rounds - 2, 64)  # beyond 64 doublings nothing but the limit counts
        return Restart(min(self.max_backoff, doubled) * jitter, failed=False)

    def recovered(self) -> None:
        """A worker has been ready and has answered: earlier crashes are forgiven once the runner was failed."""
        self._crashes.clear()
        self._in_a_row = 0
