"""`EmbeddingRunner`: texts to vectors."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from runners.embedding_input import as_pieces
from runners.errors import MissingExtra, ModelNotFound, RunnerClosed
from runners.protocol.parts import small_of
from runners.runner import Runner
from runners.spec import Faults, Resources
from runners.supervision.autoscale import Autoscale, as_autoscale
from runners.supervision.restart import RestartPolicy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class EmbeddingRunner(Runner):
    """Texts to vectors, with an ONNX model in a supervised subprocess.

    Args:
        path: a sentence-transformers folder, a folder with ``model.onnx`` and ``tokenizer.json``, or an ONNX file.
        tokenizer: its ``tokenizer.json``, when it is not beside the model.
        max_tokens: tokens of a text that are read; the rest is cut off. By default what the model's folder says.
        pooling: ``"mean"``, ``"cls"`` or ``"max"``; by default what the folder says, else mean.
        normalize: whether vectors have length 1; by default what the folder says, else True.
        threads: of one worker; by default all cores, or its share of them where there are several workers.
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
        max_age: float | None = None,
        max_requests: int | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        max_tokens: int | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        threads: int | None = None,
        lanes: int | None = None,
        token_budget: int | None = None,
        providers: Sequence[str] | None = None,
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
        for module in ("numpy", "onnxruntime", "tokenizers"):
            if importlib.util.find_spec(module) is None:
                raise MissingExtra("EmbeddingRunner", extra="onnx", module=module)
        resources = (resources or Resources()).shared_by(as_autoscale(workers).maximum, threads=threads)
        options: dict[str, Any] = {
            "path": os.path.abspath(path),  # noqa: PTH100 - text in, text out
            "tokenizer": None if tokenizer is None else os.path.abspath(tokenizer),  # noqa: PTH100
            "max_tokens": max_tokens,
            "pooling": pooling,
            "normalize": normalize,
            "threads": resources.threads,
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
            environment=environment,
            inherit_environment=inherit_environment,
            restart=restart,
            resources=resources,
            publish_status=publish_status,
            faults=faults,
            python=python,
        )
        self._path = Path(path)
        self._dim: int | None = None

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
        """Length of a vector. Known once a worker was up."""
        for worker in self._supervisor.workers:
            self._dim = int(worker.info["dim"])
        if self._dim is None:
            raise RunnerClosed(f"{self.name}: no worker was up yet to ask for the length of its vectors")
        return self._dim

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
        answers = await self._ask(bodies, timeout=timeout, redeliver=True, operation="embeddings")
        rows = []
        for body, payload in answers:
            shape = msgspec.msgpack.decode(body, type=tuple[int, int])
            self._dim = shape[1]
            rows.append(np.frombuffer(small_of(payload), dtype=np.float32).reshape(shape))
        return rows[0].copy() if len(rows) == 1 else np.concatenate(rows)


__all__ = ["EmbeddingRunner"]
