"""Which processes are watched, and what each of them holds: this one, its descendants, and those that were named.

Three rhythms, for three costs:

* every look reads each watched process cheaply;
* descendants are searched every five seconds, or more seldom where that takes more than 0.05 % of the time. A process
  that was named (every runner's worker is) is there with the next look;
* one process at a time is read exactly, each at most once a minute, and all of them together for at most 0.05 % of the
  time: the reading grows with the process, and holds up its `mmap`.

At most so many processes are watched as `most` says; of more, the largest ones at the last search.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import count

from guardrails.memory.monitor.names import ProcessName, forget_process, name_process, named_processes
from guardrails.memory.monitor.reader import Quick, Reader, system_reader
from guardrails.memory.monitor.sample import ProcessSample, Role

__all__ = ["Processes", "forget_process", "name_process"]

#: Seconds between two searches for descendants, and between two exact readings of one process, at least.
SEARCH_EVERY = 5.0
EXACT_EVERY = 60.0
#: The share of the time that each of both may take.
_SHARE = 0.0005
#: Processes that a search goes through at most.
_SEARCHED = 1024
#: The longest name of a program; Linux has 15.
_LONGEST = 40


class _Watched:
    __slots__ = ("budget", "exact", "exact_at", "name", "parent", "pss", "role")

    def __init__(self, name: str, role: Role, budget: int | None = None) -> None:
        self.name = name
        self.role = role
        self.budget = budget
        self.parent: int | None = None
        self.exact: int | None = None
        self.pss: int | None = None
        self.exact_at = float("-inf")


class Processes:
    """The watched processes. Used by one thread at a time.

    Args:
        most: how many are watched.
        descendants: whether those that nobody named are.
        reader: reads them.
        names: gives the names by pid.
        timer: CPU seconds of this thread: what the searches and exact readings are charged with.
    """

    def __init__(
        self,
        *,
        most: int = 64,
        descendants: bool = True,
        reader: Reader | None = None,
        names: Callable[[], dict[int, ProcessName]] = named_processes,
        timer: Callable[[], float] = time.thread_time,
    ) -> None:
        self._most = most
        self._descendants = descendants
        self._reader = reader or system_reader()
        self._names = names
        self._timer = timer
        self._watched: dict[int, _Watched] = {}
        self._search_from = float("-inf")
        self._exact_from = float("-inf")

    def look(self, now: float, *, exact: bool = True) -> tuple[ProcessSample, ...]:
        """All of them, this process first.

        Args:
            now: seconds, on any steady clock.
            exact: whether one may be read exactly, if its turn has come.
        """
        self._take_named()
        if now >= self._search_from:
            self._search(now)
        found = []
        for pid, watched in tuple(self._watched.items()):
            quick = self._reader.quick(pid)
            if quick is None or watched.parent not in (None, quick.parent):
                del self._watched[pid]  # it ended, or its number is another process's by now
                continue
            watched.parent = quick.parent
            found.append((pid, watched, quick))
        if exact and now >= self._exact_from:
            self._read_exactly(now)
        return tuple(_sample(*each) for each in found)

    def after_fork(self) -> None:
        """In a forked child: it is another process, and has no children yet."""
        self._watched.clear()
        self._search_from = self._exact_from = float("-inf")

    def _take_named(self) -> None:
        """Who was named, and is so no more."""
        own, names = os.getpid(), self._names()
        if own not in self._watched:
            self._watched = {own: _Watched("self", "self"), **self._watched}
        for pid, watched in tuple(self._watched.items()):
            known = names.get(pid)
            if watched.role == "worker" and (known is None or known.name != watched.name):
                del self._watched[pid]
        for pid, known in names.items():
            before = self._watched.get(pid)
            if pid == own or (before is not None and before.name == known.name):
                continue
            if before is not None or len(self._watched) < self._most:
                self._watched[pid] = _Watched(known.name, known.role, known.budget)

    def _search(self, now: float) -> None:
        began = self._timer()
        if self._descendants:
            self._adopt(self._tree())
        self._search_from = now + max(SEARCH_EVERY, (self._timer() - began) / _SHARE)

    def _tree(self) -> list[int]:
        """All descendants of this process, nearest first."""
        found: dict[int, None] = {os.getpid(): None}
        for pid in (waiting := list(found)):  # it grows as it is gone through
            for child in self._reader.children(pid):
                if child not in found and len(found) < _SEARCHED:
                    found[child] = None
                    waiting.append(child)
        return waiting[1:]

    def _adopt(self, tree: list[int]) -> None:
        """Watch these descendants too: the largest, if they are too many."""
        for pid in [pid for pid, watched in self._watched.items() if watched.role == "child" and pid not in tree]:
            if pid not in self._names():
                del self._watched[pid]
        strangers = [pid for pid in tree if pid not in self._watched]
        room = self._most - len(self._watched)
        if len(strangers) > room:
            nameless = [pid for pid, watched in self._watched.items() if watched.role == "child"]
            everybody = sorted([*nameless, *strangers], key=self._size, reverse=True)
            kept = set(everybody[: max(0, room + len(nameless))])
            for pid in nameless:
                if pid not in kept:
                    del self._watched[pid]
            strangers = [pid for pid in strangers if pid in kept]
        for pid in strangers:
            self._watched[pid] = _Watched(self._free_name(self._reader.command(pid)), "child")

    def _size(self, pid: int) -> int:
        quick = self._reader.quick(pid)
        return 0 if quick is None else quick.rss if quick.private is None else quick.private

    def _free_name(self, command: str) -> str:
        taken = {watched.name for watched in self._watched.values()}
        command = "".join(letter if letter.isprintable() else "?" for letter in command)[:_LONGEST] or "process"
        return next(name for number in count() if (name := f"{command}/{number}") not in taken)

    def _read_exactly(self, now: float) -> None:
        if not self._watched:
            return
        pid, watched = min(self._watched.items(), key=lambda item: item[1].exact_at)
        if now - watched.exact_at < EXACT_EVERY:
            return
        began = self._timer()
        exact = self._reader.exact(pid)
        self._exact_from = now + (self._timer() - began) / _SHARE
        watched.exact_at = now
        if exact is not None:
            watched.exact, watched.pss = exact


def _sample(pid: int, watched: _Watched, quick: Quick) -> ProcessSample:
    private = quick.private if quick.private is not None else watched.exact
    return ProcessSample(
        name=watched.name,
        pid=pid,
        role=watched.role,
        private=quick.rss if private is None else private,
        rss=quick.rss,
        pss=watched.pss,
        budget=watched.budget,
    )
