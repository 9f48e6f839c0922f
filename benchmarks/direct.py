"""onnxruntime called directly on all-MiniLM-L6-v2, in the configurations that are known to be good on a CPU.

Run as a program it embeds the benchmark's texts alone in its process and prints what that process holds, as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
import tokenizers

from guardrails.memory.reading import private_bytes, resident_bytes
from runners.cli.models import find_minilm

#: Padded tokens of a pass over texts sorted by length; 0: one text at a time, as they come.
CONFIGURATIONS = {"one at a time": 0, "sorted, 512": 512, "sorted, 1024": 1024, "sorted, 2048": 2048}

_CORPUS = "the quick brown fox jumps over a lazy dog while rivers run through old towns and engines hum at night"


def make_texts(count: int = 256, seed: int = 3) -> list[str]:
    """Texts of 4 to 120 words."""
    chance = random.Random(seed)
    words = _CORPUS.split()
    return [" ".join(chance.choices(words, k=chance.randint(4, 120))) for _ in range(count)]


class DirectEmbedder:
    """One session of two threads, as a careful person would write it."""

    def __init__(self) -> None:
        models = find_minilm()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self._session = onnxruntime.InferenceSession(str(models.model), options, providers=["CPUExecutionProvider"])
        self._tokenizer = tokenizers.Tokenizer.from_file(str(models.tokenizer))
        self._tokenizer.no_padding()

    def find_best(self, texts: list[str]) -> str:
        """The fastest configuration here and now, by the better of two tries each."""
        taken = {name: min(self._time(texts, name) for _ in range(2)) for name in CONFIGURATIONS}
        return min(taken, key=lambda name: taken[name])

    def _time(self, texts: list[str], configuration: str) -> float:
        began = time.perf_counter()
        self.embed(texts, configuration)
        return time.perf_counter() - began

    def embed(self, texts: list[str], configuration: str) -> list[Any]:
        """Vectors of length 1, in the order of `texts`."""
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        vectors: list[Any] = [None] * len(texts)
        for rows in _passes([len(ids) for ids in encoded], CONFIGURATIONS[configuration]):
            longest = max(len(encoded[row]) for row in rows)
            ids = np.zeros((len(rows), longest), dtype=np.int64)
            mask = np.zeros_like(ids)
            for place, row in enumerate(rows):
                ids[place, : len(encoded[row])] = encoded[row]
                mask[place, : len(encoded[row])] = 1
            feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            hidden = self._session.run(None, feeds)[0]
            weights = mask[:, :, None].astype(np.float32)
            mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
            mean /= np.linalg.norm(mean, axis=1, keepdims=True)
            for place, row in enumerate(rows):
                vectors[row] = mean[place]
        return vectors


def _passes(lengths: list[int], budget: int) -> Iterator[list[int]]:
    if not budget:
        yield from ([row] for row in range(len(lengths)))
        return
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if rows and (len(rows) + 1) * lengths[row] > budget:
            yield rows
            rows = []
        rows.append(row)
    yield rows


if __name__ == "__main__":
    embedder = DirectEmbedder()
    for _ in range(2):
        embedder.embed(make_texts(), sys.argv[1])
    print(json.dumps({"resident": resident_bytes(), "private": private_bytes()}))
