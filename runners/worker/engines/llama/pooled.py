"""Embeddings from a text generation model: the mean over a text's last hidden states, of length 1.

They are computed on a second, small context, which is made when the first text comes: who never embeds does not pay for
it. Texts of many callers meet in one pass, which is one step; generation goes on between passes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from runners.worker.engines.base import CANCELLED, EngineError, Job, Replies, error_info
from runners.worker.engines.llama.logs import Log
from runners.worker.engines.llama.model import Model
from runners.worker.engines.llama.native import Context, DecodeFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runners.worker.engines.llama.loading import Options

_SEQUENCES = 16
#: Tokens of one pass, at least: a text must fit into one.
_LONGEST = 512
_MOST_TEXTS = 10_000
_encode = msgspec.msgpack.Encoder().encode


class _Work:
    """A job and its vectors so far."""

    def __init__(self, job: Job, texts: list[list[int]], dim: int) -> None:
        self.job = job
        self.texts = texts
        self.next = 0
        self.vectors: NDArray[np.float32] = np.zeros((len(texts), dim), np.float32)


class Pooled:
    """The embedding side of one model."""

    def __init__(self, model: Model, options: Options, log: Log) -> None:
        self._model = model
        self._options = options
        self._log = log
        self._queue: deque[_Work] = deque()
        self._context: Context | None = None
        self.longest = max(_LONGEST, options.step)

    @property
    def waiting(self) -> bool:
        """Whether there is something to do."""
        return bool(self._queue)

    def submit(self, job: Job, texts: list[str]) -> None:
        """Queue texts.

        Raises:
            EngineError: ``input``, ``prompt_too_long``: one is empty or too long; the message says which.
        """
        if not 1 <= len(texts) <= _MOST_TEXTS:
            raise EngineError("input", f"texts: takes 1 to {_MOST_TEXTS:,} texts, not {len(texts):,}")
        rows = []
        for number, text in enumerate(texts):
            tokens = self._model.tokenize(text, special=False, begin=self._model.adds_begin)
            if not tokens:
                raise EngineError("input", f"texts[{number}] is empty")
            if len(tokens) > self.longest:
                raise EngineError(
                    "prompt_too_long",
                    f"texts[{number}] is {len(tokens):,} tokens; at most {self.longest:,} (or batch=) are embedded",
                    prompt=len(tokens),
                    wanted=len(tokens),
                    context=self.longest,
                )
            rows.append(tokens)
        self._queue.append(_Work(job, rows, self._model.n_embd))

    def cancel(self, job_id: int, replies: Replies) -> bool:
        """Drop a job; whether it was here."""
        for work in self._queue:
            if work.job.id == job_id:
                self._queue.remove(work)
                replies.failed(work.job, CANCELLED)
                return True
        return False

    def next_ids(self) -> list[int]:
        """The jobs of the next pass."""
        return list(dict.fromkeys(work.job.id for work, _ in self._pass()))

    def _pass(self) -> list[tuple[_Work, int]]:
        found: list[tuple[_Work, int]] = []
        left = self.longest
        for work in self._queue:
            if found and work.job.alone != found[0][0].job.alone:
                break
            for number in range(work.next, len(work.texts)):
                left -= len(work.texts[number])
                if left < 0 or len(found) == _SEQUENCES:
                    return found
                found.append((work, number))
            if work.job.alone:
                break
        return found

    def step(self, replies: Replies) -> None:
        """Compute a pass and answer what is complete."""
        texts = self._pass()
        try:
            vectors = self._made().decode_pooled([(seq, work.texts[n]) for seq, (work, n) in enumerate(texts)])
        except Exception as error:
            failure = EngineError("decode", str(error)) if isinstance(error, DecodeFailed) else error
            for work in dict.fromkeys(work for work, _ in texts):
                self._queue.remove(work)
                replies.failed(work.job, error_info(failure))
            return
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.maximum(lengths, np.finfo(np.float32).tiny)
        for (work, number), vector in zip(texts, vectors, strict=True):
            work.vectors[number] = vector
            work.next = number + 1
        while self._queue and self._queue[0].next == len(self._queue[0].texts):
            work = self._queue.popleft()
            try:
                data = work.vectors.tobytes()
            except MemoryError as error:
                replies.failed(work.job, error_info(error))
                continue
            replies.done(work.job, _encode(work.vectors.shape), data)

    def _made(self) -> Context:
        if self._context is None:
            options = self._options
            self._context = Context(
                self._model,
                cells=self.longest,
                sequences=_SEQUENCES,
                batch=self.longest,
                threads=options.used_threads,
                type_k="f16",
                type_v="f16",
                flash_attention=False,
                unified=True,
                log=self._log,
                pooled=True,
            )
        return self._context
