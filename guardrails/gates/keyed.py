"""One guard for each host, tenant or model, made when its key is first seen, and bounded in number.

Generic over gates: a breaker, a limiter, a bulkhead or a gate of one's own. It knows them by the contract alone, and by
`state`: a guard whose state is anything but ``closed`` is remembered longer than one that has nothing to remember.
"""

from __future__ import annotations

import contextlib
import threading
import typing
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

from guardrails.core import validate
from guardrails.core.fixed import fixed
from guardrails.core.guard import Call, Gate, Position, Ticket
from guardrails.core.keys import UNCHANGING, checked, plain
from guardrails.core.names import KeyedName
from guardrails.core.outcome import Outcome
from guardrails.core.pipeline import Layer

G = TypeVar("G", bound=Gate)

#: The places of gates that let in, refuse or have wait: the guard of a key is one of them.
_GATES = (Position.BREAKER, Position.LIMITER, Position.ADMISSION)
#: How many of the longest unused guards with something to remember are looked at for one that has forgotten it.
_LOOK = 32


class _Entry(Generic[G]):
    """A guard, how many calls are in it, running or waiting, and whether it stands among the idle ones."""

    __slots__ = ("calls", "guard", "idle", "place")

    def __init__(self, place: Hashable, guard: G) -> None:
        self.place = place
        self.guard = guard
        self.calls = 0
        self.idle = False


