"""The KV cache, through the library's calls: who has which cells, their order, and copies in plain memory.

What `cells` says about the order is done here. The library puts new tokens into the first free cells from its own head
on, and moves that head down whenever a cell gets free. So no cell is freed: what ends is given to a sequence that
nobody computes with, the *grave*, until the cache is compacted::

    remove(seq)    ─▶ seq's cells ─▶ grave              ordered: what comes next lies behind everything
    make_room(n)   ─▶ full, or too much of it dead? ─▶ copy out what lives, clear, copy in
                       too much lives for that?     ─▶ free the grave: no order until less lives

Two sequence ids behind those of the engine are this class's own: the grave, and one to save and restore by.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from llama_cpp import llama_cpp as lib

from runners.worker.engines.llama.cells import Cells, Run


class Saved(NamedTuple):
    """The cells from position `start` to before `end` of some sequence, as the library writes them.

    In a mapping of its own, which is given back to the system as soon as nobody refers to it.
    """

    data: mmap.mmap
    start: int
    end: int


class KvCache:
    """The cells of a context.

    Args:
        context: the library's pointer.
        size: cells.
        sequences: ids that may be used here, from 0 on.
        movable: cells that may be copied into plain memory for a moment, to keep each sequence's in order. 0: they are
            wherever the library puts them.
    """

    #: Sequence ids that it needs for itself, at most.
    OWN: ClassVar[int] = 2

    @classmethod
    def own(cls, movable: int) -> int:
        """Those that it needs. A recurrent model's cost memory, and it has no order to keep."""
        return cls.OWN if movable else 1

    def __init__(self, context: Any, *, size: int, sequences: int, movable: int = 0) -> None:
        self._context = context
        self._memory = lib.llama_get_memory(context)
        self._own, self._grave = sequences, sequences + 1
        self._movable = movable
        self._cells = Cells(size)
        self._ordered = movable > 0

    # Who has what

    def copy(self, source: int, seq: int, length: int) -> None:
        """`seq`, which has none, shares the first `length` cells of `source`."""
        lib.llama_memory_seq_cp(self._memory, source, seq, 0, length)
        self._cells.copied(source, seq, length)

    def truncate(self, seq: int, length: int) -> bool:
        """`seq` keeps its first `length` cells; whether the memory can do that."""
        if self._ordered:
            lib.llama_memory_seq_cp(self._memory, seq, self._grave, length, -1)
        done = bool(lib.llama_memory_seq_rm(self._memory, seq, length, -1))
        if done:
            self._cells.truncated(seq, length)
        return done

    def remove(self, seq: int) -> None:
        """`seq` has no cells any more. All of a sequence can always be removed."""
        self._bury(seq)
        self._cells.truncated(seq, 0)
        if self._ordered and not self._cells.used:
            lib.llama_memory_clear(self._memory, False)
            self._cells.compacted()

    def _bury(self, seq: int) -> None:
        if self._ordered:
            lib.llama_memory_seq_cp(self._memory, seq, self._grave, -1, -1)
        lib.llama_memory_seq_rm(self._memory, seq, -1, -1)

    def last_position(self, seq: int) -> int:
        """Of the last cell that `seq` has; -1 if it has none."""
        return int(lib.llama_memory_seq_pos_max(self._memory, seq))

    # Their order

    def make_room(self, count: int) -> None:
        """`count` tokens are to be computed: see that their cells come after all others."""
        cells = self._cells
        if not self._movable or (self._ordered and cells.fits(count) and not cells.wasteful(count)):
            return  # nearly always
        if cells.used <= self._movable and self._compact():
            self._ordered = True
        elif self._ordered and not cells.fits(count):
            # They go wherever there is place, and what is computed is as right as before, only not to the last bit.
            self._ordered = False
            lib.llama_memory_seq_rm(self._memory, self._grave, -1, -1)

    def tidy(self) -> bool:
        """There is nothing to compute: do now what would hold somebody up later. Whether there was anything to do."""
        cells = self._cells
        return self._ordered and cells.untidy and cells.used <= self._movable and self._compact()

    def placed(self, pieces: Sequence[tuple[int, int, Sequence[int], bool]]) -> None:
        """These pieces of a batch have been computed, see `Context.decode`."""
        for seq, _, tokens, _ in pieces:
            self._cells.placed(seq, len(tokens))

    def _compact(self) -> bool:
        """Write all that lives anew, from the first cell on. Whether there was memory for the copies."""
        kept: list[tuple[Run, Saved]] = []
        for run in self._cells.runs():
            saved = self.save(run.owners[0], run.start, run.end)
            if saved is None:
                return False
            kept.append((run, saved))
        lib.llama_memory_clear(self._memory, False)
        kept.reverse()
        while kept:
            run, saved = kept.pop()  # one by one: what is back needs its copy no more
            if not self._read(saved):
                raise RuntimeError("the library does not take back what it has written of its own KV cache")
            for seq in run.owners:
                lib.llama_memory_seq_cp(self._memory, self._own, seq, -1, -1)
            lib.llama_memory_seq_rm(self._memory, self._own, -1, -1)
        self._cells.compacted()
        return True

    # In plain memory

    def save(self, seq: int, start: int, end: int) -> Saved | None:
        """A copy of the cells of `seq` from position `start` to before `end`; None if there can be none."""
        own = self._own
        lib.llama_memory_seq_cp(self._memory, seq, own, start, end)
        try:
            size = int(lib.llama_state_seq_get_size(self._context, own))
            if size < 1:
                return None
            try:
                saved = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)  # counted for this process as its own
            except OSError:  # no memory for it: what is not kept is computed again
                return None
            at = (ctypes.c_uint8 * size).from_buffer(saved)
            written = int(lib.llama_state_seq_get_data(self._context, at, size, own))
            del at  # a mapping that somebody points to cannot be closed
        finally:
            lib.llama_memory_seq_rm(self._memory, own, -1, -1)  # `seq` still has them: none gets free
        return Saved(saved, start, end) if written == size else None

    def restore(self, seq: int, parts: Sequence[tuple[Saved | None, int, int]]) -> bool:
        """Give `seq`, which has no cells, of each ``(saved, start, end)`` those from position `start` to before `end`;
        whether all could be had.
        """
        for saved, start, end in parts:
            if saved is None:
                return False
            self.make_room(saved.end - saved.start)
            if not self._read(saved):
                return False
            lib.llama_memory_seq_cp(self._memory, self._own, seq, start, end)
            self._bury(self._own)
            self._cells.placed(seq, end - start, dead=saved.end - saved.start - (end - start))
        return self.last_position(seq) == parts[-1][2] - 1

    def _read(self, saved: Saved) -> bool:
        """This class's own sequence has these cells now."""
        at = (ctypes.c_uint8 * len(saved.data)).from_buffer(saved.data)
        return bool(lib.llama_state_seq_set_data(self._context, at, len(saved.data), self._own))
