"""Twelve kinds of memory histories, made by chance: what a verdict must get right whatever the seed.

Sizes are bytes. Every history has noise that remembers (requests last some seconds), and peaks on top.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MIB = float(1 << 20)
HOUR = 3600.0
DAY = 24 * HOUR

#: The size in MiB at a time in seconds, without its noise.
Level = Callable[[float], float]


@dataclass(frozen=True)
class History:
    """One history.

    Attributes:
        level: MiB at each time, without noise.
        noise: the standard deviation of the noise, in MiB.
        hours: how long it is.
        leak: from when to when memory leaks, in seconds; None: it does not.
    """

    level: Level
    noise: float
    hours: float
    leak: tuple[float, float] | None = None

    def samples(self, seed: int, every: float) -> Iterator[tuple[float, float]]:
        """Samples, (seconds, bytes), one in `every` seconds."""
        chance = random.Random(seed)
        now, error, peak = 0.0, 0.0, 0.0
        keep = math.exp(-every / 8.0)  # requests of some seconds
        fresh = self.noise * math.sqrt(1 - keep * keep)
        peaks = 0.1 * (1 - keep)
        while now < self.hours * HOUR:
            error = keep * error + chance.gauss(0.0, fresh)
            peak *= keep
            if chance.random() < peaks:
                peak += chance.expovariate(1 / (2 * self.noise + 0.1))
            yield now, max(1.0, round((self.level(now) + error + peak) * 256) / 256) * MIB
            now += every


def _base(chance: random.Random) -> float:
    return chance.uniform(80, 800)


def steady(chance: random.Random) -> History:
    base = _base(chance)
    return History(lambda _: base, 0.3, 8)


def noisy(chance: random.Random) -> History:
    base = _base(chance)
    return History(lambda _: base, chance.uniform(10, 30), 8)


def sawtooth(chance: random.Random) -> History:
    """Garbage that grows until it is collected, by about as much each time: up to 40 % of what is held."""
    base = _base(chance)
    height = base * chance.uniform(0.05, 0.4)
    drops, now = [0.0], 0.0
    period = chance.uniform(20, 900)
    while now < 9 * HOUR:
        now += period * chance.uniform(0.7, 1.3)
        drops.append(now)
    place = 0

    def level(seconds: float) -> float:
        nonlocal place
        while drops[place + 1] <= seconds:
            place += 1
        return base + height * (seconds - drops[place]) / period

    return History(level, 1.0, 8)


def plateau(chance: random.Random) -> History:
    """Warm-up: most comes in the first minutes, then nothing."""
    base, height, pace = _base(chance), chance.uniform(30, 300), chance.uniform(20, 400)
    return History(lambda seconds: base + height * (1 - math.exp(-seconds / pace)), chance.uniform(0.3, 5), 8)


def cache(chance: random.Random) -> History:
    """A cache that fills up to its bound: the fuller it is, the fewer new entries."""
    base = _base(chance)
    height, pace = base * chance.uniform(0.2, 0.8), chance.uniform(0.2, 2.0) * HOUR
    start = chance.uniform(0, 0.5) * HOUR

    def level(seconds: float) -> float:
        return base + height * (1 - math.exp(-max(0.0, seconds - start) / pace))

    return History(level, chance.uniform(0.3, 5), 12)


def slow_leak(chance: random.Random) -> History:
    """1 MiB a minute under 20 MiB of noise."""
    base = _base(chance)
    start = chance.uniform(0, 1) * HOUR
    return History(lambda seconds: base + max(0.0, seconds - start) / 60, 20, 8, (start, 8 * HOUR))


def fast_leak(chance: random.Random) -> History:
    base, rate = _base(chance), chance.uniform(20, 120)
    start = chance.uniform(0, 1) * HOUR
    return History(lambda seconds: base + rate * max(0.0, seconds - start) / 60, 5, 2, (start, 2 * HOUR))


def step(chance: random.Random) -> History:
    """A second model is loaded, once or twice."""
    base = _base(chance)
    steps = [(chance.uniform(0.2, 7) * HOUR, chance.uniform(20, 300)) for _ in range(chance.choice((1, 1, 2)))]
    return History(
        lambda seconds: base + sum(height for start, height in steps if seconds >= start), chance.uniform(0.3, 10), 8
    )


def stops(chance: random.Random) -> History:
    """A leak that stops: somebody switched the feature off."""
    base, rate = _base(chance), chance.uniform(1, 10)
    start = chance.uniform(0.3, 1) * HOUR
    end = start + min(3.0, chance.uniform(0.5, 1.0) * base / rate / 60) * HOUR
    return History(
        lambda seconds: base + rate * (min(max(seconds, start), end) - start) / 60,
        chance.uniform(0.3, 5),
        10,
        (start, end),
    )


def wave(chance: random.Random) -> History:
    """More by day than by night: the requests in flight, and what they have in caches."""
    base = _base(chance)
    height = base * chance.uniform(0.05, 0.3)
    phase = chance.uniform(0, 1)

    def level(seconds: float) -> float:
        return base + height * (1 - math.cos(2 * math.pi * (seconds / DAY + phase))) / 2

    return History(level, chance.uniform(0.3, 8), 72)


def restart(chance: random.Random) -> History:
    """It warms up, works, and begins again from the baseline, once."""
    base, height, pace = _base(chance), chance.uniform(30, 200), chance.uniform(20, 400)
    again = chance.uniform(1, 6) * HOUR

    def level(seconds: float) -> float:
        since = seconds if seconds < again else seconds - again
        return base + height * (1 - math.exp(-since / pace))

    return History(level, chance.uniform(0.3, 5), 8)


#: The histories of one process. The twelfth is two of them side by side.
KINDS: dict[str, Callable[[random.Random], History]] = {
    "steady": steady,
    "noisy": noisy,
    "sawtooth of the collector": sawtooth,
    "plateau after warm-up": plateau,
    "cache filling": cache,
    "slow leak, 1 MiB/min under 20 MiB": slow_leak,
    "fast leak": fast_leak,
    "step": step,
    "leak that stops": stops,
    "daily wave": wave,
    "restart": restart,
}
