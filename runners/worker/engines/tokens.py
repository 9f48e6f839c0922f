"""Texts to token ids, with the model's own `tokenizer.json`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from runners.worker.engines.base import EngineError
from runners.worker.engines.model_folder import ModelFiles

#: Characters a token, at the very most, in ordinary text. Longer texts are read from the front, in growing pieces.
_PER_TOKEN = 16


class Tokens:
    """The tokenizer.

    Args:
        files: its ``tokenizer`` and ``max_tokens`` are used.

    Attributes:
        pad_id: the id of the padding token; 0 where the tokenizer has none.

    Raises:
        EngineError: ``tokenizer_invalid``, ``missing_extra``; ``bad_option`` when `max_tokens` has no room for a token.
    """

    def __init__(self, files: ModelFiles) -> None:
        # One thread: the processors are the model's, and texts come in small groups.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            from tokenizers import Tokenizer  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise EngineError("missing_extra", error.name or "tokenizers") from error
        try:
            tokenizer: Any = Tokenizer.from_file(str(files.tokenizer))
        except Exception as error:
            message = f"{str(files.tokenizer)!r} is not a tokenizer.json of the tokenizers library: {error}"
            raise EngineError("tokenizer_invalid", message) from error
        self.pad_id = _pad_id(tokenizer)
        self._max = files.max_tokens
        # The model pads each pass to its own longest row. A tokenizer that pads each text to 128 would cost threefold.
        tokenizer.no_padding()
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if files.max_tokens <= special:
            raise EngineError("bad_option", f"max_tokens: must be more than {special}, the special tokens of each text")
        side = (tokenizer.truncation or {}).get("direction", "right")
        tokenizer.enable_truncation(files.max_tokens, direction=side)
        self._from_front = side == "right"
        # Without the places of the tokens in the text, which nobody needs.
        self._encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, no more than `max_tokens`.

        The work is bounded by `max_tokens`, not by the text: a megabyte is cut where enough tokens are certain.
        """
        limit = self._max * _PER_TOKEN
        if not self._from_front or max(map(len, texts), default=0) <= limit:
            return [encoding.ids for encoding in self._encode(texts)]
        short = [self._front(text, limit) if len(text) > limit else text for text in texts]
        return [encoding.ids for encoding in self._encode(short)]

    def _front(self, text: str, size: int) -> str:
        """The front of a text that gives the same tokens, after truncation, as all of it."""
        while size < len(text):
            end = max(text.rfind(" ", 0, size), text.rfind("\n", 0, size))  # words are not cut
            # With a token to spare after the truncated ones, none of those can depend on what follows the blank.
            if end > 0 and self._encode([text[:end]])[0].overflowing:
                return text[:end]
            size *= 4
        return text


def _pad_id(tokenizer: Any) -> int:
    if tokenizer.padding:
        return int(tokenizer.padding["pad_id"])
    for token in ("[PAD]", "<pad>"):
        known = tokenizer.token_to_id(token)
        if known is not None:
            return int(known)
    return 0