@fixed("factory", "key")
class Keyed(Layer, Gate, Generic[G]):
    """A gate that passes each call to the guard of its key. Build it with `keyed(...)`, which documents the arguments.

    Threads: the lock guards the table of guards. It is held while a guard is made (so that a key never gets two), never
    while a guard decides or waits.
    """

    judges = True

    def __init__(
        self,
        factory: Callable[[Any], G],
        key: Callable[..., Hashable],
        *,
        max_keys: int,
        name: str,
        positions: tuple[Position, ...] | None,
    ) -> None:
        self.name = name
        self._places_assumed = positions is None
        self.positions = _places_of(factory) if positions is None else positions
        self._max_keys = max_keys
        self._factory = factory
        self._key = key
        self._lock = threading.RLock()
        # By the key, in the form of `guardrails.core.keys`. All of them, the least recently used first; those without
        # calls, and some that have got a call since, which saves two changes of the table for each call; and those
        # without calls that had something to remember when it was last looked at.
        self._entries: OrderedDict[Hashable, _Entry[G]] = OrderedDict()
        self._idle: OrderedDict[Hashable, _Entry[G]] = OrderedDict()
        self._remembering: OrderedDict[Hashable, _Entry[G]] = OrderedDict()
        # Evicted guards that are still in use by hand: an open block, a waiting call or a variable holds them.
        self._evicted: weakref.WeakValueDictionary[Hashable, G] = weakref.WeakValueDictionary()

    # What it is now

    @property
    def max_keys(self) -> int:
        """Guards that are kept. Can be assigned to; a lower number evicts at once."""
        return self._max_keys

    @max_keys.setter
    def max_keys(self, value: int) -> None:
        value = validate.whole("max_keys", value, least=1)
        with self._lock:
            self._max_keys = value
            self._shrink()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return checked(self.name, key) in self._entries

    def keys(self) -> list[Hashable]:
        """The keys that have a guard, least recently used first."""
        with self._lock:
            return [plain(place) for place in self._entries]

    def guard_of(self, key: Hashable) -> G:
        """The guard of `key`, to look at it or to use it by hand; made if need be. It counts as a use.

        As long as it is held (by an open block, a call that waits in it, a variable), it is the guard of its key, also
        when it has been evicted meanwhile.
        """
        place = checked(self.name, key)
        with self._lock:
            entry = self._use(place)
            self._shrink()
            self._release(entry)
            return entry.guard

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        return f"keyed {self.name!r}: a guard for each key, {self._max_keys} keys at most"

    def __repr__(self) -> str:
        return f"<keyed {self.name!r} {len(self._entries)} of {self._max_keys} keys>"

    # The contract

    def try_enter(self, call: Call) -> tuple[_Entry[G], Ticket] | None:
        """Ask the guard of the call's key."""
        # As `_join` and `_use` do for a key that has a guard; two frames more cost as much as a gate.
        if call.args is None or call.kwargs is None:
            entry = self._join(call)  # refuses it
        else:
            place: Hashable = self._key(*call.args, **call.kwargs)  # user code: outside the lock
            if type(place) not in UNCHANGING:
                place = checked(self.name, place)
            with self._lock:
                known = self._entries.get(place)
                if known is None:
                    entry = self._use(place)
                    self._shrink()
                else:
                    entry = known
                    self._entries.move_to_end(place)
                    if not entry.calls and not entry.idle:
                        self._remembering.pop(place, None)
                    entry.calls += 1
                    if len(self._entries) > self._max_keys:
                        self._shrink()
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

    def failure_if_of(self, ticket: tuple[_Entry[G], Ticket]) -> Callable[[Any], bool] | None:
        """That of the guard of the call's key, for itself alone."""
        return ticket[0].guard.failure_if

    def settle(self, ticket: tuple[_Entry[G], Ticket], outcome: Outcome) -> None:
        """Give the ticket back to the guard that it came from."""
        entry, inner = ticket
        try:
            entry.guard.settle(inner, outcome)
        finally:
            with self._lock:  # as `_leave` does; a frame more costs as much as the lock
                entry.calls -= 1
                if not entry.calls:
                    if entry.idle:
                        self._idle.move_to_end(entry.place)
                    else:
                        self._idle[entry.place] = entry
                        entry.idle = True
                    if len(self._entries) > self._max_keys:
                        self._shrink()

    # Inside

    def _join(self, call: Call) -> _Entry[G]:
        if call.args is None or call.kwargs is None:
            msg = f"{self.name}: key is a function of the call's arguments, and a block has none; use guard_of(key)"
            raise TypeError(msg)
        place = checked(self.name, self._key(*call.args, **call.kwargs))  # user code: outside the lock
        with self._lock:
            entry = self._use(place)
            self._shrink()
            return entry

    def _leave(self, entry: _Entry[G]) -> None:
        with self._lock:
            self._release(entry)
            self._shrink()

    # Under the lock

    def _use(self, place: Hashable) -> _Entry[G]:
        entry = self._entries.get(place)
        if entry is None:
            guard = self._evicted.pop(place, None)
            entry = self._entries[place] = _Entry(place, self._made(place) if guard is None else guard)
        else:
            self._entries.move_to_end(place)
            if not entry.calls and not entry.idle:
                self._remembering.pop(place, None)
        entry.calls += 1
        return entry

    def _release(self, entry: _Entry[G]) -> None:
        entry.calls -= 1
        if not entry.calls:
            self._idle[entry.place] = entry
            self._idle.move_to_end(entry.place)
            entry.idle = True

    def _made(self, place: Hashable) -> G:
        guard = self._factory(plain(place))
        if not isinstance(guard, Gate) or guard.interrupts:
            kind = "an interrupting gate" if isinstance(guard, Gate) else type(guard).__name__
            msg = f"{self.name}: factory must return a gate (a breaker, a limiter, ...), not {kind}"
            raise TypeError(msg)
        if type(getattr(guard, "name", None)) is str:
            with contextlib.suppress(AttributeError):  # a gate of one's own, whose name cannot be set
                guard.name = KeyedName(guard.name, self.name)
        if self._places_assumed and guard.positions:
            self._places_assumed, self.positions = False, tuple(guard.positions)
        return guard

    def _shrink(self) -> None:
        # One that is in use stays, even if there are too many then: a second guard of its key would let in what the
        # first refuses.
        while len(self._entries) > self._max_keys and (victim := self._victim()) is not None:
            del self._entries[victim.place]
            self._evicted[victim.place] = victim.guard

    def _victim(self) -> _Entry[G] | None:
        # The least recently used, of those with nothing to remember if there are any. A guard is looked at once after
        # each use of it, so that this takes constant time on average, however many there are.
        while self._idle:
            place, entry = self._idle.popitem(last=False)
            entry.idle = False
            if entry.calls:
                continue
            if _forgettable(entry.guard):
                return entry
            self._remembering[place] = entry
        if not self._remembering:
            return None
        oldest = list(islice(self._remembering.values(), _LOOK))
        victim = next((entry for entry in oldest if _forgettable(entry.guard)), oldest[0])
        return self._remembering.pop(victim.place)


def _forgettable(guard: Gate) -> bool:
    return bool(getattr(guard, "state", "closed") == "closed")


def _places_of(factory: Callable[[Any], Gate]) -> tuple[Position, ...]:
    """Where guards of a factory may stand: what it is declared to return says; else it is one of the gates' places."""
    returned: object = factory
    if not isinstance(factory, type):
        with contextlib.suppress(Exception):  # hints may name what is imported for the type checker alone
            returned = typing.get_type_hints(factory).get("return")
    if isinstance(returned, type) and issubclass(returned, Gate):
        return tuple(returned.positions)
    return _GATES


def keyed(
    factory: Callable[[Any], G],
    /,
    *,
    key: Callable[..., Hashable],
    max_keys: int = 1000,
    name: str = "keyed",
    positions: Sequence[Position] | None = None,
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
        positions: where it may stand in a pipeline, as `Guard.positions`; by default where the guards of its factory
            may, as its return type or the first of them says, and until then where any gate may: inside the strategies
            (retry, fallback, cache, hedge). (): its place is not checked.

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
    return Keyed(factory, key, max_keys=max_keys, name=name, positions=None if positions is None else tuple(positions))


__all__ = ["Keyed", "keyed"]
