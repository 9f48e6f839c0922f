"""The plainest way to embed a text: onnxruntime in this process, one text at a time. What the demo compares with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runners.cli.models import MiniLM

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class PlainEmbedder:
    """all-MiniLM-L6-v2 without any of the runners' machinery."""

    def __init__(self, models: MiniLM) -> None:
        import onnxruntime
        import tokenizers

        self._session = onnxruntime.InferenceSession(str(models.model), providers=["CPUExecutionProvider"])
        self._tokenizer = tokenizers.Tokenizer.from_file(str(models.tokenizer))
        self._tokenizer.no_padding()

    def embed(self, text: str) -> npt.NDArray[np.float32]:
        """The vector of one text: mean over its tokens, of length 1; shape (384,)."""
        import numpy as np

        ids = np.array([self._tokenizer.encode(text).ids], dtype=np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        hidden: npt.NDArray[np.float32] = self._session.run(None, feeds)[0]
        mean = hidden[0].mean(axis=0)
        vector: npt.NDArray[np.float32] = (mean / np.linalg.norm(mean)).astype(np.float32)
        return vector
