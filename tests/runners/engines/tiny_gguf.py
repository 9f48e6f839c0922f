"""A tiny GGUF model with random weights, and files that are no models: made here, so that tests need no download.

Its vocabulary: a few special tokens, all bytes, and some words, some of which begin or end within a character.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

LAYERS, EMBD, HEADS, HEADS_KV, HEAD, FF = 2, 64, 4, 2, 32, 96
UNK, BOS, EOS, IM_START, IM_END = range(5)
FIRST_BYTE = 5
#: Token id of a byte.
BYTE = {value: FIRST_BYTE + value for value in range(256)}
WORDS = ["▁", "a", "b", "c", "e", "t", "h", "▁t", "he", "▁the", "▁a", "ab", "abc", "é", "日", "🙂", "{", "}", '"', ":"]
VOCABULARY = FIRST_BYTE + 256 + len(WORDS)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)


def write(
    path: Path,
    *,
    seed: int = 1,
    architecture: str = "llama",
    template: str | None = TEMPLATE,
    nan: bool = False,
    weights: str = "F32",
) -> Path:
    """Write the model. With `nan` what it computes is not a number. `weights` are gguf's name of their format."""
    out = gguf.GGUFWriter(path, architecture)
    out.add_name("tiny")
    out.add_context_length(8192)
    out.add_embedding_length(EMBD)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(FF)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS_KV)
    out.add_key_length(HEAD)
    out.add_value_length(HEAD)
    out.add_rope_dimension_count(HEAD)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(VOCABULARY)
    _vocabulary(out)
    if template is not None:
        out.add_chat_template(template)
    random = np.random.default_rng(seed)

    def add(name: str, *shape: int, scale: float = 1.0) -> None:
        values = random.normal(0, scale / np.sqrt(shape[-1]), shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType[weights]
        out.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", VOCABULARY, EMBD, scale=8)
    ones = np.ones(EMBD, np.float32)
    out.add_tensor("output_norm.weight", ones * (np.nan if nan else 1))
    add("output.weight", VOCABULARY, EMBD, scale=2)
    for layer in range(LAYERS):
        blk = f"blk.{layer}"
        out.add_tensor(f"{blk}.attn_norm.weight", ones)
        out.add_tensor(f"{blk}.ffn_norm.weight", ones)
        add(f"{blk}.attn_q.weight", HEADS * HEAD, EMBD, scale=3)
        add(f"{blk}.attn_k.weight", HEADS_KV * HEAD, EMBD, scale=3)
        add(f"{blk}.attn_v.weight", HEADS_KV * HEAD, EMBD)
        add(f"{blk}.attn_output.weight", EMBD, HEADS * HEAD)
        add(f"{blk}.ffn_gate.weight", FF, EMBD)
        add(f"{blk}.ffn_up.weight", FF, EMBD)
        add(f"{blk}.ffn_down.weight", EMBD, FF)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def write_encoder(path: Path) -> Path:
    """Write a BERT: it has vectors for texts, and does not go on with them."""
    out = gguf.GGUFWriter(path, "bert")
    out.add_context_length(64)
    out.add_embedding_length(EMBD)
    out.add_block_count(1)
    out.add_feed_forward_length(FF)
    out.add_head_count(HEADS)
    out.add_layer_norm_eps(1e-5)
    out.add_causal_attention(False)
    out.add_token_type_count(1)
    _vocabulary(out)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (VOCABULARY, EMBD),
        "token_types": (1, EMBD),
        "position_embd": (64, EMBD),
        "token_embd_norm": (EMBD,),
        **{f"blk.0.attn_{name}": (EMBD, EMBD) for name in ("q", "k", "v", "output")},
        "blk.0.attn_output_norm": (EMBD,),
        "blk.0.ffn_up": (FF, EMBD),
        "blk.0.ffn_down": (EMBD, FF),
        "blk.0.layer_output_norm": (EMBD,),
    }
    for name, shape in shapes.items():
        out.add_tensor(f"{name}.weight", np.full(shape, 0.1, np.float32))
        if name.endswith("_norm"):
            out.add_tensor(f"{name}.bias", np.zeros(shape, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def _vocabulary(out: gguf.GGUFWriter) -> None:
    kind = gguf.TokenType
    tokens: list[tuple[str, int]] = [
        ("<unk>", kind.UNKNOWN),
        ("<s>", kind.CONTROL),
        ("</s>", kind.CONTROL),
        ("<|im_start|>", kind.CONTROL),
        ("<|im_end|>", kind.CONTROL),
        *((f"<0x{value:02X}>", kind.BYTE) for value in range(256)),
        *((word, kind.NORMAL) for word in WORDS),
    ]
    out.add_tokenizer_model("llama")
    out.add_token_list([text for text, _ in tokens])
    out.add_token_scores([-float(number) for number in range(len(tokens))])
    out.add_token_types([int(kind) for _, kind in tokens])
    out.add_unk_token_id(UNK)
    out.add_bos_token_id(BOS)
    out.add_eos_token_id(EOS)
    out.add_add_bos_token(True)
    out.add_add_eos_token(False)
    out.add_add_space_prefix(False)


def _flipped(data: bytes, start: int, end: int) -> bytes:
    return data[:start] + bytes(byte ^ 0xFF for byte in data[start:end]) + data[end:]


#: What can be wrong with a file: from its bytes, where the tensors' names begin, and where their values do.
DAMAGE = {
    "empty": lambda data, infos, begins: b"",
    "short": lambda data, infos, begins: data[:3],
    "magic": lambda data, infos, begins: b"GGML" + data[4:],
    "text": lambda data, infos, begins: b"this is no model" * 100,
    "only_magic": lambda data, infos, begins: data[:4],
    "version": lambda data, infos, begins: data[:4] + b"\xff\xff\xff\x7f" + data[8:],
    "counts": lambda data, infos, begins: _flipped(data, 8, 24),
    "header": lambda data, infos, begins: _flipped(data, 24, 64),
    "metadata": lambda data, infos, begins: _flipped(data, 200, 260),
    "infos": lambda data, infos, begins: _flipped(data, infos, infos + 40),
    "infos_late": lambda data, infos, begins: _flipped(data, begins - 60, begins - 10),
    "cut_in_metadata": lambda data, infos, begins: data[: infos // 2],
    "cut_in_infos": lambda data, infos, begins: data[: infos + 50],
    "cut_in_tensors": lambda data, infos, begins: data[: (begins + len(data)) // 2],
    "cut_at_the_end": lambda data, infos, begins: data[:-1000],
}


def damaged(path: Path, folder: Path, name: str) -> Path:
    """A file made from the model at `path`, with the damage `name`."""
    reader = gguf.GGUFReader(path)
    infos = min(tensor.field.offset for tensor in reader.tensors)
    begins = min(tensor.data_offset for tensor in reader.tensors)
    made = folder / f"{name}.gguf"
    made.write_bytes(DAMAGE[name](path.read_bytes(), infos, begins))
    return made
