"""The runners that people use: `EmbeddingRunner` and `FunctionRunner`.

Each is a thin face: it checks what it is given, says it to a `Supervisor` in the engine's terms, and reads the
    answer. All of
them are async context managers, safe to share between the tasks of one event loop, and run on asyncio (uvloop
included).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from guardrails.core.deadline import wait_limit
from guardrails.core.sizes import parse_size
from runners.embedding_input import as_pieces
from runners.errors import FunctionNotFound, MissingExtra, ModelNotFound, RunnerClosed, UnsendableValue
from runners.protocol.frames import MAX_FRAME
from runners.protocol.values import UnsendableError, pack, unpack
from runners.spec import Faults, WorkerSpec
from runners.supervision.limits import Limits
from runners.supervision.request import Answer, Request
from runners.supervision.restart import RestartPolicy
from runners.supervision.stats import RunnerStats
from runners.supervision.supervisor import Supervisor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

if sys.platform == "win32":
    msg = (
        "runners needs Linux or macOS: it hands sockets to its workers and ends them by signals. "
        "On Windows guardrails works whole"
    )
    raise ImportError(msg)

#: glibc keeps up to 8 x cores heaps of freed memory; two are plenty for a worker of one busy thread.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}
#: The hard budget, when only the soft one is given.
_HARD_FACTOR = 1.5
#: Requests of one call that are in the supervisor's hands at once: one call cannot fill the queue for everybody.
_OUTSTANDING = 16


class Runner:
    """What all runners share. The keywords here are those of every runner.

    Args:
        name: how it calls itself in logs, events and errors.
        memory: soft budget of a worker's private memory, as a size (``"512MiB"``). A worker that reaches it is
            replaced, with no request lost. None: no limit.
        memory_hard: hard budget: a worker that reaches it is killed at once. By default one and a half times `memory`.
        workers: processes.
        queue: requests that may wait in this process; one more is refused with `QueueFull`.
        timeout: seconds that a request may take, waiting included; None for no limit. Calls can set their own.
        heartbeat: seconds that a worker may go without finishing a step while it has work, before it is replaced as
            stuck.
        start_timeout: seconds that a worker may take to load.
        grace: seconds that `close` gives accepted requests to be answered.
        environment: variables for the workers, on top of this process's.
        restart: when crashed workers are started again.
        faults: faults to commit on purpose, for tests and game days.
        python: the interpreter that runs workers; by default this one.
    """

    def __init__(
        self,
        *,
        name: str,
        engine: str,
        options: dict[str, Any],
        memory: str | float | None,
        memory_hard: str | float | None,
        workers: int,
        queue: int,
        timeout: float | None,
        heartbeat: float | None,
        start_timeout: float,
        grace: float,
        environment: Mapping[str, str] | None,
        restart: RestartPolicy | None,
        faults: Faults | None,
        python: str | None,
    ) -> None:
        for argument, value, least in (("workers", workers, 1), ("queue", queue, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                msg = f"{argument} takes a whole number of at least {least}, not {value!r}"
                raise ValueError(msg)
        for argument, seconds in (("timeout", timeout), ("heartbeat", heartbeat), ("start_timeout", start_timeout)):
            if seconds is not None and not seconds > 0:
                msg = f"{argument} takes a number of seconds above 0, not {seconds!r}"
                raise ValueError(msg)
        soft = None if memory is None else parse_size(memory, "memory")
        hard = int(soft * _HARD_FACTOR) if soft is not None else None
        if memory_hard is not None:
            hard = parse_size(memory_hard, "memory_hard")
            if soft is not None and hard <= soft:
                msg = (
                    f"memory_hard={memory_hard!r} must be above memory={memory!r}: "
                    "a worker is replaced at one and killed at the other"
                )
                raise ValueError(msg)
        self.name = name
        self.timeout = timeout
        self.grace = grace
        self._spec = WorkerSpec(
            name=name,
            engine=engine,
            options=options,
            sys_path=tuple(os.path.abspath(entry) for entry in sys.path),  # noqa: PTH100 - text in, text out
            environment={**_ENVIRONMENT, **(environment or {})},
            faults=faults or Faults(),
        )
        self._supervisor = Supervisor(
            self._spec,
            limits=Limits(soft=soft, hard=hard, heartbeat=heartbeat),
            workers=workers,
            queue=queue,
            policy=restart,
            start_timeout=start_timeout,
            python=python,
        )

    async def start(self) -> Self:
        """Start the workers and wait until they are loaded and warm.

        Raises:
            StartFailed: one could not be brought up; the subclass says why. Nothing is left running then.
        """
        await self._supervisor.start()
        return self

    async def close(self) -> None:
        """Answer what is accepted, for `grace` seconds at most, then end the workers. Closing again does nothing."""
        await self._supervisor.close(self.grace)

    async def __aenter__(self) -> Self:
        """`start`."""
        return await self.start()

    async def __aexit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        """`close`; at once if the block failed."""
        await self._supervisor.close(self.grace if exc is None else 0)

    @property
    def state(self) -> str:
        """``new``, ``starting``, ``ready``, ``draining``, ``failed`` or ``stopped``."""
        return self._supervisor.state

    def stats(self) -> RunnerStats:
        """A snapshot of requests and workers."""
        return self._supervisor.stats()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.state}>"

    async def _ask(
        self,
        bodies: Sequence[tuple[bytes, bytes]],
        *,
        timeout: float | None,
        redeliver: bool,
    ) -> list[Answer]:
        """Put requests, a few at a time, and collect all answers, or the first error; what is not needed then is
        withdrawn.
        """
        supervisor = self._supervisor
        seconds = self.timeout if timeout is None else timeout
        # A deadline around this call counts too; one that a `timeout` enforces ends the call itself, by cancelling it.
        seconds = wait_limit(float("inf") if seconds is None else seconds)
        deadline = supervisor.now() + seconds if seconds < float("inf") else None
        waiting: deque[Request] = deque()
        answers: list[Answer] = []
        try:
            for body, payload in bodies:
                waiting.append(supervisor.submit(body, payload, deadline=deadline, redeliver=redeliver))
                if len(waiting) >= _OUTSTANDING:
                    answers.append(await waiting[0].future)
                    waiting.popleft()
            while waiting:
                answers.append(await waiting[0].future)
                waiting.popleft()
        except BaseException:
            for request in waiting:
                supervisor.withdraw(request)
            raise
        return answers


class EmbeddingRunner(Runner):
    """Texts to vectors, with an ONNX model in a supervised subprocess.

    Args:
        path: a sentence-transformers folder, a folder with ``model.onnx`` and ``tokenizer.json``, or an ONNX file.
        tokenizer: its ``tokenizer.json``, when it is not beside the model.
        max_tokens: tokens of a text that are read; the rest is cut off. By default what the model's folder says.
        pooling: ``"mean"``, ``"cls"`` or ``"max"``; by default what the folder says, else mean.
        normalize: whether vectors have length 1; by default what the folder says, else True.
        threads: of one worker; by default all cores.
        lanes: passes that run side by side; by default two on a CPU of several cores, which does the most work. 1
            answers a lone caller sooner.
        token_budget: the most padded tokens of one pass, which bounds the memory of one.
        providers: ONNX Runtime's execution providers, for a GPU.

    The other keywords are those of `Runner`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        memory: str | float | None = None,
        memory_hard: str | float | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        max_tokens: int | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        threads: int | None = None,
        lanes: int | None = None,
        token_budget: int | None = None,
        providers: Sequence[str] | None = None,
        name: str | None = None,
        workers: int = 1,
        queue: int = 1024,
        timeout: float | None = 300,
        heartbeat: float | None = 60,
        start_timeout: float = 120,
        grace: float = 10,
        environment: Mapping[str, str] | None = None,
        restart: RestartPolicy | None = None,
        faults: Faults | None = None,
        python: str | None = None,
    ) -> None:
        for module in ("numpy", "onnxruntime", "tokenizers"):
            if importlib.util.find_spec(module) is None:
                raise MissingExtra("EmbeddingRunner", extra="onnx", module=module)
        options: dict[str, Any] = {
            "path": os.path.abspath(path),  # noqa: PTH100 - text in, text out
            "tokenizer": None if tokenizer is None else os.path.abspath(tokenizer),  # noqa: PTH100
            "max_tokens": max_tokens,
            "pooling": pooling,
            "normalize": normalize,
            "threads": threads,
            "lanes": lanes,
            "providers": None if providers is None else list(providers),
        }
        if token_budget is not None:
            options["token_budget"] = token_budget
        super().__init__(
            name=name or Path(path).stem or "embedder",
            engine="onnx",
            options=options,
            memory=memory,
            memory_hard=memory_hard,
            workers=workers,
            queue=queue,
            timeout=timeout,
            heartbeat=heartbeat,
            start_timeout=start_timeout,
            grace=grace,
            environment=environment,
            restart=restart,
            faults=faults,
            python=python,
        )
        self._path = Path(path)

    async def start(self) -> Self:
        """See `Runner.start`."""
        if not self._path.exists():
            raise ModelNotFound(
                f"{self.name}: there is no file or folder {str(self._path)!r}; give the model's folder or .onnx file"
            )
        await super().start()
        return self

    @property
    def dim(self) -> int:
        """Length of a vector. Known once it is started."""
        for worker in self._supervisor.workers:
            return int(worker.info["dim"])
        raise RunnerClosed(f"{self.name}: no worker is up to ask for the length of its vectors")

    async def embed(self, texts: Sequence[str], *, timeout: float | None = None) -> npt.NDArray[np.float32]:
        """The vectors of `texts`, as a float32 array of shape ``(len(texts), dim)``, in their order.

        Texts of many callers share passes, so one call with all of its texts and many calls with one each cost the
        same. A text longer than the model reads is cut off at `max_tokens`.

        Raises:
            InvalidInput: a text is not a str, empty, too long to be meant, or cannot be encoded; the message says
                which.
            RequestTimeout: no answer within `timeout` seconds.
            QueueFull, RunnerUnavailable: refused for now; both have a `retry_after` or can be tried again.
        """
        import numpy as np  # noqa: PLC0415 - an extra; see __init__

        pieces = as_pieces(texts, self.name)
        bodies = [(msgspec.msgpack.encode(piece), b"") for piece in pieces]
        answers = await self._ask(bodies, timeout=timeout, redeliver=True)
        rows = []
        for body, payload in answers:
            shape = msgspec.msgpack.decode(body, type=tuple[int, int])
            rows.append(np.frombuffer(payload, dtype=np.float32).reshape(shape))
        return rows[0].copy() if len(rows) == 1 else np.concatenate(rows)


