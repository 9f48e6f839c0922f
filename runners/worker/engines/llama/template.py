"""From chat messages to a prompt, through the Jinja template that comes with a model.

Templates see what transformers shows them: ``messages``, ``tools``, ``bos_token``, ``eos_token``,
``add_generation_prompt``, the caller's own variables, ``raise_exception``, ``strftime_now``, ``tojson``. They run in
`runners.worker.engines.llama.sandbox`.

Content may be a text or a list of text parts. Which of the two a template wants cannot be read off its source, so it
is tried out: a short message is rendered in both forms. A template that cannot read a text gets parts; one that can
read parts gets what the caller gave; any other gets the parts' texts joined.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

from jinja2 import TemplateSyntaxError, meta
from jinja2.exceptions import SecurityError, UndefinedError

from runners.protocol.generation_check import check_messages, check_template_options, check_tools
from runners.worker.engines.base import EngineError
from runners.worker.engines.llama.meter import LimitExceeded, Meter, Refusal
from runners.worker.engines.llama.sandbox import Sandbox

MAX_SOURCE_BYTES: Final = 64 * 1024
#: Characters of a rendered prompt.
MAX_RENDERED: Final = 8 * 1024 * 1024
_MAX_REFUSAL = 500
_RESERVED = frozenset({
    "add_generation_prompt", "bos_token", "dict", "eos_token", "messages", "namespace", "raise_exception", "range",
    "strftime_now", "tools",
})  # fmt: skip
_PROBE = "a9f4probe7c1e"


class _TooMuch(EngineError):
    """The template needs more time or memory than one may."""


class ChatTemplate:
    """A chat template, ready to render. Not for several threads at once.

    Args:
        source: the template; None or empty if the model has none.
        bos: the text of the token that begins a sequence.
        eos: the text of the token that ends one.
        seconds: that one rendering may take.

    Attributes:
        knows_tools: whether it has a place for tools.
        takes_text: whether it reads content that is a text.
        takes_parts: whether it reads content that is a list of parts.

    Raises:
        EngineError: ``template``: there is none, it is too large, it is no Jinja, or too much for one short message.
    """

    def __init__(self, source: str | None, bos: str = "", eos: str = "", *, seconds: float = 2.0) -> None:
        if not source or not source.strip():
            message = "the model has no chat template: give one with template=, or use complete with a prompt"
            raise EngineError("template", message)
        size = len(source.encode("utf-8", "surrogatepass"))
        if size > MAX_SOURCE_BYTES:
            message = f"the chat template has {size:,} bytes; at most {MAX_SOURCE_BYTES:,} are taken"
            raise EngineError("template", message)
        self._source = source
        self._bos, self._eos = bos, eos
        self._seconds = seconds
        self._sandbox = Sandbox()
        self._sandbox.meter = Meter(seconds)
        try:
            tree = self._sandbox.parse(source)
            self.knows_tools = "tools" in meta.find_undeclared_variables(tree)
            self._template = self._sandbox.prepare(tree)
        except TemplateSyntaxError as error:
            # Its message may quote the template, which is no secret.
            what = f"is broken in line {error.lineno}: {str(error.message)[:200]}"
            raise EngineError("template", f"the chat template {what}; give another with template=") from None
        except (
            RecursionError,
            SyntaxError,
            MemoryError,
            ValueError,
            OverflowError,
            TypeError,
            AssertionError,
        ) as error:
            # Python's compiler has limits of its own for nesting and numbers.
            message = f"the chat template cannot be compiled: {type(error).__name__}; give another with template="
            raise EngineError("template", message) from None
        self.takes_text = self._reads(_PROBE)
        self.takes_parts = self._reads([{"type": "text", "text": _PROBE}])

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt.

        Raises:
            EngineError: ``input``: the messages, tools or options are malformed, or the template refuses them;
                ``template``: it fails, or takes too much time or memory.
        """
        options = dict(options or {})
        try:
            check_messages(messages)
            check_tools(tools)
            check_template_options(options)
        except ValueError as error:
            raise EngineError("input", str(error)) from None
        if taken := sorted(_RESERVED & options.keys()):
            raise EngineError("input", f"template_options: {taken[0]!r} is set by the engine")
        if tools and not self.knows_tools:
            message = "tools: the model's chat template has no place for tools; leave them out, or give template="
            raise EngineError("input", message)
        return self._render({
            **options,
            "messages": [self._in_its_form(message) for message in messages],
            "tools": tools or None,
            "add_generation_prompt": add_generation_prompt,
        })  # fmt: skip

    def _in_its_form(self, message: dict[str, Any]) -> dict[str, Any]:
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            message = {**message, "tool_calls": [_with_arguments(call) for call in calls]}
        content = message.get("content")
        if isinstance(content, list) and not self.takes_parts:
            return {**message, "content": "".join(part["text"] for part in content)}
        if isinstance(content, str) and self.takes_parts and not self.takes_text:
            return {**message, "content": [{"type": "text", "text": content}]}
        return message

    def _reads(self, content: object) -> bool:
        """Whether the text of `content` comes out, and not the way Python or JSON writes a list."""
        messages = [{"role": "user", "content": content}]
        try:
            out = self._render({"messages": messages, "tools": None, "add_generation_prompt": True})
        except _TooMuch:
            raise  # for one short message: no use with longer ones
        except EngineError:
            return False
        return _PROBE in out and f"'{_PROBE}'" not in out and f'"{_PROBE}"' not in out

    def _render(self, variables: dict[str, Any]) -> str:
        end = time.monotonic() + self._seconds
        self._sandbox.meter = Meter(self._seconds)
        context = self._template.new_context({**variables, "bos_token": self._bos, "eos_token": self._eos})
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.root_render_func(context):
                size += len(piece)
                if size > MAX_RENDERED:
                    raise LimitExceeded(f"writes more than {MAX_RENDERED:,} characters")  # noqa: TRY301
                if time.monotonic() > end:
                    raise LimitExceeded(f"takes longer than {self._seconds:g} s")  # noqa: TRY301
                pieces.append(piece)
        except Refusal as refusal:
            words = self._own_words(str(refusal))
            raise EngineError("input", f"the chat template refuses the messages: {words}") from None
        except LimitExceeded as error:
            raise _TooMuch("template", f"the chat template {error}; give another with template=") from None
        except Exception as error:
            raise EngineError("template", self._failure(error)) from None
        return "".join(pieces)

    def _own_words(self, text: str) -> str:
        """Of a refusal the longest beginning that stands in the template: the rest may be out of a message."""
        text = text[:_MAX_REFUSAL]
        if text in self._source:
            return text
        low, high = 0, len(text)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if text[:middle] in self._source else (low, middle)
        return f"{text[:low]}..."

    def _failure(self, error: Exception) -> str:
        # The error's own message may hold a piece of a prompt; its type and its place cannot.
        what = {UndefinedError: "a variable or field that is not there", SecurityError: "a step that is not allowed"}
        name = next((text for cls, text in what.items() if isinstance(error, cls)), type(error).__name__)
        line = self._line(error.__traceback__)
        place = f" in line {line}" if line is not None else ""
        return f"the chat template fails{place}: {name}; check the fields of the messages, or give template="

    def _line(self, trace: TracebackType | None) -> int | None:
        line = None
        while trace is not None:
            if trace.tb_frame.f_globals.get("__jinja_template__") is self._template:
                line = self._template.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        return line


def _with_arguments(call: Any) -> Any:
    """A call of an earlier turn, with its arguments as the dict that templates write as JSON themselves."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments := function.get("arguments"), str):
        return call
    try:
        read = json.loads(arguments)
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": read}} if isinstance(read, dict) else call
