"""One guard for each host, tenant or model, made when its key is first seen, and bounded in number.

Generic over gates: a breaker, a limiter, a bulkhead or a gate of one's own. It knows them by the contract alone, and by
`state`: a guard whose state is anything but ``closed`` is remembered longer than one that has nothing to remember.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

from guardrails.core.guard import Call, Gate, Position, Ticket
from guardrails.core.names import KeyedName
from guardrails.core.outcome import Outcome
from guardrails.core.pipeline import Layer

G = TypeVar("G", bound=Gate)


class _Entry(Generic[G]):
    """A guard and how many calls are in it, running or waiting."""

    __slots__ = ("calls", "guard", "key")

    def __init__(self, key: Hashable, guard: G) -> None:
        self.key = key
        self.guard = guard
        self.calls = 0


class Keyed(Layer, Gate, Generic[G]):
    """A gate that passes each call to the guard of its key. Build it with `keyed(...)`, which documents the arguments.

    Threads: the lock guards the table of guards. It is held while a guard is made (so that a key never gets two), never
    while a guard decides or waits.
    """

    def __init__(
        self,
        factory: Callable[[Any], G],
        key: Callable[..., Hashable],
        *,
        max_keys: int,
        name: str,
        positions: tuple[Position, ...],
    ) -> None:
        self.name = name
        self.positions = positions
        self.max_keys = max_keys
        self._factory = factory
        self._key = key
        self._lock = threading.RLock()
        self._entries: OrderedDict[Hashable, _Entry[G]] = OrderedDict()  # least recently used first

    # What it is now

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def keys(self) -> list[Hashable]:
        """The keys that have a guard, least recently used first."""
        with self._lock:
            return list(self._entries)

    def guard_of(self, key: Hashable) -> G:
        """The guard of `key`, to look at it or to use it by hand; made if need be. It counts as a use."""
        with self._lock:
            entry = self._entry(key)
            self._shrink(entry)
            return entry.guard

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        return f"keyed {self.name!r}: a guard for each key, {self.max_keys} keys at most"

    def __repr__(self) -> str:
        return f"<keyed {self.name!r} {len(self._entries)} of {self.max_keys} keys>"

    # The contract

    def try_enter(self, call: Call) -> tuple[_Entry[G], Ticket] | None:
        """Ask the guard of the call's key."""
        entry = self._join(call)
        try:
            ticket = entry.guard.try_enter(call)
        except BaseException:
            self._leave(entry)
            raise
        if ticket is None:
            self._leave(entry)
            return None
        return entry, ticket

    async def enter(self, call: Call) -> tuple[_Entry[G], Ticket]:
        """Wait in the guard of the call's key, which is not evicted meanwhile."""
        entry = self._join(call)
        try:
            return entry, await entry.guard.enter(call)
        except BaseException:
            self._leave(entry)
            raise

    def enter_blocking(self, call: Call) -> tuple[_Entry[G], Ticket]:
        """`enter` for sync code."""
        entry = self._join(call)
        try:
            return entry, entry.guard.enter_blocking(call)
        except BaseException:
            self._leave(entry)
            raise

    def settle(self, ticket: tuple[_Entry[G], Ticket], outcome: Outcome) -> None:
        """Give the ticket back to the guard that it came from."""
        entry, inner = ticket
        try:
            entry.guard.settle(inner, outcome)
        finally:
            self._leave(entry)

    # Inside

    def _join(self, call: Call) -> _Entry[G]:
        if call.args is None or call.kwargs is None:
            msg = f"{self.name}: key is a function of the call's arguments, and a block has none; use guard_of(key)"
            raise TypeError(msg)
        key = self._key(*call.args, **call.kwargs)  # user code: outside the lock
        with self._lock:
            entry = self._entry(key)
            entry.calls += 1
            self._shrink(entry)
            return entry

    def _leave(self, entry: _Entry[G]) -> None:
        with self._lock:
            entry.calls -= 1
            self._shrink(None)

    def _entry(self, key: Hashable) -> _Entry[G]:
        # Under the lock.
        try:
            entry = self._entries.get(key)
        except TypeError:
            msg = f"{self.name}: key returned a {type(key).__name__}, which is not hashable"
            raise TypeError(msg) from None
        if entry is not None:
            self._entries.move_to_end(key)
            return entry
        guard = self._factory(key)
        if not isinstance(guard, Gate) or guard.interrupts:
            kind = "an interrupting gate" if isinstance(guard, Gate) else type(guard).__name__
            msg = f"{self.name}: factory must return a gate (a breaker, a limiter, ...), not {kind}"
            raise TypeError(msg)
        if type(getattr(guard, "name", None)) is str:
            with contextlib.suppress(AttributeError):  # a gate of one's own, whose name cannot be set
                guard.name = KeyedName(guard.name, self.name)
        entry = self._entries[key] = _Entry(key, guard)
        return entry

    def _shrink(self, keep: _Entry[G] | None) -> None:
        # Under the lock. One that is in use stays, even if there are too many then: a second guard of its key would let
        # in what the first refuses. Of the others the least recently used goes; those with nothing to remember first.
        while len(self._entries) > self.max_keys:
            idle = [entry for entry in self._entries.values() if not entry.calls and entry is not keep]
            if not idle:
                return
            victim = next((entry for entry in idle if getattr(entry.guard, "state", "closed") == "closed"), idle[0])
            del self._entries[victim.key]


def keyed(
    factory: Callable[[Any], G],
    /,
    *,
    key: Callable[..., Hashable],
    max_keys: int = 1000,
    name: str = "keyed",
    positions: Sequence[Position] = (),
) -> Keyed[G]:
    """A guard for each key: ``keyed(lambda host: breaker(name=host), key=lambda host, path: host)``.

    Args:
        factory: makes the guard of a key, when it is first seen. It must not block: others wait for it meanwhile.
        key: a function of the call's arguments that returns the key, something hashable. Blocks have no arguments and
            cannot be guarded: use `guard_of(key)` there.
        max_keys: guards that are kept. The least recently used goes first, an open one only after all closed ones, and
            one with calls in it never: while more than `max_keys` are in use there may be that many. A guard that went
            has forgotten all, so take more keys than you expect.
        name: how it calls itself in errors; its guards have their own names.
        positions: where it may stand in a pipeline, as `Guard.positions`; by default its place is not checked.

    Raises:
        ValueError: an argument is out of range. TypeError: it has the wrong type; a call's key is not hashable; or the
            factory made something that is not a gate, or interrupts calls (timeout), which needs no key.
    """
    for argument, function in (("factory", factory), ("key", key)):
        if not callable(function) or isinstance(function, Gate):
            msg = f"{argument} takes a function, not {type(function).__name__}"
            raise TypeError(msg)
    if not isinstance(max_keys, int) or isinstance(max_keys, bool) or max_keys < 1:
        msg = f"max_keys takes a whole number of at least 1, not {max_keys!r}"
        raise ValueError(msg)
    return Keyed(factory, key, max_keys=max_keys, name=name, positions=tuple(positions))


__all__ = ["Keyed", "keyed"]
