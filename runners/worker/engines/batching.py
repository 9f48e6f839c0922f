"""Which waiting texts make the next pass of the model. Pure: no I/O, no clock, no arrays.

::

    sorted by length   6  7  7  9 │ 21 22 24 │ 60 61 │ 118       a pass is a run of neighbours, padded to its longest;
    place in line      5  2  9  7 │  8  1  4 │  3  6 │  10       the one that holds the first in line runs next

A pass costs `overhead + rows x longest` tokens of time: padding is paid for like text, and so is starting a pass. The
cuts between passes are those that make the sum least. `rows x longest` stays within the budget, so memory has a known
ceiling.

The line: the first text of a request goes to its end, the second stands one pass further back, the third two, and so
on. So a request of thousands of texts does not make the others wait for all of them. The first in line is always in the
next pass, and nothing starves: with each pass newcomers begin one place further back, so nobody is overtaken for ever.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple

#: Neighbours that are weighed one by one. More of them are weighed in blocks: a choice must cost next to nothing.
_UNITS = 64
_length = itemgetter(0)


class Text(NamedTuple):
    """One waiting text. Sorts by length.

    Attributes:
        length: tokens.
        number: unique, in the order of arrival.
        job: whose it is.
        place: which of its job's texts it is.
    """

    length: int
    number: int
    job: int
    place: int


class Pass(NamedTuple):
    """What runs together: texts in order of length, and whether nothing else may run beside them."""

    texts: list[Text]
    alone: bool


class Batcher:
    """The waiting texts.

    Args:
        budget: padded tokens of one pass, at most. A text that is longer goes by itself all the same; the engine cuts
            texts to no more than the budget, so there it does not happen.
        overhead: what starting a pass costs, as tokens of the same time.
    """

    def __init__(self, *, budget: int, overhead: int) -> None:
        self._budget = budget
        self._overhead = overhead
        self._line: list[tuple[int, Text]] = []  # a heap of (place, text), with texts that are gone
        self._shared: list[Text] = []  # sorted
        self._alone: dict[int, list[Text]] = {}  # sorted too, one list a job
        self._waiting: set[int] = set()  # numbers
        self._tokens = 0
        self._numbered = 0
        self._passes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._tokens

    def add(self, job: int, lengths: Sequence[int], *, alone: bool = False) -> None:
        """Take the texts of a job that is not here yet. With `alone` they share their passes with no other job's."""
        texts = [Text(length, self._numbered + index, job, index) for index, length in enumerate(lengths)]
        self._numbered += len(texts)
        self._waiting.update(text.number for text in texts)
        self._tokens += sum(lengths)
        for text in texts:
            heapq.heappush(self._line, (self._passes + text.place, text))
        if alone:
            self._alone[job] = sorted(texts)
        elif len(texts) < 8:
            for text in texts:
                insort(self._shared, text)
        else:
            self._shared.extend(texts)
            self._shared.sort()  # sees the sorted part, so this is a merge

    def drop(self, job: int) -> int:
        """Forget the waiting texts of a job. Returns how many there were."""
        gone = self._alone.pop(job, None)
        if gone is None:
            gone = [text for text in self._shared if text.job == job]
            self._shared = [text for text in self._shared if text.job != job]
        self._forget(gone)
        return len(gone)

    def _forget(self, texts: Iterable[Text]) -> None:
        for text in texts:
            self._waiting.discard(text.number)
            self._tokens -= text.length

    def first(self) -> Text | None:
        """The first in line: it will be in the next pass."""
        while self._line:
            text = self._line[0][1]
            if text.number in self._waiting:
                return text
            heapq.heappop(self._line)
        return None

    def next_is_alone(self) -> bool:
        """Whether the next pass must have the engine to itself."""
        first = self.first()
        return first is not None and first.job in self._alone

    def take(self, share: int | None = None) -> Pass | None:
        """Remove and return the next pass; None if nothing waits.

        With `share` it holds at most so many padded tokens (or one text), so that something is left for another lane.
        """
        first = self.first()
        if first is None:
            return None
        alone = first.job in self._alone
        waiting = self._alone[first.job] if alone else self._shared
        budget = self._budget if share is None else min(self._budget, share)
        start, end = window(waiting, bisect_left(waiting, first), budget=budget, overhead=self._overhead)
        texts = waiting[start:end]
        del waiting[start:end]
        if alone and not waiting:
            del self._alone[first.job]
        self._forget(texts)
        self._passes += 1
        return Pass(texts, alone)


def window(texts: Sequence[tuple[int, ...]], first: int, *, budget: int, overhead: int) -> tuple[int, int]:
    """The pass that holds `texts[first]`, as start and end in `texts`, which are sorted and begin with their lengths.

    The neighbourhood is cut into passes so that the sum of their costs is least (dynamic programming), and the pass in
    question is returned. It never costs more than its texts one by one.
    """
    own = max(texts[first][0], 1)
    # In a cheapest cut no two texts of a pass differ by more than the overhead: cutting between them would be cheaper.
    # So what is twice as far away hardly matters, nor does what would not fit beside this one.
    reach = max(budget // own, 1)
    low = bisect_left(texts, own - 2 * overhead, max(0, first - reach), first, key=_length)
    high = bisect_right(texts, own + 2 * overhead, first, min(len(texts), first + reach), key=_length)
    if high <= first:  # lengths below 1
        high = first + 1
    lengths = [text[0] for text in texts[low:high]]
    open_ends = (low > 0 and low == first - reach, high < len(texts) and high == first + reach)
    start, end = _cut(lengths, first - low, budget, overhead, open_ends)
    if overhead + (end - start) * lengths[end - 1] > (end - start) * overhead + sum(lengths[start:end]):
        start, end = first - low, first - low + 1  # blocks are coarse where few lengths are alike
    return low + start, low + end


def _cut(
    lengths: Sequence[int], first: int, budget: int, overhead: int, open_ends: tuple[bool, bool]
) -> tuple[int, int]:
    """`open_ends`: whether there are more texts below and above, with which the outer passes would be filled."""
    count = len(lengths)
    block = -(-count // _UNITS)
    cuts = [*range(0, count, block), count]  # a pass reaches from one of these to another
    least = [0.0]  # for each cut, the lowest cost of everything before it ...
    came = [0]  # ... and the start of the pass that ends there
    for number in range(1, len(cuts)):
        end = cuts[number]
        longest = lengths[end - 1]
        best, best_start = -1.0, 0
        for previous in range(number - 1, -1, -1):
            cells = (end - cuts[previous]) * longest
            if cells > budget and previous < number - 1:
                break
            outer = (open_ends[0] and previous == 0) or (open_ends[1] and end == count)
            cost = least[previous] + cells + (overhead * min(1, cells / budget) if outer else overhead)
            if best < 0 or cost < best:
                best, best_start = cost, previous
        least.append(best)
        came.append(best_start)
    number = len(cuts) - 1
    while cuts[came[number]] > first:
        number = came[number]
    start, end = cuts[came[number]], cuts[number]
    if (end - start) * lengths[end - 1] > budget:  # one block, too large: what fits below the first in line
        end = first + 1
        start = max(start, end - max(budget // max(lengths[first], 1), 1))
    return start, end
