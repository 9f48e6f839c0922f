"""From what a caller gives to token ids: templates, grammars, tokens."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from runners.protocol.generation import Chat, Complete, Sampling, Tokenize
from runners.protocol.generation_check import check, tool_names
from runners.worker.engines.base import EngineError
from runners.worker.engines.llama.grammar import to_gbnf
from runners.worker.engines.llama.literal import Literal, pieces
from runners.worker.engines.llama.template import ChatTemplate

if TYPE_CHECKING:
    from runners.worker.engines.llama.model import Model

#: Templates of callers that are kept compiled.
_TEMPLATES = 8


class Prompts:
    """One model's.

    Args:
        model: it.
        template: Jinja to be used instead of the file's own chat template.

    Raises:
        EngineError: ``bad_option``: `template` is no template. The file's own may be broken or missing: that is said
            when it is needed.
    """

    def __init__(self, model: Model, template: str | None) -> None:
        self._model = model
        self._bos, self._eos = model.text(model.begin_token), model.text(model.end_token)
        self._literal = Literal(model.controls())
        self._others: OrderedDict[str, ChatTemplate] = OrderedDict()
        self._own: ChatTemplate | EngineError
        try:
            self._own = self._compile(template if template is not None else model.chat_template)
        except EngineError as error:
            if template is not None:
                raise EngineError("bad_option", f"template: {error}") from error
            self._own = error

    @property
    def has_template(self) -> bool:
        """Whether `Chat` needs no template of the caller's."""
        return isinstance(self._own, ChatTemplate)

    def _compile(self, source: str | None) -> ChatTemplate:
        return ChatTemplate(source, self._bos, self._eos)

    def _template(self, source: str | None) -> ChatTemplate:
        if source is None:
            if isinstance(self._own, EngineError):
                raise EngineError(self._own.kind, str(self._own))
            return self._own
        found = self._others.get(source)
        if found is None:
            found = self._others[source] = self._compile(source)
            if len(self._others) > _TEMPLATES:
                self._others.popitem(last=False)
        self._others.move_to_end(source)
        return found

    def prompt(self, ask: Complete | Chat) -> list[int]:
        """The token ids to go on from.

        Raises:
            EngineError: ``input``, ``template``.
        """
        try:
            check(ask.sampling)
        except ValueError as error:
            raise EngineError("input", str(error)) from None
        if isinstance(ask, Chat):
            return self._chat(ask.messages, ask.tools, ask.template, ask.template_options)
        if isinstance(ask.prompt, str):
            tokens = self._model.tokenize(ask.prompt, special=False, begin=self._model.adds_begin)
        else:
            tokens = ask.prompt
            wrong = next((token for token in tokens if not 0 <= token < self._model.n_vocab), None)
            if wrong is not None:
                raise EngineError("input", f"prompt: the model has no token {wrong}; it has {self._model.n_vocab:,}")
        if not tokens:
            raise EngineError("input", "prompt: it is empty, and this model has no token that begins a text")
        return tokens

    def _chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        template: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> list[int]:
        text = self._template(template).render(self._literal.cut(messages), tools, options)
        begins = bool(self._bos) and text.startswith(self._bos)
        first, *others = pieces(text)
        tokens = self._model.tokenize(first, special=True, begin=self._model.adds_begin and not begins)
        for other in others:
            tokens += self._model.tokenize(other, special=True, begin=False)
        if not tokens:
            raise EngineError("input", "messages: the chat template makes an empty prompt of them")
        return tokens

    def tokens(self, ask: Tokenize) -> list[int]:
        """Of a text, or of messages.

        Raises:
            EngineError: ``input``, ``template``.
        """
        if ask.messages is not None:
            return self._chat(ask.messages)
        return self._model.tokenize(ask.text or "", special=ask.special, begin=False)

    def grammar(self, sampling: Sampling) -> str | None:
        """GBNF, or None for free text.

        Raises:
            EngineError: ``input``: the schema cannot be made one.
        """
        if sampling.json_schema is not None:
            return to_gbnf(sampling.json_schema)
        return sampling.grammar

    def tool_names(self, tools: list[dict[str, Any]]) -> list[str]:
        """The names of the functions that may be called."""
        return tool_names(tools)