class FunctionRunner(Runner):
    """Calls of one importable function, in supervised subprocesses.

    Arguments and results cross as data: None, bool, int, float, str, bytes, list, dict, datetime, numpy arrays and
        numbers.
    Tuples and sets arrive as lists. Nothing is pickled.

    Args:
        function: ``"module:function"``, importable in the worker, where `sys.path` is this process's.
        idempotent: whether a call may be run again when the worker dies while it runs. If not, that call gets
            `RunnerCrashed`; calls that had not begun are run by the next worker either way.

    The other keywords are those of `Runner`.
    """

    def __init__(
        self,
        function: str,
        *,
        memory: str | float | None = None,
        memory_hard: str | float | None = None,
        idempotent: bool = False,
        name: str | None = None,
        workers: int = 1,
        queue: int = 1024,
        timeout: float | None = 60,
        heartbeat: float | None = None,
        start_timeout: float = 60,
        grace: float = 10,
        environment: Mapping[str, str] | None = None,
        restart: RestartPolicy | None = None,
        faults: Faults | None = None,
        python: str | None = None,
    ) -> None:
        if not isinstance(function, str):
            msg = (
                f"function takes the name 'module:function', not {type(function).__name__}: "
                "the worker imports it afresh, and nothing is pickled"
            )
            raise TypeError(msg)
        module, _, attribute = function.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
            raise FunctionNotFound(f"function={function!r} is not of the form 'module:function'")
        super().__init__(
            name=name or attribute,
            engine="function",
            options={"function": function},
            memory=memory,
            memory_hard=memory_hard,
            workers=workers,
            queue=queue,
            timeout=timeout,
            heartbeat=heartbeat,
            start_timeout=start_timeout,
            grace=grace,
            environment=environment,
            restart=restart,
            faults=faults,
            python=python,
        )
        self.idempotent = idempotent

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function in a worker.

        Raises:
            RemoteError: it raised; where that was a plain builtin exception, the error is one of that class too.
            UnsendableValue: arguments or result are not data.
            RunnerCrashed, PoisonedRequest, RequestTimeout, QueueFull, RunnerUnavailable: see `runners.errors`.
        """
        try:
            body, payload = pack((args, kwargs))
        except UnsendableError as error:
            raise UnsendableValue(
                f"{self.name}: an argument cannot be sent: {error}; pass plain data or numpy arrays"
            ) from error
        if len(body) + len(payload) > MAX_FRAME // 2:
            size = len(body) + len(payload)
            raise UnsendableValue(
                f"{self.name}: the arguments are {size:,} bytes; at most {MAX_FRAME // 2:,} can be sent"
            )
        ((answer, array_bytes),) = await self._ask(((body, payload),), timeout=None, redeliver=self.idempotent)
        return unpack(answer, array_bytes)


__all__ = ["EmbeddingRunner", "FunctionRunner", "Runner"]
