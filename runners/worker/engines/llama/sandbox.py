"""A Jinja environment in which a hostile template reads its variables, and uses a bounded amount of time and memory.

A template comes with the model file. It is a program: it may loop for ever, double a text forty times, or look for a
way from a string to the operating system. Here

- only listed attributes, filters and functions exist, and nothing can be changed;
- each pass of a loop, each call, filter and operator looks at the clock;
- each text and list that is made is charged to one allowance; what could make a huge one in a single step (``*``,
  ``**``, ``%``, join, replace, indent, ``format``) is measured before it is made;
- containers are measured, with all they hold, before they are written or compared: forty lists of two, each in the
  next, are small and have a trillion leaves.

What cannot be bounded from inside: one single operation on data within the allowance (sorting a list of some hundred
thousand texts takes a second after the deadline), and the time to compile a template of the largest size.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from runners.worker.engines.llama.meter import ELEMENT, LimitExceeded, Meter, Metered, Refusal

_STR = frozenset({
    "capitalize", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition",
    "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split",
    "splitlines", "startswith", "strip", "swapcase", "title", "upper",
})  # fmt: skip
_LOOP = frozenset({
    "changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem",
    "revindex", "revindex0",
})  # fmt: skip
#: Attributes of each type that a template can read.
_ATTRIBUTES: tuple[tuple[type, frozenset[str]], ...] = (
    (str, _STR),
    (dict, frozenset({"get", "items", "keys", "values"})),
    (list, frozenset({"count", "index"})),
    (tuple, frozenset({"count", "grouper", "index", "list"})),
    (LoopContext, _LOOP),
)
#: Jinja's own filters that stay; those that write their argument, and those that compare what is in it.
_WRITING = frozenset({
    "capitalize", "e", "escape", "indent", "lower", "replace", "safe", "string", "striptags", "title", "trim", "upper",
    "wordcount",
})  # fmt: skip
_COMPARING = frozenset({"dictsort", "groupby", "max", "min", "sort", "unique"})
_FILTERS = _WRITING | _COMPARING | {
    "abs", "count", "d", "default", "first", "float", "int", "items", "last", "length", "list", "map", "reject",
    "rejectattr", "reverse", "select", "selectattr",
}  # fmt: skip
_COMPARING_TESTS = frozenset({
    "!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan", "lt", "ne",
})  # fmt: skip
_DROPPED_TESTS = ("callable", "filter", "test")
_WIDE = re.compile(r"\d{4}|\*")
_WIDE_PERCENT = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(?:\d{4}|\*|\d*\.(?:\d{4}|\*))")


class _Generation(Extension):
    """``{% generation %}``: marks what a model has written, for training. Here only its contents count."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """Renders templates under a meter. Not for several threads at once.

    Attributes:
        meter: of the rendering that runs.
    """

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            optimized=False,  # it would compute constants while compiling, before there is a meter
            cache_size=0,
        )
        self.meter = Meter(0)
        self.finalize = self._finalizer()
        kept = {name: self._filter(name, self.filters[name]) for name in _FILTERS}
        self.filters.clear()
        self.filters.update(kept, tojson=self._tojson, join=self._join_filter(), round=self._round, sum=self._sum)
        for name in _DROPPED_TESTS:
            del self.tests[name]
        for name in _COMPARING_TESTS:
            test: Any = self.tests[name]
            self.tests[name] = self._test(test)
        known = {name: self.globals[name] for name in ("dict", "namespace", "range")}
        self.globals.clear()
        self.globals.update(known, raise_exception=_raise_exception, strftime_now=_strftime_now)
        self.policies.clear()

    def prepare(self, tree: nodes.Template) -> jinja2.Template:
        """Compile a parsed template with the meter in it. `tree` is changed."""
        code = self.compile(Metered().visit(tree))
        return jinja2.Template.from_code(self, code, self.make_globals(None))

    # What generated code calls.

    def ticking(self, values: Iterable[Any]) -> Iterator[Any]:
        """`values`, with a look at the clock at each."""
        for value in values:
            self.meter.tick()
            yield value

    def joined(self, values: list[Any]) -> str:
        """The operands of ``~``."""
        return self._join(values, "")

    def same(self, value: Any) -> Any:
        """`value`; its size is charged as that of any result of a call."""
        return value

    def weighed(self, value: Any) -> Any:
        """`value`, if it is small enough to compare."""
        if isinstance(value, list | tuple | dict):
            self.meter.weigh(value)
        return value

    def concat(self, pieces: Iterable[str]) -> str:
        """What a macro or a block has written."""
        pieces = list(pieces)
        self.meter.charge(sum(map(len, pieces)))
        return "".join(pieces)

    # What the sandbox asks.

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ARG002 - as Jinja calls it
        """Only listed attributes of a few types."""
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return any(isinstance(obj, cls) and attr in names for cls, names in _ATTRIBUTES)

    def wrap_str_format(self, value: Any) -> Any:
        """``str.format`` with its arguments measured, and without a width that fills memory."""
        formatting = super().wrap_str_format(value)
        if formatting is None:
            return None

        def measured(*args: Any, **kwargs: Any) -> str:
            template: str = value.__self__
            if _WIDE.search(template) or re.search(r":[^}]*\{", template) or value.__name__ == "format_map":
                raise SecurityError("a format with a width of 1,000 and more, or one to be computed, is not taken")
            weight = self.meter.weigh([*args, *kwargs.values()])
            self.meter.charge(len(template) + weight * (1 + template.count("{")))
            return str(formatting(*args, **kwargs))

        return measured

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call that a template makes."""
        self.meter.tick()
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            name = function.__name__
            if name == "join" and len(args) == 1 and not kwargs:
                return self._join(list(args[0]), owner)
            if name == "replace":
                self._check_replace(owner, *args[:2])
            elif name in ("count", "index") and args:
                self.weighed(args[0])
        elif isinstance(owner, list | tuple):
            self.weighed(owner)
            self.weighed(args[0] if args else None)
        return self.meter.made(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Every arithmetic operator."""
        self.meter.tick()
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    size = len(many) * max(times, 0)
                    self.meter.charge(size if isinstance(many, str) else size * ELEMENT)
        elif operator == "**":
            small = all(isinstance(n, float) or (isinstance(n, int) and abs(n) <= 2**31) for n in (left, right))
            if not small or (isinstance(right, int) and abs(right) > 64):
                raise LimitExceeded("raises to a power above 64")
        elif operator == "%" and isinstance(left, str):
            if _WIDE_PERCENT.search(left):
                raise SecurityError("a format with a width of 1,000 and more, or one to be computed, is not taken")
            self.meter.charge(len(left) + self.meter.weigh(right) * (1 + left.count("%")))
        return self.meter.made(super().call_binop(context, operator, left, right))

    # Filters and tests.

    def _finalizer(self) -> Callable[..., Any]:
        @jinja2.pass_environment  # so it is not called while compiling
        def finalize(_environment: jinja2.Environment, value: Any) -> Any:
            self.meter.tick()
            if not isinstance(value, str):
                self.meter.charge(self.meter.weigh(value))
            return value

        return finalize

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            self.meter.tick()
            value, *more = args[skip:]
            if name in _COMPARING and not isinstance(value, str):
                value = self.made_list(value) if not isinstance(value, dict) else value
                self.meter.weigh(value)
            elif name in _WRITING and not isinstance(value, str):
                self.meter.charge(self.meter.weigh(value))
            if name == "replace":
                value = value if isinstance(value, str) else str(value)
                self._check_replace(value, *more[:2])
            elif name == "indent":
                self._check_indent(value, *more, **kwargs)
            elif name == "list":
                return self.made_list(value)
            return self.meter.made(function(*args[:skip], value, *more, **kwargs))

        return metered

    def _test(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def metered(*args: Any) -> Any:
            self.meter.tick()
            for value in args:
                self.weighed(value)
            return function(*args)

        return metered

    def made_list(self, values: Iterable[Any]) -> list[Any]:
        """`values` as a list, charged element by element."""
        result = []
        for value in values:
            self.meter.charge(ELEMENT)
            result.append(value)
        return result

    def _join_filter(self) -> Callable[..., str]:
        @jinja2.pass_environment  # so it is not called while compiling
        def join(environment: Any, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
            if attribute is not None:
                value = (environment.getattr(item, str(attribute)) for item in value)
            return self._join(self.made_list(value), d)

        return cast("Callable[..., str]", join)

    def _join(self, values: list[Any], separator: Any) -> str:
        for value in (*values, separator):
            self.meter.charge(self.meter.weigh(value) + 1)
        between = str(separator)
        self.meter.charge(len(between) * len(values))
        return between.join(map(str, values))

    def _check_replace(self, text: str, old: Any = "", new: Any = "") -> None:
        self.meter.charge(self.meter.weigh(old) + self.meter.weigh(new))
        old, new = str(old), str(new)
        times = text.count(old) if old else len(text) + 1
        self.meter.charge(len(text) + times * len(new))

    def _check_indent(self, value: Any, width: Any = 4, *_: Any, **kwargs: Any) -> None:
        width = kwargs.get("width", width)
        if not isinstance(width, int | str) or (len(width) if isinstance(width, str) else width) > 1000:
            raise SecurityError("an indent of more than 1,000 is not taken")
        lines = str(value).count("\n") + 1
        self.meter.charge(lines * (len(width) if isinstance(width, str) else max(width, 0)))

    def _round(self, value: Any, precision: int = 0, method: str = "common") -> float:
        if not isinstance(precision, int) or abs(precision) > 20:
            raise SecurityError("round: a precision of more than 20 is not taken")
        return float(jinja2.filters.do_round(value, precision, method))  # type: ignore[arg-type]

    def _sum(self, values: Iterable[Any], attribute: str | None = None, start: float = 0) -> float:
        total = start
        for value in values:
            self.meter.tick()
            number = self.getattr(value, attribute) if attribute is not None else value
            if not isinstance(number, int | float) or not isinstance(total, int | float):
                raise TypeError("sum: takes numbers")
            total += number
        return total

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - as chat templates call it
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,  # noqa: FBT001, FBT002
    ) -> str:
        """JSON without the escapes that Jinja's own filter makes for HTML."""
        if not (indent is None or (isinstance(indent, int) and indent <= 16) or isinstance(indent, str)):
            raise SecurityError("tojson: an indent of more than 16 is not taken")
        if isinstance(indent, str) and len(indent) > 16:
            raise SecurityError("tojson: an indent of more than 16 is not taken")
        if separators is not None and any(len(text) > 16 for text in separators):
            raise SecurityError("tojson: separators of more than 16 characters are not taken")
        self.meter.charge(self.meter.weigh(value))
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        self.meter.charge(len(text))
        return text


def _raise_exception(message: object) -> None:
    raise Refusal(message if isinstance(message, str) else type(message).__name__)


def _strftime_now(form: str) -> str:
    if not isinstance(form, str) or len(form) > 200 or _WIDE.search(form):
        raise SecurityError("strftime_now: takes a format of at most 200 characters, without widths")
    return datetime.now().astimezone().strftime(form)
