"""The raw llama calls: a model, a context with its KV cache, and batches that are written through numpy.

The classes of llama-cpp-python are not used for generation: its batches begin at position 0, and its `decode` hides the
codes that say what can be tried again.

A batch larger than `n_batch` and a wrong position are assertions in the library: the process would be gone. `Context`
checks what it is given before the library sees it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from llama_cpp import llama_cpp as lib

from runners.worker.engines.base import EngineError
from runners.worker.engines.llama.logs import Log

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Types of KV cells: ggml's number, and bytes for each 32 elements.
KV_TYPES = {
    "f32": (0, 128),
    "f16": (1, 64),
    "bf16": (30, 64),
    "q8_0": (8, 34),
    "q5_1": (7, 24),
    "q5_0": (6, 22),
    "q4_1": (3, 20),
    "q4_0": (2, 18),
}
_MAX_META = 1024 * 1024


class DecodeFailed(Exception):
    """`llama_decode` did not do it. `code`: 1 means that no place was found in the KV cache, and nothing has changed;
    anything else, that some part may have been done.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"llama_decode returned {code}")
        self.code = code


class Model:
    """A GGUF file, mapped into memory.

    Raises:
        EngineError: ``model``: it is damaged, cut short, or of an architecture that the library does not know.
    """

    def __init__(self, path: str, *, gpu_layers: int, repack: bool, mlock: bool, log: Log) -> None:
        self._pointer: Any = None
        _check_file(path)
        params = lib.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.use_extra_bufts = repack
        params.load_mode = 3 if mlock else 1
        log.clear()
        self._pointer = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self._pointer:
            raise _cannot_load(path, log)
        self.vocab = lib.llama_model_get_vocab(self._pointer)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self.vocab))
        self.n_embd = int(lib.llama_model_n_embd_out(self._pointer))
        self.n_layer = int(lib.llama_model_n_layer(self._pointer))
        self.trained_context = int(lib.llama_model_n_ctx_train(self._pointer))
        self.bytes = int(lib.llama_model_size(self._pointer))
        self.recurrent = bool(lib.llama_model_is_recurrent(self._pointer) or lib.llama_model_is_hybrid(self._pointer))
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}

    @property
    def pointer(self) -> Any:
        """The library's."""
        return self._pointer

    def free(self) -> None:
        """Give it back."""
        if self._pointer:
            lib.llama_model_free(self._pointer)
            self._pointer = None

    @property
    def generates(self) -> bool:
        """Whether it is of the kind that goes on with a text: a decoder and no encoder."""
        decodes = lib.llama_model_has_decoder(self._pointer) and not lib.llama_model_has_encoder(self._pointer)
        return bool(decodes) and not lib.llama_model_is_diffusion(self._pointer)

    def meta(self, key: str) -> str | None:
        """A value of the file's metadata, as text; None if there is none."""
        buffer = ctypes.create_string_buffer(256)
        name = key.encode()
        size = lib.llama_model_meta_val_str(self._pointer, name, buffer, len(buffer))
        if size < 0:
            return None
        if size >= len(buffer):
            buffer = ctypes.create_string_buffer(min(size, _MAX_META) + 1)
            lib.llama_model_meta_val_str(self._pointer, name, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def architecture(self) -> str:
        """Such as ``llama`` or ``gemma3``."""
        return self.meta("general.architecture") or "unknown"

    @property
    def description(self) -> str:
        """Architecture, size and quantisation, in the library's words."""
        buffer = ctypes.create_string_buffer(256)
        lib.llama_model_desc(self._pointer, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def chat_template(self) -> str | None:
        """The Jinja source that the file brings."""
        source = lib.llama_model_chat_template(self._pointer, None)
        return None if source is None else source.decode("utf-8", "replace")

    def kv_bytes(self, cells: int, type_k: str, type_v: str) -> int:
        """Bytes of a KV cache: over all layers, a row of K and one of V for each cell. 0 where that is not how the
        model remembers.
        """
        if self.recurrent:
            return 0
        heads = int(lib.llama_model_n_head(self._pointer))
        heads_kv = int(lib.llama_model_n_head_kv(self._pointer))
        arch = self.architecture
        plain = int(lib.llama_model_n_embd(self._pointer)) // max(1, heads)
        k = int(self.meta(f"{arch}.attention.key_length") or plain) * heads_kv
        v = int(self.meta(f"{arch}.attention.value_length") or plain) * heads_kv
        row = k * KV_TYPES[type_k][1] // 32 + v * KV_TYPES[type_v][1] // 32
        return self.n_layer * cells * row

    # Tokens

    def tokenize(self, text: str, *, special: bool, begin: bool) -> list[int]:
        """Token ids. With `special`, what looks like a special token is one; with `begin`, the model's first token
        comes before, if it has one.
        """
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        tokens = (lib.llama_token * room)()
        count = lib.llama_tokenize(self.vocab, data, len(data), tokens, room, begin, special)
        if count < 0:
            room = -count
            tokens = (lib.llama_token * room)()
            count = lib.llama_tokenize(self.vocab, data, len(data), tokens, room, begin, special)
        return list(tokens[:count])

    @property
    def adds_begin(self) -> bool:
        """Whether the model wants its first token before every text."""
        return bool(lib.llama_vocab_get_add_bos(self.vocab))

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that a token stands for; of special ones only with `special`."""
        known = self._pieces.get(token if not special else -token - 1)
        if known is None:
            buffer = ctypes.create_string_buffer(64)
            size = lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
            if size < 0:
                buffer = ctypes.create_string_buffer(-size)
                size = lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
            known = buffer.raw[: max(0, size)]
            self._pieces[token if not special else -token - 1] = known
        return known

    def controls(self) -> list[str]:
        """The texts of all control tokens: such as ``<|im_end|>``, that no text of a caller's should become."""
        control = lib.llama_vocab_is_control
        return [self.text(token) for token in range(self.n_vocab) if control(self.vocab, token)]

    def text(self, token: int) -> str:
        """A special token as text, for templates; empty for none."""
        return "" if token < 0 else self.piece(token, special=True).decode("utf-8", "replace")

    @property
    def begin_token(self) -> int:
        """Its id, or -1."""
        return int(lib.llama_vocab_bos(self.vocab))

    @property
    def end_token(self) -> int:
        """Its id, or -1."""
        return int(lib.llama_vocab_eos(self.vocab))

    def ends(self, token: int) -> bool:
        """Whether this token ends a generation."""
        known = self._ends.get(token)
        if known is None:
            known = self._ends[token] = bool(lib.llama_vocab_is_eog(self.vocab, token))
        return known


class Context:
    """A KV cache of `cells`, which all `sequences` share, and what computes on it.

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
    ) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = params.n_ubatch = batch
        params.n_seq_max = sequences + (not pooled)  # and one to save and restore by
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
        code = int(lib.llama_decode(self._pointer, self._batch))
        if code != 0:
            raise DecodeFailed(code)

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

    # The KV cache

    def copy(self, source: int, seq: int, length: int) -> None:
        """`seq` shares the first `length` cells of `source`."""
        lib.llama_memory_seq_cp(self._memory, source, seq, 0, length)

    def truncate(self, seq: int, length: int) -> bool:
        """`seq` keeps its first `length` cells; whether the memory can do that."""
        return bool(lib.llama_memory_seq_rm(self._memory, seq, length, -1))

    def remove(self, seq: int) -> None:
        """`seq` has no cells any more. All of a sequence can always be removed."""
        lib.llama_memory_seq_rm(self._memory, seq, -1, -1)

    # Sequences in plain memory. One sequence id is this class's own: the last.

    def save(self, seq: int, start: int, end: int) -> mmap.mmap | None:
        """The cells of `seq` from position `start` to before `end`, as the library writes them; None if it cannot.

        In a mapping of its own, which is given back to the system as soon as nobody refers to it.
        """
        own = self.sequences
        lib.llama_memory_seq_cp(self._memory, seq, own, start, end)
        try:
            size = int(lib.llama_state_seq_get_size(self._pointer, own))
            if size < 1:
                return None
            saved = mmap.mmap(-1, size)
            at = (ctypes.c_uint8 * size).from_buffer(saved)
            written = int(lib.llama_state_seq_get_data(self._pointer, at, size, own))
            del at  # a mapping that somebody points to cannot be closed
        finally:
            self.remove(own)
        return saved if written == size else None

    def restore(self, seq: int, parts: Sequence[tuple[mmap.mmap | None, int, int]]) -> bool:
        """Give `seq`, which has no cells, those of each ``(saved, start, end)``; whether all could be had."""
        own = self.sequences
        for saved, start, end in parts:
            if saved is None:
                return False
            at = (ctypes.c_uint8 * len(saved)).from_buffer(saved)
            read = int(lib.llama_state_seq_set_data(self._pointer, at, len(saved), own))
            del at
            if read:
                lib.llama_memory_seq_cp(self._memory, own, seq, start, end)
            self.remove(own)
            if not read:
                return False
        return self.last_position(seq) == parts[-1][2] - 1

    def last_position(self, seq: int) -> int:
        """Of the last cell that `seq` has; -1 if it has none."""
        return int(lib.llama_memory_seq_pos_max(self._memory, seq))


def _check_file(path: str) -> None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - text in, text out
            magic = file.read(4)
    except OSError as error:
        raise EngineError("model_not_found", f"{path!r} cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise EngineError("model_invalid", f"{path!r} is not a GGUF file: it does not begin with 'GGUF'")


def _cannot_load(path: str, log: Log) -> EngineError:
    said = log.tail()
    if "unknown model architecture" in said:
        return EngineError(
            "model_unsupported", f"{path!r} is of an architecture that this llama-cpp-python does not know: {said}"
        )
    return EngineError("model_invalid", f"{path!r} is damaged, cut short, or no model: {said or 'no reason was given'}")
