"""The raw llama calls on a context: batches that are written through numpy, and what was computed of them.

The classes of llama-cpp-python are not used for generation: its batches begin at position 0, and its `decode` hides the
codes that say what can be tried again.

A batch larger than `n_batch` and a wrong position are assertions in the library: the process would be gone. `Context`
checks what it is given before the library sees it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from llama_cpp import llama_cpp as lib

from runners.worker.engines.base import EngineError
from runners.worker.engines.llama.cache import KvCache
from runners.worker.engines.llama.logs import Log
from runners.worker.engines.llama.model import KV_TYPES, Model

if TYPE_CHECKING:
    from numpy.typing import NDArray


class DecodeFailed(Exception):
    """`llama_decode` did not do it. `code`: 1 means that no place was found in the KV cache, and nothing has changed;
    anything else, that some part may have been done.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"llama_decode returned {code}")
        self.code = code


class Context:
    """A KV cache of `cells`, which all `sequences` share, and what computes on it.

    Args:
        movable: cells that may be copied into plain memory for a moment, see `KvCache`.

    Raises:
        EngineError: ``memory``: the library could not make it.
    """

    def __init__(
        self,
        model: Model,
        *,
        cells: int,
        sequences: int,
        batch: int,
        threads: int,
        type_k: str,
        type_v: str,
        flash_attention: bool,
        unified: bool,
        log: Log,
        pooled: bool = False,
        movable: int = 0,
    ) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = batch
        params.n_seq_max = sequences + (0 if pooled else KvCache.own(movable))
        params.n_threads = params.n_threads_batch = threads
        params.type_k, params.type_v = KV_TYPES[type_k][0], KV_TYPES[type_v][0]
        params.flash_attn_type = 1 if flash_attention else 0
        params.kv_unified = unified
        params.swa_full = True  # a prefix can be shared only while all of it is there
        params.no_perf = True
        if pooled:
            params.embeddings = True
            params.pooling_type = 1  # mean
        log.clear()
        self._pointer: Any = lib.llama_init_from_model(model.pointer, params)
        if not self._pointer:
            said = log.tail()
            if "cache type" in said:  # its blocks do not fit the model's heads
                raise EngineError("bad_option", f"kv_type={type_k!r} does not fit this model: {said}")
            raise EngineError("memory", f"the library cannot make a context of {cells} tokens: {said}")
        self.reported_kv_bytes = log.kv_bytes()
        self.cells = int(lib.llama_n_ctx(self._pointer))
        self.batch = batch
        self.sequences = sequences
        self._vocab = model.n_vocab
        self._embd = model.n_embd
        self._memory = lib.llama_get_memory(self._pointer)
        if not self._memory and not pooled:
            raise EngineError("model_unsupported", "the model does not generate text; it is an encoder")
        self.cache = KvCache(self._pointer, size=self.cells, sequences=sequences, movable=movable)
        self._token = np.zeros(batch, np.int32)
        self._pos = np.zeros(batch, np.int32)
        self._seq = np.zeros(batch, np.int32)
        self._n_seq = np.ones(batch, np.int32)
        self._wanted = np.zeros(batch, np.int8)
        step, at = self._seq.itemsize, self._seq.ctypes.data
        int32 = ctypes.POINTER(ctypes.c_int32)
        self._seqs = (int32 * batch)(*(ctypes.cast(at + step * i, int32) for i in range(batch)))
        self._batch = lib.llama_batch(
            n_tokens=0,
            token=self._token.ctypes.data_as(ctypes.POINTER(lib.llama_token)),
            embd=None,
            pos=self._pos.ctypes.data_as(ctypes.POINTER(lib.llama_pos)),
            n_seq_id=self._n_seq.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._seqs,
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        self._rows: tuple[int, int, Any] = (0, 0, None)

    @property
    def pointer(self) -> Any:
        """The library's."""
        return self._pointer

    def free(self) -> None:
        """Give it back."""
        if self._pointer:
            lib.llama_free(self._pointer)
            self._pointer = None

    def decode(self, pieces: Sequence[tuple[int, int, Sequence[int], bool]]) -> None:
        """Compute pieces, each ``(sequence, position of its first token, tokens, whether its last token's logits are
        wanted)``.

        Raises:
            DecodeFailed: it did not go.
        """
        count = 0
        for seq, start, tokens, wanted in pieces:
            size = len(tokens)
            if count + size > self.batch or not 0 <= seq < self.sequences:
                msg = f"a batch of more than {self.batch} tokens, or no sequence {seq}"
                raise ValueError(msg)
            if size == 1:
                self._token[count], self._pos[count], self._seq[count] = tokens[0], start, seq
                self._wanted[count] = wanted
            else:
                end = count + size
                self._token[count:end] = tokens
                self._pos[count:end] = np.arange(start, start + size, dtype=np.int32)
                self._seq[count:end] = seq
                self._wanted[count:end] = 0
                self._wanted[end - 1] = wanted
            count += size
        self._batch.n_tokens = count
        self.cache.make_room(count)
        code = int(lib.llama_decode(self._pointer, self._batch))
        if code != 0:
            raise DecodeFailed(code)
        self.cache.placed(pieces)

    def decode_pooled(self, seqs: Sequence[tuple[int, Sequence[int]]]) -> NDArray[np.float32]:
        """One vector for each ``(sequence, tokens)``, of a context made with `pooled`: float32, sequences x dim."""
        lib.llama_memory_clear(self._memory, False)
        count = 0
        for seq, tokens in seqs:
            end = count + len(tokens)
            self._token[count:end] = tokens
            self._pos[count:end] = np.arange(len(tokens), dtype=np.int32)
            self._seq[count:end] = seq
            self._wanted[count:end] = 1
            count = end
        self._batch.n_tokens = count
        code = int(lib.llama_decode(self._pointer, self._batch))
        if code != 0:
            raise DecodeFailed(code)
        return np.stack(
            [np.ctypeslib.as_array(lib.llama_get_embeddings_seq(self._pointer, seq), (self._embd,)) for seq, _ in seqs]
        ).astype(np.float32)

    def logits(self, rows: int) -> NDArray[np.float32]:
        """The logits of the last batch, float32, ``(rows, vocabulary)``, in the order of the pieces that wanted them.
        Valid until the next `decode`.
        """
        at = ctypes.cast(lib.llama_get_logits(self._pointer), ctypes.c_void_p).value or 0
        if self._rows[:2] != (at, rows):
            data: Any = (ctypes.c_float * (rows * self._vocab)).from_address(at)
            self._rows = (at, rows, np.frombuffer(data, np.float32).reshape(rows, self._vocab))
        found: NDArray[np.float32] = self._rows[2]
        return found
