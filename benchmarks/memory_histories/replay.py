"""Histories played to a watch, and what it made of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from benchmarks.memory_histories.synthetic import HOUR, KINDS, MIB, History
from guardrails.memory.leak import LeakWatch, Verdict, verdict

#: An alarm that comes this soon after a leak has stopped is late, but not false.
_LATE = 900.0


@dataclass
class Heard:
    """What a watch said.

    Attributes:
        alarms: when, in seconds, and the verdict with which an alarm was raised.
        cleared: when it was cleared.
    """

    alarms: list[tuple[float, Verdict]] = field(default_factory=list)
    cleared: list[float] = field(default_factory=list)


def play(samples: Iterable[tuple[float, float]], watch: LeakWatch | None = None) -> Heard:
    """Feed all samples to a watch, a new one with its defaults unless one is given."""
    watch = watch or LeakWatch()
    heard = Heard()
    for seconds, size in samples:
        if watch.add(seconds, size):
            if watch.alarm is None:
                heard.cleared.append(seconds)
            else:
                heard.alarms.append((seconds, watch.alarm))
    return heard


@dataclass
class Score:
    """One kind of history over many seeds.

    Attributes:
        wrong: seeds with a wrong verdict on the whole history.
        false: seeds with an alarm where nothing leaks.
        missed: seeds with a leak that raised none.
        after: seconds from the beginning of each leak to its alarm.
        over: seconds from the end of each leak that stopped to the end of its alarm.
    """

    wrong: list[int] = field(default_factory=list)
    false: list[int] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    after: list[float] = field(default_factory=list)
    over: list[float] = field(default_factory=list)


def judge_kind(make: Callable[[random.Random], History], seeds: range, every: float) -> Score:
    """Verdicts alone: the quick half of `watch_kind`."""
    score = Score()
    for seed in seeds:
        history = make(random.Random(seed))
        leaks = history.leak is not None and history.leak[1] >= history.hours * HOUR
        if verdict(history.samples(seed, every)).leaking is not leaks:
            score.wrong.append(seed)
    return score


def watch_kind(make: Callable[[random.Random], History], seeds: range, every: float = 10.0) -> Score:
    """Alarms of the watch over whole histories."""
    score = Score()
    for seed in seeds:
        history = make(random.Random(seed))
        heard = play(history.samples(seed, every))
        begin, end = history.leak or (float("inf"), float("inf"))
        right = [when for when, _ in heard.alarms if begin <= when <= end + _LATE]
        if len(right) < len(heard.alarms):
            score.false.append(seed)
        if right:
            score.after.append(right[0] - begin)
            if end < history.hours * HOUR:
                score.over += [when - end for when in heard.cleared[-1:] if when > end]
        elif history.leak is not None:
            score.missed.append(seed)
    return score


def leaking(
    samples: Iterable[tuple[float, float]], mib_a_minute: float, begins: float = HOUR
) -> Iterator[tuple[float, float]]:
    """The samples with a leak on top, from `begins` seconds on."""
    for seconds, size in samples:
        yield seconds, size + max(0.0, seconds - begins) / 60 * mib_a_minute * MIB


def two_processes(seed: int, hours: float = 6.0) -> dict[str, Iterator[tuple[float, float]]]:
    """The twelfth history: a process that leaks beside one that does not."""
    chance = random.Random(seed)
    one, other = KINDS["noisy"](chance), KINDS["slow leak, 1 MiB/min under 20 MiB"](chance)
    return {
        "steady": (sample for sample in one.samples(seed, 10.0) if sample[0] < hours * HOUR),
        "leaking": (sample for sample in other.samples(seed + 1, 10.0) if sample[0] < hours * HOUR),
    }
