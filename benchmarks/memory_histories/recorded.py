"""Recorded histories: kept small, read back, and made into days."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "tests" / "guardrails" / "histories"

#: Seconds that one excerpt of a recording is replayed without a break.
_EXCERPT = (120, 900)
DAY = 86_400


def write(sizes: dict[str, list[int]], folder: Path = FOLDER) -> None:
    """Write a file for each process: KiB, once a second, each as the difference to the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in sizes.items():
        steps = [values[0], *(after - before for before, after in pairwise(values))]
        (folder / f"{name.replace(' ', '-')}.json").write_text(json.dumps(steps, separators=(",", ":")) + "\n")


def read(folder: Path = FOLDER) -> dict[str, list[int]]:
    """KiB once a second, by the name of the process."""
    return {
        path.stem.replace("-", " "): list(accumulate(json.loads(path.read_text())))
        for path in sorted(folder.glob("*.json"))
    }


def samples(sizes: Sequence[int], start: float = 0.0) -> Iterator[tuple[float, int]]:
    """As (seconds, bytes)."""
    for second, size in enumerate(sizes):
        yield start + second, size << 10


def busy(hour: float) -> float:
    """How busy the day is: 0.0 at four in the morning, 1.0 at four in the afternoon."""
    return (1 - math.cos(2 * math.pi * (hour - 4) / 24)) / 2


def day(
    sizes: Sequence[int], seed: int, *, begins: float = 8.0, wave: float = 0.0, hours: float = 24.0
) -> Iterator[tuple[float, float]]:
    """Hours of one process, made of its recording: (seconds, bytes), once a second.

    It starts as it was recorded, cold. Then come excerpts of the warm part: by day some minutes of work here and there,
    by night mostly the size at which the last one ended.

    Args:
        begins: the hour of the day at which the process starts.
        wave: what a full load adds all the time, as a share of the size: requests in flight, filled caches.
    """
    chance = random.Random(seed)
    warm = len(sizes) // 3
    second, most = 0, int(hours * 3600)

    def load() -> float:
        return 1 + wave * busy(begins + second / 3600)

    for size in sizes[:most]:
        yield second, (size << 10) * load()
        second += 1
    size = sizes[-1]
    while second < most:
        length = min(chance.randint(*_EXCERPT), most - second)
        works = chance.random() < 0.1 + 0.8 * busy(begins + second / 3600)
        place = chance.randrange(warm, len(sizes) - 1)
        for _ in range(length):
            if works:
                size = sizes[place]
                # Back and forth in the warm part, so that where it begins again nothing jumps that did not jump.
                place = place + 1 if place + 1 < len(sizes) else warm
            yield second, (size << 10) * load()
            second += 1
