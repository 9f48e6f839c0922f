"""Generates text for many callers at once: each step computes one batch, with the next token of everybody who generates
and a part of somebody's prompt.

::

    submit ─▶ take up: template, tokens ─▶ Slots.submit ─▶ admit ─▶ plan ─▶ decode ─▶ sample ─▶ text ─▶ items, answer
                                             (waiting)     copy        ▲                  │
                                                           prefixes    └──── next token ──┘

What the library cannot compute is the failure of the sequence that it was for, and of no other: after an error of the
whole batch its pieces are computed one by one.

Request: `runners.protocol.generation.Ask` as msgpack. Answer: a `Completion`; a stream's items are `Piece`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from runners.protocol.generation import Ask, Chat, Complete, Embed, Sampling, Tokenize
from runners.protocol.messages import ErrorInfo
from runners.worker.engines.base import CANCELLED, EngineError, Job, Replies, Running, StepEngine, error_info
from runners.worker.engines.llama.cache import Saved
from runners.worker.engines.llama.loading import Options, load, parse_options, parts_of, stored_tokens
from runners.worker.engines.llama.logs import Log
from runners.worker.engines.llama.model import Model
from runners.worker.engines.llama.native import Context, DecodeFailed
from runners.worker.engines.llama.pooled import Pooled
from runners.worker.engines.llama.prompts import Prompts
from runners.worker.engines.llama.requests import Generation, Request
from runners.worker.engines.llama.sampler import Sampler, logprob
from runners.worker.engines.llama.slots import (
    Command,
    Copy,
    Discard,
    Keep,
    Load,
    Piece,
    PromptTooLong,
    Remove,
    Slots,
    Truncate,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

_decode_ask = msgspec.msgpack.Decoder(Ask).decode
_encode = msgspec.msgpack.Encoder().encode
#: Tokens that are generated when nobody says how many.
_MAX_TOKENS = 512
#: Requests whose prompts are made ready in one step: what generates should not wait long for that.
_TAKE_UP = 8
_NO_PLACE = 1


class LlamaEngine(StepEngine):
    """One GGUF model.

    Raises:
        EngineError: ``bad_option``.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options: Options = parse_options(options)
        # A few more than can run at once: the next ones' prompts are here when a slot gets free.
        self.capacity = self._options.slots + max(2, self._options.slots // 4)
        self._new: deque[Job] = deque()
        self._requests: dict[int, Request] = {}
        self._sending: list[Request] = []  # whose readers have taken something
        self._generations: dict[int, Generation] = {}
        self._numbers = itertools.count(1)
        self._saved: dict[int, Saved] = {}  # by the keys of the store
        self._model: Model
        self._context: Context
        self._slots: Slots
        self._prompts: Prompts
        self._pooled: Pooled

    def files(self) -> list[Path]:
        """The GGUF file, or all parts of it."""
        return parts_of(Path(self._options.path))

    def load(self) -> dict[str, Any]:
        """Map the model, make the KV cache, compute a token."""
        options = self._options
        log = Log()
        model, context = load(options, log)
        self._model, self._context = model, context
        self._prompts = Prompts(model, options.template)
        self._pooled = Pooled(model, options, log)
        stored = stored_tokens(options, model)
        self._slots = Slots(
            slots=options.slots,
            cells=context.cells,
            batch=context.batch,
            piece=min(options.piece, context.batch),
            parked=options.sequences - options.slots,
            share=not model.recurrent,
            stored=stored,
        )
        context.decode([(0, 0, [max(0, model.begin_token)], True)])
        if not np.isfinite(context.logits(1)).any():
            raise EngineError("model_invalid", f"{options.path!r} is damaged: what it computes are no numbers")
        context.cache.remove(0)
        return {
            "model": options.path,
            "architecture": model.architecture,
            "description": model.description,
            "slots": options.slots,
            "context": context.cells,
            "trained_context": model.trained_context,
            "batch": context.batch,
            "dim": model.n_embd,
            "vocabulary": model.n_vocab,
            "kv_bytes": model.kv_bytes(context.cells, options.kv_type, options.kv_type),
            "kv_bytes_reported": context.reported_kv_bytes,
            "prefix_tokens": stored,
            "weights": model.bytes,
            "chat_template": self._prompts.has_template,
        }

    # What comes

    def submit(self, job: Job) -> None:
        """Queue it."""
        self._new.append(job)

    def cancel(self, job_id: int, replies: Replies) -> None:
        """Drop it, also while it generates: its sequence is free at once."""
        for job in self._new:
            if job.id == job_id:
                self._new.remove(job)
                replies.failed(job, CANCELLED)
                return
        request = self._requests.get(job_id)
        if request is not None:
            self._drop(request, keep=True)
            replies.failed(request.job, CANCELLED)
        else:
            self._pooled.cancel(job_id, replies)

    def more(self, job_id: int, count: int) -> None:
        """The reader has taken items: go on."""
        request = self._requests.get(job_id)
        if request is not None:
            request.credit += count
            self._sending.append(request)

    # A step

    def step(self, replies: Replies, running: Running) -> bool:
        """Take up what is new, then compute one batch."""
        worked = self._send(replies)
        for _ in range(min(len(self._new), _TAKE_UP)):
            worked = True
            job = self._new.popleft()
            running.begin([job.id])
            self._take_up(job, replies)
            running.end()
        if self._pooled.waiting:
            worked = True
            running.begin(self._pooled.next_ids())
            self._pooled.step(replies)
            running.end()
        while commands := self._slots.admit():
            self._run(commands)
        pieces = self._slots.plan()
        if not pieces:
            commands = self._slots.tidy()
            self._run(commands)
            return worked or bool(commands) or (not self._slots.live and self._context.cache.tidy())
        running.begin(list({self._generations[piece.job].request.job.id: None for piece in pieces}))
        self._compute(pieces, replies)
        running.end()
        return True

    def _send(self, replies: Replies) -> bool:
        """Readers have taken items: send on what has gathered."""
        requests, self._sending = self._sending, []
        for request in requests:
            if self._requests.get(request.job.id) is request:
                self._after(request, replies)
        return bool(requests)

    # Taken up

    def _take_up(self, job: Job, replies: Replies) -> None:
        try:
            ask = _decode_ask(job.body)
            if isinstance(ask, Embed):
                self._pooled.submit(job, ask.texts)
            elif isinstance(ask, Tokenize):
                tokens = self._prompts.tokens(ask)
                replies.done(job, _encode(len(tokens) if ask.count else tokens))
            else:
                self._begin(job, ask)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            replies.failed(job, ErrorInfo(kind="input", message=f"the request cannot be read: {type(error).__name__}"))
        except Exception as error:  # memory that there is not, for one: this request's error, and not the others'
            replies.failed(job, error_info(error))

    def _begin(self, job: Job, ask: Complete | Chat) -> None:
        sampling = ask.sampling
        tokens = self._prompts.prompt(ask)
        left = self._context.cells - len(tokens)
        most = sampling.max_tokens if sampling.max_tokens is not None else max(1, min(_MAX_TOKENS, left))
        given = ask.tools if isinstance(ask, Chat) else None
        tools = frozenset(self._prompts.tool_names(given or []))
        request = Request(job, sampling, prompt_tokens=len(tokens), tool_names=tools)
        grammar = self._prompts.grammar(sampling)
        try:
            for choice in range(sampling.n):
                self._add(request, tokens, choice, most, grammar)
        except PromptTooLong as error:
            self._drop(request, keep=False)
            raise _too_long(len(tokens), sampling, most, self._context.cells) from error
        except Exception:
            self._drop(request, keep=False)
            raise
        self._requests[job.id] = request

    def _add(self, request: Request, tokens: list[int], choice: int, most: int, grammar: str | None) -> None:
        number = next(self._numbers)
        sampler = Sampler(self._model, request.sampling, choice=choice, grammar=grammar, context=self._context.cells)
        try:
            self._slots.submit(number, tokens, most, alone=request.job.alone)
        except Exception:
            sampler.free()
            raise
        sampler.seen(tokens)
        generation = Generation(number, request, choice, sampler, most)
        request.running.append(generation)
        self._generations[number] = generation

    # Computed

    def _run(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Copy):
                self._context.cache.copy(command.source, command.seq, command.length)
            elif isinstance(command, Remove):
                self._context.cache.remove(command.seq)
            elif isinstance(command, Truncate):
                self._context.cache.truncate(command.seq, command.length)
            elif isinstance(command, Keep):
                saved = self._context.cache.save(command.seq, command.start, command.end)
                if saved is not None:
                    self._saved[command.key] = saved
            elif isinstance(command, Load):
                self._load_prefix(command)
            elif isinstance(command, Discard):
                self._saved.pop(command.key, None)

    def _load_prefix(self, command: Load) -> None:
        parts = [(self._saved.get(part.key), part.start, part.end) for part in command.parts]
        if not self._context.cache.restore(command.seq, parts):
            self._run(self._slots.not_loaded(command.seq))

    def _compute(self, pieces: Sequence[Piece], replies: Replies) -> None:
        try:
            self._context.decode([(piece.seq, piece.start, piece.tokens, piece.sample) for piece in pieces])
        except DecodeFailed as failure:
            self._recover(pieces, failure, replies)
            return
        for piece in pieces:
            self._generations[piece.job].note_start(piece.start)
        self._run(self._slots.advance(pieces))
        self._sample([piece for piece in pieces if piece.sample], pieces, replies)

    def _recover(self, pieces: Sequence[Piece], failure: DecodeFailed, replies: Replies) -> None:
        """What went wrong for all of them may go well for fewer; what fails alone is that sequence's failure."""
        if failure.code == _NO_PLACE and self._slots.parked:
            while self._slots.parked:
                self._run(self._slots.evict())
            self._compute(pieces, replies)
            return
        if failure.code != _NO_PLACE:
            # A part may have been computed. A memory that cannot take it back (a recurrent one) has lost that sequence.
            lost = [piece for piece in pieces if not self._context.cache.truncate(piece.seq, piece.start)]
            for piece in lost:
                self._fail(piece, failure, replies)
            pieces = [piece for piece in pieces if piece.job in self._generations]
            if not pieces:
                return
            if lost:
                self._compute(pieces, replies)
                return
        if len(pieces) > 1:
            middle = len(pieces) // 2 if failure.code == _NO_PLACE else 1
            for part in (pieces[:middle], pieces[middle:]):
                still = [piece for piece in part if piece.job in self._generations]
                if still:
                    self._compute(still, replies)
            return
        if failure.code == _NO_PLACE and (commands := self._slots.evict()):
            self._run(commands)  # it is planned again in the next step
            return
        self._fail(pieces[0], failure, replies)

    def _fail(self, piece: Piece, failure: DecodeFailed, replies: Replies) -> None:
        generation = self._generations.get(piece.job)
        if generation is None:  # with another answer of its request
            return
        error = EngineError("decode", f"the library could not compute this request (llama_decode: {failure.code})")
        self._drop(generation.request, keep=False)
        replies.failed(generation.request.job, error.info())

    def _sample(self, wanted: Sequence[Piece], pieces: Sequence[Piece], replies: Replies) -> None:
        if not wanted:
            return
        logits = self._context.logits(len(wanted))
        at = -1
        rows: dict[int, int] = {}
        for piece in pieces:
            at += len(piece.tokens)
            rows[piece.job] = at
        requests: dict[int, Request] = {}
        for number, piece in enumerate(wanted):
            generation = self._generations.get(piece.job)
            if generation is None:  # another answer of its request has failed just now
                continue
            request = generation.request
            try:
                self._take(generation, rows[piece.job], logits[number])
            except Exception as error:
                self._drop(request, keep=True)
                requests.pop(request.job.id, None)
                replies.failed(request.job, error_info(error))
                continue
            requests[request.job.id] = request
        for request in requests.values():
            self._after(request, replies)

    def _take(self, generation: Generation, row: int, logits: NDArray[np.float32]) -> None:
        """Choose the next token of a sequence, and end the sequence if that is the last one."""
        request = generation.request
        token = generation.sampler.choose(self._context.pointer, row, logits)
        ends = self._model.ends(token)
        if request.sampling.logprobs is not None and not ends:
            generation.note(logprob(self._model, logits, token, request.sampling.logprobs))
        reason = generation.take(self._model.piece(token, special=bool(request.tool_names)), ends=ends)
        if reason is None:
            self._slots.sampled(generation.number, token)
        else:
            generation.finish(reason)
            self._end(generation, keep=True)

    def _after(self, request: Request, replies: Replies) -> None:
        """Something was generated, or its reader has taken something."""
        try:
            request.send(replies)
            if request.complete:
                request.answer(replies)
                del self._requests[request.job.id]
                return
        except Exception as error:  # it cannot be sent: this request's error, and not the others'
            self._drop(request, keep=True)
            replies.failed(request.job, error_info(error))
            return
        for generation in request.running:
            if request.held_up:
                self._slots.block(generation.number)
            else:
                self._slots.unblock(generation.number)

    # Ended

    def _end(self, generation: Generation, *, keep: bool) -> None:
        generation.request.running.remove(generation)
        del self._generations[generation.number]
        self._run(self._slots.finish(generation.number, keep=keep))

    def _drop(self, request: Request, *, keep: bool) -> None:
        self._requests.pop(request.job.id, None)
        for generation in tuple(request.running):
            generation.sampler.free()
            self._end(generation, keep=keep)


def _too_long(prompt: int, sampling: Sampling, most: int, cells: int) -> EngineError:
    asked = f"and max_tokens={most:,}" if sampling.max_tokens is not None else "and at least 1 token to generate"
    return EngineError(
        "prompt_too_long",
        f"the prompt is {prompt:,} tokens, {asked}; the context has {cells:,}: shorten one of them, or load the model "
        f"with context={prompt + most} or more",
        prompt=prompt,
        wanted=prompt + most,
        context=cells,
    )
