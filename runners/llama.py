"""`LlamaRunner`: text generation for many callers at once, with llama.cpp in a supervised subprocess."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

import msgspec

from guardrails.core.errors import MissingExtra
from guardrails.core.sizes import parse_size
from runners.errors import InvalidInput, ModelNotFound, RunnerClosed
from runners.protocol.frames import MAX_FRAME
from runners.protocol.generation import Ask, Completion, Embed, Tokenize
from runners.protocol.generation_check import check_messages
from runners.protocol.parts import small_of
from runners.runner import Runner
from runners.spec import Faults, Resources
from runners.supervision.autoscale import Autoscale, as_autoscale
from runners.supervision.report import Counted
from runners.supervision.request import Answer
from runners.supervision.restart import RestartPolicy
from runners.text_pieces import TextPieces
from runners.text_requests import SamplingOptions, as_invalid_input, as_texts, beginning, chat, complete, operation_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Pieces of a stream that may be on the way to its reader: at some twenty a second, a few seconds of them.
_WINDOW = 64
#: OpenMP's threads wait for each other by spinning, for long: as soon as something else wants a core, a step takes ten
#: times as long. A thousand turns are some microseconds, and cost nothing where the cores are free.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
_encode = msgspec.msgpack.Encoder().encode
_completion = msgspec.msgpack.Decoder(Completion).decode


class LlamaRunner(Runner):
    """Text generation with a GGUF model on llama-cpp-python, for many callers at once.

    Requests share each step of the model (continuous batching), and the beginning of their prompts where that is the
    same: a system prompt is computed once for all.

    Args:
        path: the GGUF file; of a split model the first part.
        slots: requests of one worker that generate at the same time; the next ones wait.
        context: tokens that its KV cache holds, of all its requests together. A request is taken up when its prompt and
            `max_tokens` fit. The memory for it is taken at load.
        kv_type: of the KV cache's cells: ``"f16"``, ``"q8_0"`` (half the memory, 7 to 10 % slower), ``"q4_0"`` ...
        batch: tokens of one step of the model, at most. By default 63 on a CPU, where more are not faster, and
            llama.cpp's attention works row by row, so that a text depends less on what else is in the batch; 512 with
            a GPU.
        parked: ended requests whose prompts and answers stay in the KV cache for others at first; by default a quarter
            as many as slots.
        prefix_memory: bytes, or a size such as ``"256MiB"``, that they may take outside of it afterwards, where they
            slow nobody down. By default half of what the cache takes, or less where `memory` leaves less; it is taken
            as it is needed.
        threads: of one worker; by default all cores, or its share of them where there are several workers.
        gpu_layers: layers that a GPU computes, with a llama-cpp-python built for one; -1: all.
        flash_attention: computes attention in less memory and time, and rounds more: the same seed can give another
            text when other requests share the batch. With ``flash_attention=False, kv_type="f32"`` it does not.
        repack: whether weights are copied into the layout that the CPU computes fastest with. By default only where
            there is one worker: the workers of a pool share the file's pages.
        mlock: keeps the weights from being paged out.
        template: a Jinja chat template instead of the file's own.

    The other keywords are those of `Runner`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        memory: str | float | None = None,
        memory_hard: str | float | None = None,
        max_age: float | None = None,
        max_requests: int | None = None,
        slots: int = 16,
        context: int = 4096,
        kv_type: str = "f16",
        batch: int | None = None,
        parked: int | None = None,
        prefix_memory: str | float | None = None,
        threads: int | None = None,
        gpu_layers: int = 0,
        flash_attention: bool = True,
        repack: bool | None = None,
        mlock: bool = False,
        template: str | None = None,
        name: str | None = None,
        workers: int | tuple[int, int] | Autoscale = 1,
        lazy: bool = False,
        idle_unload: float | None = None,
        queue: int = 1024,
        queue_bytes: str | float = 1 << 30,
        timeout: float | None = 300,
        heartbeat: float | None = 60,
        start_timeout: float = 120,
        drain_timeout: float | None = None,
        grace: float = 10,
        environment: Mapping[str, str] | None = None,
        inherit_environment: Iterable[str] | Literal[True] = (),
        restart: RestartPolicy | None = None,
        resources: Resources | None = None,
        publish_status: bool | None = None,
        faults: Faults | None = None,
        python: str | None = None,
    ) -> None:
        for module in ("numpy", "llama_cpp", "jinja2"):
            if importlib.util.find_spec(module) is None:
                raise MissingExtra("LlamaRunner", extra="llama", module=module)
        most = as_autoscale(workers).maximum
        resources = (resources or Resources()).shared_by(most, threads=threads)
        super().__init__(
            name=name or Path(path).stem or "llama",
            engine="llama",
            options={
                "path": os.path.abspath(path),  # noqa: PTH100 - text in, text out
                "slots": slots,
                "context": context,
                "batch": batch,
                "parked": parked,
                # 0 is no size, but says what is meant: none.
                "prefix_memory": parse_size(prefix_memory, "prefix_memory") if prefix_memory else prefix_memory,
                "threads": resources.threads,
                "gpu_layers": gpu_layers,
                "kv_type": kv_type,
                "flash_attention": flash_attention,
                "repack": most == 1 if repack is None else repack,
                "mlock": mlock,
                "template": template,
                "memory": None if memory is None else parse_size(memory, "memory"),
            },
            memory=memory,
            memory_hard=memory_hard,
            max_age=max_age,
            max_requests=max_requests,
            workers=workers,
            lazy=lazy,
            idle_unload=idle_unload,
            queue=queue,
            queue_bytes=queue_bytes,
            timeout=timeout,
            heartbeat=heartbeat,
            start_timeout=start_timeout,
            drain_timeout=drain_timeout,
            grace=grace,
            environment={**_environment(), **(environment or {})},
            inherit_environment=inherit_environment,
            restart=restart,
            resources=resources,
            publish_status=publish_status,
            faults=faults,
            python=python,
        )
        self._path = Path(path)

    async def start(self) -> Self:
        """See `Runner.start`."""
        if not self._path.is_file():
            raise ModelNotFound(f"{self.name}: there is no file {str(self._path)!r}; give the model's .gguf file")
        await super().start()
        return self

    @property
    def info(self) -> dict[str, Any]:
        """What was loaded: ``architecture``, ``description``, ``slots``, ``context``, ``trained_context``,
        ``kv_bytes`` and so on. Known once a worker was up.
        """
        for worker in self._supervisor.workers:
            return dict(worker.info)
        raise RunnerClosed(self.name, reason="not_started", detail="no worker is up to ask")

    # Text

    async def complete(
        self, prompt: str | Sequence[int], *, timeout: float | None = None, **options: Unpack[SamplingOptions]
    ) -> Completion:
        """Go on with a text, or with token ids.

        The keywords are those of `SamplingOptions`. The request is run again if its worker dies.

        Raises:
            InvalidInput: the prompt is empty, the grammar cannot be parsed, or an option is not what it should be; the
                message names it.
            PromptTooLong: prompt and `max_tokens` are more than the context.
            RequestTimeout, QueueFull, RunnerUnavailable, PoisonedRequest: see `runners.errors`.
        """
        return await self._whole(complete(prompt, options), timeout)

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Completion:
        """Answer messages, ``{"role": "user", "content": "..."}`` and the like, through the model's chat template.

        Args:
            messages: the conversation so far.
            tools: functions that the model may ask for, where its template has a place for them; such calls are in
                ``completion.choices[0].tool_calls``.
            template: a Jinja template instead of the runner's.
            template_options: more variables for the template.
            timeout: seconds for all of it, instead of the runner's own.

        Raises:
            InvalidInput, PromptTooLong and others: see `complete`.
        """
        return await self._whole(chat(messages, tools, template, template_options, options), timeout)

    def stream_complete(
        self, prompt: str | Sequence[int], *, timeout: float | None = None, **options: Unpack[SamplingOptions]
    ) -> TextPieces:
        """As `complete`, piece by piece: ``async for text in runner.stream_complete(...)``.

        A reader that is slow stops only its own request. Once a piece was read the request is not run again:

        Raises:
            RunnerCrashed: the worker died after a piece was read; `partial` is the text so far.
        """
        return self._pieces(complete(prompt, options, streams=True), timeout)

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        **options: Unpack[SamplingOptions],
    ) -> TextPieces:
        """As `chat`, piece by piece. See `stream_complete`."""
        return self._pieces(chat(messages, tools, template, template_options, options, streams=True), timeout)

    # Vectors and tokens

    async def embed(self, texts: Sequence[str], *, timeout: float | None = None) -> npt.NDArray[np.float32]:
        """The mean of each text's last hidden states, of length 1: float32, ``(len(texts), dim)``.

        Raises:
            PromptTooLong: a text has more than 512 tokens, or than `batch` if that is more.
            InvalidInput: a text is empty.
        """
        import numpy as np  # noqa: PLC0415 - an extra; see __init__

        texts = as_texts(texts)
        if not texts:
            return np.zeros((0, int(self.info["dim"])), np.float32)
        body, payload = await self._ask_one(
            self._body(Embed(texts)), b"", timeout=timeout, redeliver=True, operation="embeddings"
        )
        shape = msgspec.msgpack.decode(body, type=tuple[int, int])
        return np.frombuffer(small_of(payload), dtype=np.float32).reshape(shape).copy()

    async def tokenize(self, text: str, *, special: bool = False, timeout: float | None = None) -> list[int]:
        """The token ids of a text; with `special`, what looks like a special token is one."""
        ask = Tokenize(text=as_texts([text])[0], special=special)
        body, _ = await self._ask_one(self._body(ask), b"", timeout=timeout, redeliver=True, operation="tokenize")
        return msgspec.msgpack.decode(body, type=list[int])

    async def count(self, text: str | Sequence[Mapping[str, Any]], *, timeout: float | None = None) -> int:
        """How many tokens a text has, or messages have, through the chat template."""
        if isinstance(text, str):
            ask = Tokenize(text=as_texts([text])[0], count=True)
        else:
            with as_invalid_input():
                messages = [dict(message) for message in text]
                check_messages(messages)
            ask = Tokenize(messages=messages, count=True)
        body, _ = await self._ask_one(self._body(ask), b"", timeout=timeout, redeliver=True, operation="tokenize")
        return msgspec.msgpack.decode(body, type=int)

    # What they have in common

    def _body(self, ask: Ask) -> bytes:
        body = _encode(ask)
        if len(body) > MAX_FRAME // 2:
            raise InvalidInput(
                f"{self.name}: the request is {len(body):,} bytes; at most {MAX_FRAME // 2:,} can be sent"
            )
        return body

    async def _whole(self, ask: Ask, timeout: float | None) -> Completion:
        body, _ = await self._ask_one(
            self._body(ask),
            b"",
            timeout=timeout,
            redeliver=True,
            affinity=beginning(ask),
            operation=operation_of(ask),
            count=_count,
        )
        return _completion(body)

    def _pieces(self, ask: Ask, timeout: float | None) -> TextPieces:
        body, affinity, operation = self._body(ask), beginning(ask), operation_of(ask)
        return TextPieces(
            lambda: self._ask_stream(
                body,
                b"",
                window=_WINDOW,
                timeout=timeout,
                redeliver=True,
                affinity=affinity,
                operation=operation,
                count=_count,
            )
        )


def _count(answer: Answer) -> Counted:
    completion = _completion(answer[0])
    return completion.prompt_tokens, completion.completion_tokens


def _environment() -> dict[str, str]:
    """What is not set already."""
    return {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}


__all__ = ["Completion", "LlamaRunner", "SamplingOptions", "TextPieces"]
