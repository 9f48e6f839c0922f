"""The command line: record loads, or report what the verdict and the watch make of all histories."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Sequence

from benchmarks import memory_histories
from benchmarks.memory_histories import recorded
from benchmarks.memory_histories.replay import Score, judge_kind, leaking, play, two_processes, watch_kind
from benchmarks.memory_histories.synthetic import HOUR, KINDS, History

_RATES = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 20.0, 100.0)
_NOISES = (0.3, 5.0, 20.0)
#: Of what a leak in the table hides in.
_LEVEL = 300.0


def report(seeds: int) -> bool:
    """Print the tables; whether no verdict was wrong and no alarm false or missing."""
    good = _report_kinds(seeds)
    good = _report_two(seeds) and good
    good = _report_days() and good
    _report_slowest()
    return good


def _report_kinds(seeds: int) -> bool:
    print(
        f"{'history, ' + str(seeds) + ' seeds each':<34}{'wrong':>7}{'false':>7}{'missed':>8}   alarm after, over after"
    )
    good = True
    for name, make in KINDS.items():
        score = watch_kind(make, range(seeds))
        score.wrong = judge_kind(make, range(seeds), 30.0).wrong
        good = good and not (score.wrong or score.false or score.missed)
        print(
            f"{name:<34}{len(score.wrong):>7}{len(score.false):>7}{len(score.missed):>8}   {_times(score)}", flush=True
        )
    return good


def _times(score: Score) -> str:
    parts = []
    for times in (score.after, score.over):
        if times:
            minutes = sorted(one / 60 for one in times)
            middle, late = statistics.median(minutes), minutes[min(len(minutes) - 1, len(minutes) * 95 // 100)]
            parts.append(f"{middle:.0f} min (95 %: {late:.0f}, all: {minutes[-1]:.0f})")
    return ", ".join(parts)


def _report_two(seeds: int) -> bool:
    right = 0
    for seed in range(seeds):
        heard = {name: play(samples) for name, samples in two_processes(seed).items()}
        right += bool(heard["leaking"].alarms) and not heard["steady"].alarms
    print(
        f"{'two processes, one leaks':<34}{'':>7}{'':>7}{seeds - right:>8}   the right one named in {right} of {seeds}"
    )
    return right == seeds


def _report_days() -> bool:
    print(
        "\n24 hours made of what was recorded           as it is   with a daily wave of 30 %   with a leak of 1 MiB/min"
    )
    good = True
    taken, samples = 0.0, 0
    for name, sizes in recorded.read().items():
        began = time.process_time()
        counts = [len(play(recorded.day(sizes, 1, wave=wave)).alarms) for wave in (0.0, 0.3)]
        taken, samples = taken + time.process_time() - began, samples + 2 * recorded.DAY
        leak = play(itertools.islice(leaking(recorded.day(sizes, 1), 1.0), 12 * 3600)).alarms
        found = f"after {(leak[0][0] - HOUR) / 60:.0f} min" if leak and leak[0][0] > HOUR else "not within 11 h"
        if name == "leaky leaky":
            first = play(recorded.samples(sizes)).alarms[0][0]
            print(f"{name:<42}{'a leak indeed: alarm after ' + format(first / 60, '.0f') + ' min':>40}")
            continue
        good = good and counts == [0, 0]
        print(f"{name:<42}{counts[0]:>5} alarms{counts[1]:>19} alarms   {found:>24}", flush=True)
    print(f"cost: {taken / samples * 1e6:.1f} us a sample, {taken / samples * 100:.4f} % of a core at one a second")
    return good


def _report_slowest() -> None:
    print(f"\ntime to alarm, from {_LEVEL:.0f} MiB; '-': none in 30 hours")
    print(f"{'MiB a minute':<16}" + "".join(f"{noise:>12g} MiB" for noise in _NOISES) + "   of noise")
    for rate in _RATES:
        cells = []
        for noise in _NOISES:
            times = []
            for seed in range(5):
                samples = History(lambda _: _LEVEL, noise, min(31.0, 1 + 60 / rate)).samples(seed, 10.0)
                alarms = play(leaking(samples, rate)).alarms
                times.append((alarms[0][0] - HOUR) / 60 if alarms else float("inf"))
            middle = statistics.median(times)
            cells.append(f"{middle:>12.0f} min" if middle < float("inf") else f"{'-':>16}")
        print(f"{rate:<16g}" + "".join(cells), flush=True)


def record(names: Sequence[str], seconds: float | None) -> None:
    """Record loads one after the other, and write them down."""
    from benchmarks.memory_histories.loads import record as record_loads

    for name in names:
        sizes = asyncio.run(record_loads([name], seconds))
        recorded.write(sizes)
        for process, kib in sizes.items():
            print(f"{process:<24}{len(kib):>6} s   {min(kib) >> 10} to {max(kib) >> 10} MiB", flush=True)


def main() -> int:
    """Parse, and run."""
    from benchmarks.memory_histories.loads import LOADS

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory_histories",
        description=memory_histories.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("record", "report"))
    parser.add_argument("--loads", nargs="+", choices=list(LOADS), default=list(LOADS), help="what to record")
    parser.add_argument("--seconds", type=float, help="how long each load is recorded")
    parser.add_argument("--seeds", type=int, default=100, help="histories of each kind in the report (default: 100)")
    arguments = parser.parse_args()
    if arguments.what == "record":
        record(arguments.loads, arguments.seconds)
        return 0
    return 0 if report(arguments.seeds) else 1


if __name__ == "__main__":
    sys.exit(main())
