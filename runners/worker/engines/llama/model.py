"""A model's file, mapped by the library: what it is, its vocabulary, and how large its KV cache will be."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from llama_cpp import llama_cpp as lib

from runners.worker.engines.base import EngineError
from runners.worker.engines.llama.logs import Log

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
        self.slides = int(lib.llama_model_n_swa(self._pointer)) > 0
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
