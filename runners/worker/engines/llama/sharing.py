"""Which sequence takes what from which. Pure: says what to do with the KV cache, and does nothing to it.

A sequence is *live* (a job runs in it) or *parked* (its job has ended; what it computed is kept for others, until its
id or its cells are needed). The ledger is kept as planned: a live sequence has from the start all the cells that its
job may come to need, so what is admitted always fits. A newcomer shares its longest match with a sequence that has
computed it, or *will* have: then it follows, which is to wait for its source in the ledger to get that far::

    leader    ████████████░░░░░░░ ┄┄┄┄┄        █ computed   ░ prompt to compute   ┄ may be generated
    follower  ················░░░ ┄┄┄          · from its source: copied once the source has computed it

The ledger counts the shared part once. When a leader goes, the ledger makes the follower that shares most the leader
of the others; each first gets what the old leader had computed. So whoever shares a cell in the plan shares it in
truth, and the cells in use never exceed those planned. Sources form a forest, so no two can wait for each other.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from runners.worker.engines.llama.ledger import Ledger
from runners.worker.engines.llama.prefix import RadixTree


class Copy(NamedTuple):
    """Give the first `length` cells of `source` to `seq` too, which has none."""

    source: int
    seq: int
    length: int


class Remove(NamedTuple):
    """Take all cells from `seq`."""

    seq: int


class Truncate(NamedTuple):
    """Take all cells but the first `length` from `seq`."""

    seq: int
    length: int


#: What the engine must do to the KV cache, in the order given, before the next batch.
Command = Copy | Remove | Truncate


class _Match(NamedTuple):
    """What a newcomer takes from whom, and whether the source will end with that."""

    length: int = 0
    source: int | None = None
    whole: bool = False


class Sequences:
    """The sequences and what they have computed.

    Args:
        ids: sequence ids are 0 to `ids - 1`.
        cells: of the KV cache.
        share: False: nothing is parked, nobody takes anything from another.
        shortest: tokens; a match is used if it is at least so long, and waited for if waiting gains at least as many.
    """

    def __init__(self, *, ids: int, cells: int, share: bool, shortest: int) -> None:
        self._cells = cells
        self._share = share
        self._shortest = shortest
        self._plan = Ledger()
        self._tree = RadixTree()
        self._free = list(range(ids - 1, -1, -1))
        self._live: dict[int, int] = {}  # to the length of the prompt
        self._parked: dict[int, None] = {}  # least recently used first
        self._followers: set[int] = set()  # live ones that wait for their source
        self._computed = [0] * ids

    def computed(self, seq: int) -> int:
        """How many tokens it has in the cache: computed by itself or taken."""
        return self._computed[seq]

    def follows(self, seq: int) -> bool:
        """Whether it must not compute yet, because another one is computing the same."""
        return seq in self._followers

    def own(self, seq: int) -> int:
        """Cells that are in use for it and, as the ledger has it, on its account."""
        return max(0, self._computed[seq] - self._plan.start(seq))

    @property
    def parked(self) -> int:
        return len(self._parked)

    @property
    def cached(self) -> int:
        """Cells on the account of parked sequences."""
        return sum(self.own(seq) for seq in self._parked)

    @property
    def used(self) -> int:
        """Distinct cells in use."""
        return self.cached + sum(self.own(seq) for seq in self._live)

    @property
    def planned(self) -> int:
        """Distinct cells in use, or promised to live sequences."""
        return self._plan.used

    def place(self, tokens: array[int], total: int) -> tuple[int, list[Command]] | None:
        """A sequence for a newcomer with this prompt, that may come to have `total` tokens.

        None if it does not fit, even without anything parked; it always fits when nothing is live. Nothing is evicted
        in vain.
        """
        match = self._match(tokens)
        kept = [(seq, self._plan.length(seq)) for seq in self._live]
        if match.source is not None:
            kept.append((match.source, match.length))
        if self._plan.distinct(kept) + total - match.length > self._cells:
            return None
        commands: list[Command] = []
        parked = match.source is not None and self._touch(match.source)
        if match.source is not None and parked and (match.whole or (not self._free and len(self._parked) == 1)):
            seq = match.source  # it becomes the newcomer's own
            commands += self._take_over(seq, match.length)
        else:
            if not self._free:
                commands += self.evict()
            seq = self._free.pop()
            if match.source is not None:
                self._plan.copy(match.source, seq, match.length)
        self._plan.grow(seq, total - match.length)
        self._live[seq] = len(tokens)
        if self._share:
            self._tree.insert(tokens, seq)
        if self._computed[seq] < self._plan.start(seq):
            self._followers.add(seq)
            commands += self.follow()
        # The source goes last, after the copy: then its cells are the newcomer's.
        while self._plan.used > self._cells and self._parked:
            commands += self.evict()
        return seq, commands

    def _take_over(self, seq: int, length: int) -> list[Command]:
        """A parked sequence goes on as another's."""
        del self._parked[seq]
        if length == self._computed[seq]:
            return []
        self._plan.truncate(seq, length)
        self._computed[seq] = length
        return [Truncate(seq, length)]

    def _touch(self, seq: int) -> bool:
        """If it is parked, it is now the most recently used one."""
        if seq not in self._parked:
            return False
        del self._parked[seq]
        self._parked[seq] = None
        return True

    def _match(self, tokens: array[int]) -> _Match:
        """The last token of a prompt is always computed, for its logits. Of a live sequence's prompt, too, the last
        token is not waited for: that may be held back while its reader is slow.
        """
        now, later = _Match(), _Match()
        if not self._share:
            return now
        for common, holders in self._tree.matches(tokens):
            length = min(common, len(tokens) - 1)
            if length < max(self._shortest, now.length):
                break
            for seq in sorted(holders):
                computed = self._computed[seq]
                whole = seq in self._parked and computed <= length
                now = max(now, _Match(min(length, computed), seq, whole), key=lambda match: (match.length, match.whole))
                if seq in self._live:
                    later = max(later, _Match(min(length, self._live[seq] - 1), seq), key=lambda match: match.length)
        if later.length >= now.length + self._shortest:
            return later
        return now if now.length >= self._shortest else _Match()

    def advance(self, seq: int, count: int) -> None:
        """`count` more tokens of a live sequence have been computed."""
        self._computed[seq] += count

    def follow(self) -> list[Command]:
        """Give each follower its match whose source has got that far. Due whenever a source has got further or gone."""
        commands: list[Command] = []
        moved = bool(self._followers)
        while moved:  # a copy can be what the next one waits for
            moved = False
            for seq in sorted(self._followers):
                start, source = self._plan.start(seq), self._plan.source(seq)
                if self._computed[seq] < start:
                    if source is None or self._computed[source] < start:
                        continue
                    commands += self._copy(source, seq, start)
                self._followers.discard(seq)
                moved = True
        return commands

    def _copy(self, source: int, seq: int, length: int) -> list[Command]:
        commands: list[Command] = [Remove(seq)] if self._computed[seq] else []
        self._computed[seq] = length
        return [*commands, Copy(source, seq, length)]

    def park(self, seq: int, tokens: Sequence[int]) -> list[Command]:
        """A live sequence ends; what it has computed, `tokens`, is kept, unless another one has it all as well."""
        length = len(tokens)
        if not self._share or length < self._shortest:
            return self.remove(seq)
        common, holders = self._tree.longest(tokens)
        covering = [other for other in holders if other != seq and self._computed[other] >= length]
        if common == length and covering:
            for other in covering:
                self._touch(other)
            return self.remove(seq)
        self._tree.insert(tokens, seq)
        self._plan.truncate(seq, length)
        del self._live[seq]
        self._followers.discard(seq)
        self._parked[seq] = None
        return self.follow()

    def remove(self, seq: int) -> list[Command]:
        """A sequence ends, and nothing of it is kept but what others share."""
        commands: list[Command] = []
        for other in sorted(self._plan.sharers(seq) & self._followers):
            length = min(self._computed[seq], self._plan.start(other))
            if length > self._computed[other]:
                commands += self._copy(seq, other, length)
        self._plan.drop(seq)
        self._tree.remove(seq)
        self._live.pop(seq, None)
        self._parked.pop(seq, None)
        self._followers.discard(seq)
        self._computed[seq] = 0
        self._free.append(seq)
        return [*commands, Remove(seq), *self.follow()]

    def evict(self) -> list[Command]:
        """Remove the least recently used parked sequence; nothing if there is none."""
        return self.remove(next(iter(self._parked))) if self._parked else []
