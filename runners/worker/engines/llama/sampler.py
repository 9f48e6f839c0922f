"""A sampler chain for each sequence: from logits to a token.

The order is llama.cpp's: biases, penalties, top-k, top-p, min-p, temperature, chance. Greedy without biases and
penalties needs no chain: the largest logit is found in numpy.

A grammar looks at every token of the vocabulary, which takes milliseconds. So a token is chosen without it first, and
only if the grammar refuses that one it is applied to all of them and chosen again.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from llama_cpp import llama_cpp as lib

from runners.protocol.generation import Sampling, TokenLogprob
from runners.worker.engines.base import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runners.worker.engines.llama.model import Model

_FORBIDDEN = -100.0
_NO_WINDOW = 0
#: To the library this seed means: a random one.
_RANDOM_SEED = 2**32 - 1


class Sampler:
    """Chooses the tokens of one sequence.

    Args:
        model: whose tokens.
        sampling: how.
        choice: the number of the answer among `n`: each has a seed of its own.
        grammar: GBNF, or None.
        context: cells of the whole cache, for ``penalty_last_n=-1``.

    Raises:
        EngineError: ``input``: the grammar cannot be parsed, or a biased token is not in the vocabulary.
    """

    def __init__(self, model: Model, sampling: Sampling, *, choice: int, grammar: str | None, context: int) -> None:
        self._grammar: Any = None
        self._looks_back = 0
        penalised = sampling.penalty_last_n != _NO_WINDOW and (
            sampling.repeat_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        )
        #: Whether it is the largest logit, whatever came before.
        self.greedy = sampling.temperature <= 0 and not penalised and not sampling.logit_bias and grammar is None
        self._chain: Any = None
        if self.greedy:
            return
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if sampling.logit_bias:
            self._add(_biases(model, sampling.logit_bias))
        if penalised:
            self._looks_back = context if sampling.penalty_last_n < 0 else min(sampling.penalty_last_n, context)
            self._add(
                lib.llama_sampler_init_penalties(
                    model.n_vocab,
                    self._looks_back,
                    sampling.repeat_penalty,
                    sampling.frequency_penalty,
                    sampling.presence_penalty,
                )
            )
        if sampling.temperature <= 0:
            self._add(lib.llama_sampler_init_greedy())
        else:
            if sampling.top_k > 0:
                self._add(lib.llama_sampler_init_top_k(sampling.top_k))
            if sampling.top_p < 1:
                self._add(lib.llama_sampler_init_top_p(sampling.top_p, 1))
            if sampling.min_p > 0:
                self._add(lib.llama_sampler_init_min_p(sampling.min_p, 1))
            self._add(lib.llama_sampler_init_temp(sampling.temperature))
            seed = random.getrandbits(31) if sampling.seed is None else sampling.seed + choice
            self._add(lib.llama_sampler_init_dist(seed % _RANDOM_SEED))
        if grammar is not None:
            self._grammar = lib.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
            if not self._grammar:
                self.free()
                raise EngineError("input", "the grammar cannot be parsed; it must be GBNF with a rule named root")
            self._candidates = np.zeros(model.n_vocab, _CANDIDATE)
            self._end = model.end_token

    def _add(self, sampler: Any) -> None:
        lib.llama_sampler_chain_add(self._chain, sampler)

    def seen(self, prompt: Sequence[int]) -> None:
        """The prompt, whose end penalties count too."""
        if self._looks_back:
            for token in prompt[-self._looks_back :]:
                lib.llama_sampler_accept(self._chain, token)

    def choose(self, context: Any, row: int, logits: NDArray[np.float32]) -> int:
        """The next token, from row `row` of the context's last batch, whose logits are `logits`.

        Raises:
            EngineError: ``input``: all tokens that the grammar allows here are forbidden by biases.
        """
        if self.greedy:
            return int(logits.argmax())
        if self._grammar is None:
            return int(lib.llama_sampler_sample(self._chain, context, row))
        token = self._apply(logits, grammar=False)
        if not self._allowed(token):
            token = self._apply(logits, grammar=True)
            if not self._allowed(token) and self._allowed(self._end):
                return self._end  # the text is complete, though its end is forbidden
            if not self._allowed(token):  # to accept it would abort the process
                raise EngineError(
                    "input", "grammar: logit_bias forbids every token that it allows at this place of the text"
                )
        lib.llama_sampler_accept(self._grammar, token)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def _apply(self, logits: NDArray[np.float32], *, grammar: bool) -> int:
        candidates = self._candidates
        candidates["id"] = np.arange(len(candidates), dtype=np.int32)
        candidates["logit"] = logits
        candidates["p"] = 0
        array = _array(candidates)
        if grammar:
            lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _allowed(self, token: int) -> bool:
        if token < 0:  # the model has none
            return False
        one = np.zeros(1, _CANDIDATE)
        one["id"], one["logit"] = token, 1.0
        array = _array(one)
        lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(array.data[0].logit != float("-inf"))

    def free(self) -> None:
        """Give the library's objects back."""
        if self._chain is not None:
            lib.llama_sampler_free(self._chain)
            self._chain = None
        if self._grammar is not None:
            lib.llama_sampler_free(self._grammar)
            self._grammar = None


_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def _array(candidates: NDArray[Any]) -> Any:
    data = candidates.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
    return lib.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)


def _biases(model: Model, biases: dict[int, float]) -> Any:
    for token in biases:
        if not 0 <= token < model.n_vocab:
            raise EngineError("input", f"logit_bias: the model has no token {token}; it has {model.n_vocab:,}")
    values = (lib.llama_logit_bias * len(biases))()
    for number, (token, bias) in enumerate(biases.items()):
        values[number] = lib.llama_logit_bias(token=token, bias=float("-inf") if bias <= _FORBIDDEN else bias)
    return lib.llama_sampler_init_logit_bias(model.n_vocab, len(biases), values)


def logprob(model: Model, logits: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """The log probability of `token`, and those of the `top` likeliest, before any sampling."""
    shifted = logits - logits.max()
    total = float(np.log(np.exp(shifted, dtype=np.float64).sum()))
    best: list[tuple[str, float]] = []
    if top:
        indices = np.argpartition(shifted, -top)[-top:]
        ordered = indices[np.argsort(shifted[indices])[::-1]]
        best = [(_shown(model, int(index)), float(shifted[index]) - total) for index in ordered]
    return TokenLogprob(text=_shown(model, token), token=token, logprob=float(shifted[token]) - total, top=best)


def _shown(model: Model, token: int) -> str:
    return model.piece(token, special=True).decode("utf-8", "replace")
