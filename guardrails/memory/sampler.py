"""One background thread that reads memory for every guard, so that no call ever makes a system call for it.

It reads ten times a second while calls come in (they set `wanted`, a plain attribute) and once a second while none do.
It starts with the first watcher and ends when the last is gone.

Threads and forks: the thread is a daemon and holds no lock while it reads or calls a watcher. A forked child has none
of its parent's threads, and gets none before a guard there is used: most children live for a moment. Watchers are held
weakly.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from guardrails.memory.reading import Scope, machine_scopes, scope_reader

_log = logging.getLogger("guardrails.memory")

BUSY_INTERVAL = 0.1
IDLE_INTERVAL = 1.0


class Watcher(Protocol):
    """Who wants readings. Called on the sampler's thread."""

    def on_reading(self, scopes: Sequence[Scope]) -> None: ...


class MemorySampler:
    """Reads memory scopes in the background. `scopes` is the last reading; set `wanted` to have it fresh.

    Args:
        read: what to read; by default the host and the cgroups of this process.
    """

    def __init__(self, read: Callable[[], tuple[Scope, ...]] = machine_scopes) -> None:
        self._read = read
        self._watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self.wanted = False
        self.scopes: tuple[Scope, ...] = read()
        if hasattr(os, "register_at_fork"):
            _restart_after_fork(weakref.ref(self))

    def watch(self, watcher: Watcher) -> None:
        """Call `watcher.on_reading` with the current reading now and every further one, for as long as it lives."""
        with self._lock:
            self._watchers.add(watcher)
            if self._thread is None:
                self._start()
        watcher.on_reading(self.scopes)

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="guardrails-memory", daemon=True)
        thread.start()
        self._thread = thread  # only now: the system may have had no thread left, and the next watcher tries again

    def _run(self) -> None:
        while True:
            self._wake.wait(BUSY_INTERVAL if self.wanted else IDLE_INTERVAL)
            self.wanted = False
            with self._lock:
                watchers = list(self._watchers)
                if not watchers:
                    self._thread = None
                    return
            self._sample(watchers)
            del watchers

    def _sample(self, watchers: Sequence[Watcher]) -> None:
        # The thread must outlive a bad reading and a bad watcher, or admission would freeze at the last reading.
        try:
            self.scopes = self._read()
        except Exception:
            _log.exception("reading memory failed; trying again")
            return
        for watcher in watchers:
            try:
                watcher.on_reading(self.scopes)
            except Exception:
                _log.exception("%r failed to take a reading of memory", watcher)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        if self._thread is not None:
            self._thread = None
            del self.wanted
            self.__class__ = _Forked


class _Forked(MemorySampler):
    """A sampler in a forked child, before a guard there asks for readings. Then it is an ordinary one again.

    A class of its own, so that the attribute that every guarded call sets costs nothing more where there was no fork.
    """

    @property
    def wanted(self) -> bool:
        """Whether a guard asked; then it is no longer of this class."""
        return False

    @wanted.setter
    def wanted(self, value: bool) -> None:
        self._resume(wanted=value)

    def watch(self, watcher: Watcher) -> None:
        """As in the parent."""
        self._resume(wanted=False)
        self.watch(watcher)

    def _resume(self, *, wanted: bool) -> None:
        with self._lock:
            if self.__class__ is _Forked:  # else another thread was faster
                self.__class__ = MemorySampler  # type: ignore[assignment]
                self.wanted = wanted
                self._start()


def _restart_after_fork(sampler: weakref.ref[MemorySampler]) -> None:
    def restart() -> None:
        alive = sampler()
        if alive is not None:
            alive._after_fork()  # noqa: SLF001

    os.register_at_fork(after_in_child=restart)


#: A limit on the process tree that is none: it is there so that the tree is measured.
NO_LIMIT = 1 << 60

_shared: MemorySampler | None = None
#: That of the process tree, while a guard uses it: few guards do.
_shared_tree: weakref.ref[MemorySampler] | None = None
_shared_lock = threading.Lock()


def shared_sampler(*, tree: bool = False) -> MemorySampler:
    """The sampler that all guards of this process share, however many there are: one thread for all of them.

    Args:
        tree: that of the guards which need the memory of this process and its children too, as the scope ``processes``.
            To measure it takes milliseconds, so the others have a sampler of their own.
    """
    global _shared, _shared_tree  # noqa: PLW0603 - one of each for all guards is the point
    with _shared_lock:
        if tree:
            sampler = None if _shared_tree is None else _shared_tree()
            if sampler is None:
                sampler = MemorySampler(scope_reader(NO_LIMIT))
                _shared_tree = weakref.ref(sampler)
            return sampler
        if _shared is None:
            _shared = MemorySampler()
        return _shared
