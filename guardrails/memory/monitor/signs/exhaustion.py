"""How programs say that memory has run out: which of them says it, from its own words. Pure."""

from __future__ import annotations

import re

#: The beginning and the end of a text are looked at, so many characters of each.
_LOOKED_AT = 4096

#: Who says it, and a piece of each of its messages. Where several are in a text, the first one here has said it.
_WORDS = {
    "v8": r"heap out of memory|Reached heap limit|invalid array length Allocation failed",
    "cuda": r"CUDA(?: error:)? out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
    r"|cudaMalloc failed: out of memory|HIP out of memory|MPS backend out of memory",
    "onnxruntime": r"Failed to allocate memory for requested buffer|BFCArena.{0,80}(?:alloc|memory)"
    r"|Available memory of \d+ is smaller than requested bytes",
    "llama.cpp": r"failed to allocate (?:buffer|compute|kv|\w+ buffer)|unable to allocate (?:backend|\S+) buffer"
    r"|ggml_\w*: (?:not enough (?:space|memory)|failed to allocate)|failed to (?:init|initialize) kv.?cache",
    "kernel": r"Out of memory: Kill|Memory cgroup out of memory|invoked oom-killer|oom-kill:|OOMKilled",
    "c++": r"std::bad_alloc|std::bad_array_new_length",
    "python": r"\bMemoryError\b|\bArrayMemoryError\b|Unable to allocate [\d.]+ [KMGT]?i?B",
    "system": r"Cannot allocate memory|\bENOMEM\b|\bOutOfMemoryError\b|\bout of memory\b",
}
#: Each of them has one of these in it, in small letters: most texts are told from that alone, in a microsecond.
_HINTS = ("memory", "alloc", "oom", "heap", "kv", "ggml", "bad_array", "enomem")
_EACH = {name: re.compile(words, re.IGNORECASE) for name, words in _WORDS.items()}


def exhausted(text: str) -> str | None:
    """Who says in `text` that memory has run out, or None: ``v8``, ``cuda``, ``onnxruntime``, ``llama.cpp``,
    ``kernel``, ``c++``, ``python`` or ``system``. Of a long text its beginning and its end are looked at.
    """
    if len(text) > 2 * _LOOKED_AT:
        text = f"{text[:_LOOKED_AT]}\n{text[-_LOOKED_AT:]}"
    small = text.lower()
    if not any(hint in small for hint in _HINTS):
        return None
    return next((name for name, words in _EACH.items() if words.search(text)), None)


def exhausted_type(kind: type[BaseException] | None) -> str | None:
    """The same for the type of an exception: `MemoryError` and its kin, and what frameworks call their own."""
    if kind is None:
        return None
    if issubclass(kind, MemoryError):
        return "python"
    return "cuda" if kind.__name__ == "OutOfMemoryError" else None
