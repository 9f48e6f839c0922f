"""Embeds texts with an ONNX model: many callers' texts meet in passes, which run in lanes.

::

    submit ─▶ tokenise ─▶ Batcher ─▶ pass ─▶ lane 1 ─┐
                             └─────▶ pass ─▶ lane 2 ─┴─▶ vectors of each request ─▶ answer, when it has them all

A lane is a thread that runs one pass at a time on the one session. Two lanes of one processor thread each do more than
one lane of two: no operator waits for the slower half of itself. A step starts passes in free lanes, and ends when one
is through.

Request: a msgpack list of strings. Answer: ``[rows, dim]``, and the vectors as little-endian float32, row after row.
Options: see `runners.worker.engines.model_folder.Options`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from runners.protocol.messages import ErrorInfo
from runners.worker.engines.base import (
    CANCELLED,
    EXPIRED,
    EngineError,
    Job,
    Replies,
    Running,
    StepEngine,
    exception_info,
)
from runners.worker.engines.batching import Batcher, Pass, Text
from runners.worker.engines.model_folder import all_files, find, parse_options
from runners.worker.engines.onnx_model import OnnxModel
from runners.worker.engines.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Result = list[tuple[list[Text], NDArray[np.float32] | Exception]]

#: What starting a pass costs, in tokens of the same time: measured 8 to 11 with MiniLM, on one thread and on two.
_OVERHEAD = 10
#: Passes that may end while one still runs. After that nothing new starts, and the board shows that a lane is stuck.
_AHEAD = 64
_decode_texts = msgspec.msgpack.Decoder(list[str]).decode


class _Request:
    """A job and its vectors so far."""

    __slots__ = ("error", "flying", "ids", "job", "left", "vectors")

    def __init__(self, job: Job, ids: list[list[int]], vectors: NDArray[np.float32]) -> None:
        self.job = job
        self.ids = ids
        self.vectors = vectors
        self.left = len(ids)
        self.flying = 0  # passes that run with texts of this request
        self.error: ErrorInfo | None = None


class _Flight:
    """A pass that runs."""

    __slots__ = ("jobs", "overtaken", "work")

    def __init__(self, work: Pass) -> None:
        self.work = work
        self.jobs = list(dict.fromkeys(text.job for text in work.texts))
        self.overtaken = 0


class OnnxEngine(StepEngine):
    """One embedding model.

    Raises:
        EngineError: ``bad_option``.
    """

    capacity = 64

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = parse_options(options)
        self._requests: dict[int, _Request] = {}
        self._flights: dict[Future[Result], _Flight] = {}
        self._tokens: Tokens
        self._model: OnnxModel
        self._batcher: Batcher
        self._pool: ThreadPoolExecutor

    def files(self) -> list[Path]:
        """The model with its external data, its tokenizer, and what their folder says of them."""
        return all_files(find(self._options))

    def load(self) -> dict[str, Any]:
        """Load the model, and run the largest pass in every lane."""
        options = self._options
        files = find(options)
        # numpy only adds up here: its threads would cost memory and do nothing.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        self._tokens = Tokens(files)
        on_cpu = options.providers is None or options.providers == ["CPUExecutionProvider"]
        threads = options.threads or _processors()
        self._lanes = options.lanes or (2 if on_cpu and threads > 1 else 1)
        # The pool's threads serve all lanes, and each lane's own thread works too.
        self._model = OnnxModel(files, options, threads=max(1, threads - self._lanes + 1), pad_id=self._tokens.pad_id)
        budget = max(options.token_budget, files.max_tokens)
        # On other providers starting a pass weighs more; an eighth of the largest pass is a guess.
        self._batcher = Batcher(budget=budget, overhead=_OVERHEAD if on_cpu else max(_OVERHEAD, budget // 8))
        self._pool = ThreadPoolExecutor(self._lanes, thread_name_prefix="lane")
        dim = self._warm(files.max_tokens, budget)
        import numpy as np  # noqa: PLC0415 - an extra

        self._np = np
        self._dim = dim
        return {
            "dim": dim,
            "max_tokens": files.max_tokens,
            "threads": threads,
            "lanes": self._lanes,
            "token_budget": budget,
            "pooling": self._model.pooling,
            "normalize": self._model.normalize,
            "providers": self._model.providers,
            "model": str(files.model),
            "tokenizer": str(files.tokenizer),
        }

    def _warm(self, longest: int, budget: int) -> int:
        """Run the costliest pass in all lanes at once. Returns the vectors' dimension."""
        row = (self._tokens.encode(["a"])[0] * longest)[:longest]
        runs = [self._pool.submit(self._model.embed, [row] * (budget // longest)) for _ in range(self._lanes)]
        try:
            shapes = [run.result().shape for run in runs]
        except Exception as error:
            message = (
                f"{self._options.path!r} loads, but fails on a text of {longest} tokens: {error}. If its limit is"
                " lower, give max_tokens; if not, the tokenizer may be of another model"
            )
            raise EngineError("model_unsupported", message) from error
        if len(shapes[0]) != 2 or shapes[0][0] != budget // longest:
            message = f"{self._options.path!r} gives vectors of shape {shapes[0]} for {budget // longest} texts"
            raise EngineError("model_unsupported", message)
        return int(shapes[0][1])

    def submit(self, job: Job) -> None:
        """Tokenise, and queue the texts.

        Raises:
            EngineError: ``input``.
        """
        try:
            texts = _decode_texts(job.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineError("input", f"a list of strings in valid UTF-8 is needed: {error}") from None
        try:
            ids = self._tokens.encode(texts)
        except Exception as error:
            raise EngineError("input", f"the texts cannot be tokenised: {error}") from error
        self._requests[job.id] = _Request(job, ids, self._np.empty((len(ids), self._dim), dtype="<f4"))
        self._batcher.add(job.id, [max(1, len(row)) for row in ids], alone=job.alone)

    def cancel(self, job_id: int, replies: Replies) -> None:
        """Drop what waits of a job. What runs goes on; a job of which nothing is left to start is answered as usual."""
        self._drop(job_id, CANCELLED, replies)

    def step(self, replies: Replies, running: Running) -> bool:
        """Start passes where lanes are free, wait until one is through, and answer the requests that it completes."""
        worked = self._settle_without_work(replies)
        self._start()
        if not self._flights:
            return worked
        running.begin(self._flying())
        done, _ = wait(self._flights, return_when=FIRST_COMPLETED)
        for future in done:
            self._land(future, replies)
        running.end()
        if self._flights:
            running.begin(self._flying())
        return True

    def _flying(self) -> list[int]:
        return list(dict.fromkeys(job for flight in self._flights.values() for job in flight.jobs))

    def _start(self) -> None:
        while (free := self._lanes - len(self._flights)) and len(self._batcher):
            busy = bool(self._flights)
            if busy and (
                self._batcher.next_is_alone()
                or any(flight.work.alone or flight.overtaken >= _AHEAD for flight in self._flights.values())
            ):
                return
            # Little work is spread over the free lanes instead of filling one.
            work = self._batcher.take(-(-self._batcher.tokens // free) if free > 1 else None)
            assert work is not None  # noqa: S101 - something waits
            flight = _Flight(work)
            for job in flight.jobs:
                self._requests[job].flying += 1
            self._flights[self._pool.submit(self._run, work.texts)] = flight

    def _run(self, texts: list[Text]) -> Result:
        """In a lane: one pass. If it fails, each request by itself, so that only the culprit gets the error."""
        try:
            return [(texts, self._model.embed(self._ids(texts)))]
        except Exception as error:
            jobs = dict.fromkeys(text.job for text in texts)
            if len(jobs) == 1:
                return [(texts, error)]
        return [part for job in jobs for part in self._run([text for text in texts if text.job == job])]

    def _ids(self, texts: list[Text]) -> Sequence[list[int]]:
        return [self._requests[text.job].ids[text.place] for text in texts]

    def _land(self, future: Future[Result], replies: Replies) -> None:
        flight = self._flights.pop(future)
        for other in self._flights.values():
            other.overtaken += 1
        for job in flight.jobs:
            self._requests[job].flying -= 1
        for texts, result in future.result():
            if isinstance(result, Exception):
                self._requests[texts[0].job].error = exception_info(result)
                self._batcher.drop(texts[0].job)
                continue
            if result.shape != (len(texts), self._dim):  # of a model that does what it did not when it was tried
                error = EngineError("decode", f"the model gave {result.shape} for {len(texts)} texts")
                for job in {text.job for text in texts}:
                    self._requests[job].error = error.info()
                    self._batcher.drop(job)
                continue
            for text, vector in zip(texts, result, strict=True):
                request = self._requests[text.job]
                request.vectors[text.place] = vector
                request.left -= 1
        for job in flight.jobs:
            self._settle(job, replies)

    def _settle(self, job_id: int, replies: Replies) -> None:
        """Answer a request if nothing of it runs, and all is known."""
        request = self._requests[job_id]
        if request.flying or (request.left and request.error is None):
            return
        del self._requests[job_id]
        if request.error is not None:
            replies.failed(request.job, request.error)
            return
        try:
            data = request.vectors.tobytes()
        except MemoryError as error:
            replies.failed(request.job, exception_info(error))
            return
        replies.done(request.job, msgspec.msgpack.encode(request.vectors.shape), data)

    def _drop(self, job_id: int, reason: ErrorInfo, replies: Replies) -> None:
        if self._batcher.drop(job_id):
            self._requests[job_id].error = reason
            self._settle(job_id, replies)

    def _settle_without_work(self, replies: Replies) -> bool:
        """Requests of no texts, and those that nobody waits for any more."""
        before = len(self._requests)
        for job_id, request in list(self._requests.items()):
            if not request.ids:
                self._settle(job_id, replies)
            elif request.job.expired:
                self._drop(job_id, EXPIRED, replies)
        return len(self._requests) < before


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
