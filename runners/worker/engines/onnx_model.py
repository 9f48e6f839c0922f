"""One ONNX embedding model in an onnxruntime session: rows of token ids in, one float32 vector a row out.

Memory stays flat on changing shapes because passes are bounded: the arena keeps what the largest one took, the rest
fits in it, and no memory pattern is kept per shape. Giving the arena back after each pass (the run option
``memory.enable_memory_arena_shrinkage``) is worse here: lanes that take and free at the same time leave holes, and
memory grows. Threads do not spin while they wait: the processors are shared with the process that sends the requests.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runners.worker.engines.base import EngineError
from runners.worker.engines.model_folder import ModelFiles, Options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_NEEDED = (
    "an embedding model has the inputs input_ids, attention_mask and, if it likes, token_type_ids (int64 or int32, of"
    " any number of rows and tokens), and an output last_hidden_state (rows x tokens x dim) or sentence_embedding"
    " (rows x dim)"
)
_CPU = "CPUExecutionProvider"


class OnnxModel:
    """The session and what is known of it.

    Args:
        threads: of onnxruntime's pool, the calling thread included.
        pad_id: the token that fills short rows; it is masked.

    Raises:
        EngineError: ``model_invalid``, ``model_unsupported``, ``bad_option``, ``missing_extra``.
    """

    def __init__(self, files: ModelFiles, options: Options, *, threads: int, pad_id: int) -> None:
        try:
            import numpy  # noqa: ICN001, PLC0415 - an extra
            import onnxruntime  # noqa: PLC0415
        except ImportError as error:
            raise EngineError("missing_extra", error.name or "onnxruntime") from error
        self._np = numpy
        self._pad_id = pad_id
        self.providers = options.providers or [_CPU]
        self._session = self._load(onnxruntime, files, threads)
        self._inputs = self._check_inputs(str(files.model))
        self._output, self.pooled = self._check_output(str(files.model))
        if self.pooled and options.pooling is not None:
            message = f"pooling: the model's output {self._output!r} is one vector a text already; leave the option out"
            raise EngineError("bad_option", message)
        self.pooling = None if self.pooled else files.pooling
        self.normalize = options.normalize is True if self.pooled else files.normalize

    def _load(self, ort: Any, files: ModelFiles, threads: int) -> Any:
        available = ort.get_available_providers()
        unknown = [name for name in self.providers if name not in available]
        if unknown:
            message = f"providers: this onnxruntime has no {', '.join(unknown)}; it has {', '.join(available)}"
            raise EngineError("bad_option", message)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.enable_mem_pattern = False
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings.log_severity_level = 3  # errors; warnings of a model's export are of no use to who runs it
        # External data outside the model's folder is refused by onnxruntime itself, from 1.24 on.
        try:
            session = ort.InferenceSession(str(files.model), settings, providers=self.providers)
        except Exception as error:
            message = f"{str(files.model)!r} cannot be loaded: {_first_line(error)}"
            if type(error).__name__ == "NotImplemented":
                message += "; export it with operators that this onnxruntime has"
                raise EngineError("model_unsupported", message) from error
            if type(error).__name__ == "InvalidProtobuf":
                message = f"{str(files.model)!r} is not an ONNX model, or was cut off: fetch or export it again"
            raise EngineError("model_invalid", message) from error
        _give_back()
        return session

    def _check_inputs(self, path: str) -> list[tuple[str, str]]:
        inputs = self._session.get_inputs()
        names = [given.name for given in inputs]
        if not {"input_ids", "attention_mask"} <= set(names) <= set(_INPUTS):
            raise _unsupported(path, "has the inputs " + _list(inputs))
        for given in inputs:
            if given.type not in {"tensor(int64)", "tensor(int32)"} or len(given.shape) != 2:
                raise _unsupported(path, "has the inputs " + _list(inputs))
            if any(isinstance(size, int) for size in given.shape):
                raise _unsupported(path, f"has fixed sizes ({_list(inputs)}): export it with dynamic axes")
        return [(given.name, given.type[len("tensor(") : -1]) for given in inputs]

    def _check_output(self, path: str) -> tuple[str, bool]:
        """The output to read, and whether it holds one vector a row already."""
        outputs = self._session.get_outputs()
        usable = {out.name: len(out.shape or ()) for out in outputs if out.type in {"tensor(float)", "tensor(float16)"}}
        for name, rank in (("sentence_embedding", 2), ("last_hidden_state", 3), ("token_embeddings", 3)):
            if usable.get(name) == rank:
                return name, rank == 2
        if len(outputs) == 1 and usable.get(outputs[0].name) in {2, 3}:  # another name, and no doubt
            return outputs[0].name, usable[outputs[0].name] == 2
        raise _unsupported(path, "has the outputs " + _list(outputs))

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """One pass.

        Args:
            rows: token ids of each text, special tokens included; lengths may differ.

        Returns:
            shape (rows, dim), float32. May be called from several threads at once.
        """
        np = self._np
        longest = max(1, *map(len, rows))
        ids = np.full((len(rows), longest), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row) or 1] = 1  # a text without any token is one padding token
        arrays = {"input_ids": ids, "attention_mask": mask}
        feed = {
            name: (arrays[name] if name in arrays else np.zeros_like(ids)).astype(dtype, copy=False)
            for name, dtype in self._inputs
        }
        (output,) = self._session.run([self._output], feed)
        output = output.astype(np.float32, copy=False)
        vectors: Vectors = output if self.pooled else self._pool(output, mask)
        if self.normalize:
            vectors = vectors / np.maximum(np.sqrt((vectors * vectors).sum(axis=1, keepdims=True)), np.float32(1e-12))
        return vectors

    def _pool(self, hidden: Vectors, mask: NDArray[np.int64]) -> Vectors:
        """(rows, tokens, dim) to (rows, dim), without what the mask hides."""
        np = self._np
        if self.pooling == "cls":
            first: Vectors = hidden[:, 0]
            return first
        weights = mask.astype(np.float32)[:, :, None]
        if self.pooling == "max":
            largest: Vectors = np.where(weights > 0, hidden, np.float32("-inf")).max(axis=1)
            return largest
        mean: Vectors = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        return mean


def _give_back() -> None:
    """Return to the system what loading took and freed: the file's bytes, and weights before they were converted."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)


def _unsupported(path: str, what: str) -> EngineError:
    return EngineError("model_unsupported", f"{path!r} {what}; {_NEEDED}")


def _list(values: Any) -> str:
    return ", ".join(f"{value.name} {value.type} {value.shape}" for value in values) or "none"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
