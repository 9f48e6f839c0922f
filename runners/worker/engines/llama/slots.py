"""Who is in the next batch, and who may come in. Pure: no model, no clock; what the engine must do is returned.

::

    submit ─▶ waiting ── admit ─▶ live: prompt ── plan, advance ─▶ live: generating ── finish ─▶ parked
                 ▲                                          ▲            │
                 └──────────── requeue ─────────────────────┴─ sampled ──┘

    a step:   do(slots.admit()), until it is empty;  pieces = slots.plan();  decode(pieces);  do(slots.advance(pieces))
              slots.sampled(job, token), or do(slots.finish(job)), for each piece with `sample`

Admission is in order, and by worst case: prompt and all that may be generated must fit beside what the live ones may
still need, so nobody who is in runs out of cells. A batch holds one token of each generating job, then prompts.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from runners.worker.engines.llama.sharing import Command, Copy, Discard, Keep, Load, Remove, Sequences, Truncate

__all__ = [
    "Command",
    "Copy",
    "Discard",
    "EmptyPrompt",
    "Keep",
    "Load",
    "Piece",
    "PromptTooLong",
    "Remove",
    "Slots",
    "Truncate",
]


class EmptyPrompt(ValueError):
    """A prompt needs at least one token: the first new token is chosen from what follows it."""

    def __init__(self) -> None:
        super().__init__("the prompt has no tokens: give at least one, such as the model's BOS token")


class PromptTooLong(ValueError):
    """Prompt and answer do not fit into the context.

    Attributes:
        prompt: tokens of the prompt.
        wanted: tokens that may be generated.
        cells: tokens that the context holds.
    """

    def __init__(self, prompt: int, wanted: int, cells: int) -> None:
        super().__init__(
            f"the prompt has {prompt} tokens and {wanted} may be generated, which is more than the context of {cells}: "
            "shorten the prompt, lower max_tokens, or load the model with a larger context"
        )
        self.prompt = prompt
        self.wanted = wanted
        self.cells = cells

    def __reduce__(self) -> tuple[type[PromptTooLong], tuple[int, int, int]]:
        return type(self), (self.prompt, self.wanted, self.cells)


class Piece(NamedTuple):
    """Tokens of one job in a batch.

    Attributes:
        job: whose they are.
        seq: its sequence.
        start: position of the first token.
        tokens: token ids, one or more.
        sample: whether the logits of the last token are needed.
    """

    job: int
    seq: int
    start: int
    tokens: Sequence[int]
    sample: bool


class _Job:
    __slots__ = ("alone", "blocked", "job", "prompt", "seq", "tokens", "total")

    def __init__(self, job: int, tokens: array[int], total: int, *, alone: bool) -> None:
        self.job = job
        self.tokens = tokens  # prompt and generated
        self.prompt = len(tokens)  # so many of them are the prompt
        self.total = total  # tokens that it may come to have
        self.alone = alone
        self.blocked = False
        self.seq = -1  # while waiting


class Slots:
    """The jobs of one model, by their ids.

    Args:
        slots: jobs that are live at once, at most.
        cells: of the KV cache; a unified one, where a cell can be in several sequences.
        batch: tokens of one batch, at most; not less than `slots`.
        piece: prompt tokens in a batch, at most, while somebody is generating: it would be held up by more.
        parked: sequence ids beyond `slots`, for cached prefixes; None: as many as `slots`. In all, ids are 0 to
            `slots + parked - 1`.
        share: False: no cached prefixes, and nobody takes a prefix from another.
        shortest: tokens; shorter matches are not used, and waiting for one must gain at least so many.
        stored: tokens of ended jobs that may be kept outside the cache, beside the parked ones.
        rent: tokens that others compute before a parked sequence is moved there.
    """

    def __init__(
        self,
        *,
        slots: int,
        cells: int,
        batch: int,
        piece: int = 128,
        parked: int | None = None,
        share: bool = True,
        shortest: int = 16,
        stored: int = 0,
        rent: int = 64,
    ) -> None:
        parked = slots if parked is None else parked
        for name, value, least in (
            ("slots", slots, 1),
            ("cells", cells, 1),
            ("batch", batch, slots),
            ("piece", piece, 1),
            ("parked", parked, 0),
            ("shortest", shortest, 1),
            ("stored", stored, 0),
            ("rent", rent, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, not {value}")
        self._slots = slots
        self._total_cells = cells
        self._batch = batch
        self._piece = piece
        self._sequences = Sequences(
            ids=slots + parked, cells=cells, share=share, shortest=shortest, stored=stored, rent=rent
        )
        self._waiting: deque[_Job] = deque()
        self._live: dict[int, _Job] = {}  # in the order of admission
        self._jobs: dict[int, _Job] = {}  # waiting and live
        self._full = False  # the first in line did not fit, and nobody has left since

    @property
    def live(self) -> int:
        """Jobs that have a sequence."""
        return len(self._live)

    @property
    def waiting(self) -> int:
        """Jobs that have none yet."""
        return len(self._waiting)

    @property
    def parked(self) -> int:
        """Sequences that are kept for others."""
        return self._sequences.parked

    @property
    def used(self) -> int:
        """Distinct cells in use."""
        return self._sequences.used

    @property
    def planned(self) -> int:
        """Distinct cells in use, or promised to live jobs: never more than there are."""
        return self._sequences.planned

    @property
    def cached(self) -> int:
        """Cells that parked sequences pay for."""
        return self._sequences.cached

    @property
    def stored(self) -> int:
        """Tokens that are kept outside the cache."""
        return self._sequences.stored

    def submit(self, job: int, tokens: Iterable[int], max_tokens: int, *, alone: bool = False) -> None:
        """Put a new job at the end of the line. With `alone` it runs when no other is live, and none beside it.

        Raises:
            EmptyPrompt: `tokens` is empty.
            PromptTooLong: it could never fit.
        """
        if job in self._jobs:
            raise ValueError(f"job must be a new one, and {job} is here already")
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be 1 or more, not {max_tokens}")
        prompt = array("i", tokens)
        if not prompt:
            raise EmptyPrompt
        if len(prompt) + max_tokens > self._total_cells:
            raise PromptTooLong(len(prompt), max_tokens, self._total_cells)
        self._jobs[job] = made = _Job(job, prompt, len(prompt) + max_tokens, alone=alone)
        self._waiting.append(made)

    def admit(self) -> list[Command]:
        """Give sequences to the first in line, as long as they fit.

        A `Load` is the last command, so that nobody takes from it what may not come: call it again, until it is empty.
        """
        commands: list[Command] = []
        while self._waiting and not self._full and len(self._live) < self._slots:
            first = self._waiting[0]
            if self._live and (first.alone or any(job.alone for job in self._live.values())):
                break
            placed = self._sequences.place(first.tokens, first.total)
            if placed is None:
                self._full = True
                break
            first.seq, due = placed
            commands += due
            self._live[first.job] = self._waiting.popleft()
            if due and isinstance(due[-1], Load):
                break
        return commands

    def not_loaded(self, seq: int) -> list[Command]:
        """What a `Load` should have brought could not be had: the sequence computes all of its prompt."""
        return self._sequences.not_loaded(seq)

    def plan(self) -> list[Piece]:
        """The next batch; empty if nobody has anything to compute. The same again, until something has changed.

        First a token of each generating job, then prompts in the order of admission. A blocked job's prompt goes on,
        but for its last token: others may wait for what they share with it.
        """
        sequences = self._sequences
        pieces: list[Piece] = []
        prompts: list[tuple[_Job, int]] = []
        for job in self._live.values():
            computed = sequences.computed(job.seq)
            if computed < job.prompt:
                prompts.append((job, computed))
            elif computed < len(job.tokens) and not job.blocked:
                pieces.append(Piece(job.job, job.seq, computed, (job.tokens[computed],), True))
        if prompts:
            room = self._batch - len(pieces)
            if pieces:
                room = min(room, self._piece)
            for job, computed in prompts:
                end = min(computed + room, job.prompt - 1 if job.blocked else job.prompt)
                if end > computed and not sequences.follows(job.seq):
                    tokens = job.tokens[computed:end]
                    pieces.append(Piece(job.job, job.seq, computed, tokens, end == job.prompt))
                    room -= end - computed
        return pieces

    def advance(self, pieces: Iterable[Piece]) -> list[Command]:
        """These pieces, of the last plan or the first parts of them, have been decoded. Jobs that have gone since are
        passed over.
        """
        for piece in pieces:
            job = self._live.get(piece.job)
            if job is None or job.seq != piece.seq:
                continue
            computed = self._sequences.computed(job.seq)
            if piece.start != computed or computed + len(piece.tokens) > len(job.tokens):
                raise ValueError(
                    f"pieces: job {job.job} has computed {computed} tokens, which is not where {piece} goes on"
                )
            self._sequences.advance(job.seq, len(piece.tokens))
        return self._sequences.follow() + self._sequences.move_out(idle=False)

    def sampled(self, job: int, token: int) -> None:
        """The job goes on with this token, which has been chosen after all that it had."""
        live = self._live[job]
        if self._sequences.computed(live.seq) < len(live.tokens):
            raise ValueError(f"job {job} has tokens to compute before the next one can be chosen")
        if len(live.tokens) == live.total:
            raise ValueError(f"job {job} has all its max_tokens: finish it")
        live.tokens.append(token)

    def block(self, job: int) -> None:
        """Its reader is slow: it keeps its cells and gets no new tokens. Nothing happens to a job that is not here."""
        if job in self._jobs:
            self._jobs[job].blocked = True

    def unblock(self, job: int) -> None:
        """Its reader has caught up."""
        if job in self._jobs:
            self._jobs[job].blocked = False

    def finish(self, job: int, *, keep: bool = True) -> list[Command]:
        """The job has ended, live or waiting. With `keep` what it has computed is parked for others.

        Not to be kept: what the library may not have computed rightly.
        """
        ended = self._jobs.pop(job)
        if job not in self._live:
            self._waiting.remove(ended)
            self._full = False
            return []
        return self._leave(ended, keep=keep)

    def failed(self, job: int) -> list[Command]:
        """The job has ended with an error: nothing is kept, but what others have taken from it."""
        return self.finish(job, keep=False)

    def cancel(self, job: int) -> list[Command]:
        """The job's caller has left, at any moment. Nothing happens to a job that is not here."""
        return self.finish(job) if job in self._jobs else []

    def largest(self) -> int | None:
        """The live job with the most cells on its account; None if none is live."""
        return max(self._live, key=lambda job: self._sequences.own(self._live[job].seq), default=None)

    def requeue(self, job: int) -> list[Command]:
        """Back to the front of the line, for want of cells. What it has generated is then a part of its prompt."""
        live = self._live[job]
        if len(live.tokens) == live.total:
            raise ValueError(f"job {job} has all its max_tokens: finish it")
        commands = self._leave(live, keep=False)
        live.prompt, live.seq = len(live.tokens), -1
        self._waiting.appendleft(live)
        return commands

    def evict(self) -> list[Command]:
        """Remove the parked sequence that was least recently used, if there is one: the first thing to do if the
        library finds no cells.
        """
        return self._sequences.evict()

    def tidy(self) -> list[Command]:
        """Nobody is live: what may be done now that would hold somebody up later. Empty if there is nothing left."""
        return [] if self._live else self._sequences.move_out(idle=True)

    def _leave(self, job: _Job, *, keep: bool) -> list[Command]:
        del self._live[job.job]
        self._full = False
        if not keep:
            return self._sequences.remove(job.seq)
        return self._sequences.park(job.seq, job.tokens[: self._sequences.computed(job.seq)])
