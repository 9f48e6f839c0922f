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

What stays parked while others compute slows them down, and is moved to the store (`store`), outside the cache.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from runners.worker.engines.llama.ledger import Ledger
from runners.worker.engines.llama.prefix import RadixTree
from runners.worker.engines.llama.store import Found, Part, PrefixStore


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


class Keep(NamedTuple):
    """Store the cells of `seq` from position `start` to before `end`, under a new `key`."""

    seq: int
    key: int
    start: int
    end: int


class Load(NamedTuple):
    """Give `seq`, which has none, cells with what these parts of the store hold. If that fails: `Slots.not_loaded`."""

    seq: int
    parts: tuple[Part, ...]


class Discard(NamedTuple):
    """Free what the store holds under `key`."""

    key: int


#: What the engine must do to the KV cache and the store, in the order given, before the next batch.
Command = Copy | Remove | Truncate | Keep | Load | Discard


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
        stored: tokens that may be kept outside the cache.
        rent: tokens that others compute while a sequence is parked, before it is moved there. At some 64, passing over
            its cells has cost about as much as copying them out and back, whatever the model: so this rule never costs
            more than twice what knowing the future would (the ski rental problem).
    """

    def __init__(self, *, ids: int, cells: int, share: bool, shortest: int, stored: int, rent: int) -> None:
        self._cells = cells
        self._share = share
        self._shortest = shortest
        self._plan = Ledger()
        self._tree = RadixTree()
        self._free = list(range(ids - 1, -1, -1))
        self._live: dict[int, int] = {}  # to the length of the prompt
        self._parked: dict[int, array[int]] = {}  # least recently used first, to what it has computed
        self._store = PrefixStore(stored, shortest=shortest)
        self._rent = rent
        self._clock = 0  # tokens computed, of all
        self._since = [0] * ids  # on this clock, when a parked one was used last
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

    @property
    def stored(self) -> int:
        """Tokens that are kept outside the cache."""
        return self._store.used

    def place(self, tokens: array[int], total: int) -> tuple[int, list[Command]] | None:
        """A sequence for a newcomer with this prompt, that may come to have `total` tokens.

        None if it does not fit, even without anything parked; it always fits when nothing is live. Nothing is evicted
        in vain.
        """
        match = self._match(tokens)
        kept = [(seq, self._plan.length(seq)) for seq in self._live]
        found = self._store.find(tokens, len(tokens) - 1)
        if found is not None and found.length >= match.length + self._shortest:
            room = max(total, found.room)
            if self._plan.distinct(kept) + room <= self._cells:
                return self._place_stored(tokens, total, found, room)
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

    def _place_stored(self, tokens: array[int], total: int, found: Found, room: int) -> tuple[int, list[Command]]:
        """As `place`, for one whose longest match is in the store."""
        self._store.touch(found)
        commands: list[Command] = []
        spare = [part.key for part in found.parts]
        while self._parked and (not self._free or self._plan.used + room > self._cells):
            commands += self.evict(spare)
        seq = self._free.pop()
        self._plan.grow(seq, total)
        self._live[seq] = len(tokens)
        self._computed[seq] = found.length
        self._tree.insert(tokens, seq)
        return seq, [*commands, Load(seq, found.parts)]

    def not_loaded(self, seq: int) -> list[Command]:
        """The store could not give a sequence what it should have: it computes all of its prompt instead."""
        self._computed[seq] = 0
        return [Remove(seq), *(Discard(key) for key in self._store.clear())]

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
        self._parked[seq] = self._parked.pop(seq)
        self._since[seq] = self._clock
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
        self._clock += count

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

    def park(self, seq: int, tokens: array[int]) -> list[Command]:
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
        self._parked[seq] = tokens
        self._since[seq] = self._clock
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

    def evict(self, spare: Sequence[int] = ()) -> list[Command]:
        """Move the least recently used parked sequence to the store, or just remove it if that has no place for it
        beside the entries to `spare`; nothing if there is none.
        """
        if not self._parked:
            return []
        seq, tokens = next(iter(self._parked.items()))
        commands: list[Command] = []
        added = self._store.add(tokens, spare)
        if added is not None:
            commands += (Discard(key) for key in added.dropped)
            commands.append(Keep(seq, added.key, added.start, len(tokens)))
        return commands + self.remove(seq)

    def move_out(self, *, idle: bool) -> list[Command]:
        """Evict the least recently used parked sequence if it has been in the way of others for long enough, or, when
        `idle`, if it is not the only one: what was used last may well be what goes on next.
        """
        for seq, tokens in self._parked.items():
            due = len(self._parked) > 1 if idle else self._clock - self._since[seq] >= self._rent
            if due and self._store.takes(len(tokens)):
                return self.evict()
            break
        return []
