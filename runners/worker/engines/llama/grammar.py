"""From a JSON schema to GBNF, the grammar that the sampler follows.

llama-cpp-python has a converter. It trusts its input, so here it gets only what it can take:

- ``$ref`` is looked up here, and only within the schema (``#/...``): nothing is fetched;
- how deep and how large a schema is, how far names add up, and how often something may be repeated is bounded;
- a ``pattern`` is brought to the few forms that it reads, for on others it runs for ever;
- texts with quotes, backslashes and letters beyond ASCII are written as JSON writes them, which it gets wrong;
- no text holds a raw control character, and no property takes the name of a built-in rule;
- each ``$ref`` has a rule of its own: by the last word of a path alone it would take one definition for another.

Keywords that it does not know are not enforced, among them ``minimum``, ``maximum``, ``multipleOf``, ``uniqueItems``,
``minProperties``, ``not``, ``if``, ``dependentRequired`` and, beside ``$ref``, ``anyOf``, ``oneOf`` or ``enum``,
anything else. Properties come in the order of the schema, and others only if ``additionalProperties`` allows them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from runners.protocol.generation_check import MAX_GRAMMAR_BYTES, check_schema
from runners.worker.engines.base import EngineError
from runners.worker.engines.llama.pattern import plain_pattern

#: Schemas within a schema, characters of all their paths together, and properties of one object.
MAX_PARTS, MAX_PATHS, MAX_PROPERTIES = 2_000, 512 * 1024, 200
#: One ``minItems`` or ``maxLength``: a bit less than what the library takes.
MAX_REPEAT = 500
_MAX_REPEATS = 10_000
#: What the converter makes of a schema, at most.
_MAX_GBNF = 4 * MAX_GRAMMAR_BYTES
_COUNTS = (("minItems", "maxItems"), ("minLength", "maxLength"))
_CHAR = r'[^"\\\x01-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F])'
_BUILTIN = frozenset({
    "array", "boolean", "char", "date", "date-string", "date-time", "date-time-string", "decimal-part", "integer",
    "integral-part", "null", "number", "object", "space", "string", "time", "time-string", "uuid", "value",
})  # fmt: skip
_NO_NAME = re.compile(r"[^a-zA-Z0-9-]+")
#: Keywords that the converter looks at before it counts.
_BEFORE_COUNTS = frozenset({
    "$ref", "additionalProperties", "allOf", "anyOf", "const", "enum", "format", "oneOf", "pattern", "prefixItems",
    "properties",
})  # fmt: skip


def to_gbnf(schema: dict[str, Any] | bool) -> str:  # noqa: FBT001 - True is a schema
    """The grammar of the JSON texts that `schema` describes; True: any object.

    Raises:
        EngineError: ``input``: it is no schema, or one that cannot be made a grammar; ``missing_extra``: no llama_cpp.
    """
    try:
        check_schema(schema)
        schema = {"type": "object"} if isinstance(schema, bool) else schema
        _Check(schema).all()
    except ValueError as error:
        raise EngineError("input", str(error)) from None
    try:
        from llama_cpp.llama_grammar import BuiltinRule, SchemaConverter  # noqa: PLC0415 - loads the library
    except ImportError as error:
        raise EngineError("missing_extra", error.name or "llama_cpp") from None
    try:
        grammar = _converter(SchemaConverter, BuiltinRule, json.dumps(schema))(schema)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, RecursionError) as error:
        reason = f"{type(error).__name__}; a part of it has a form that is not known"
        raise EngineError("input", f"json_schema: cannot be made a grammar: {reason}") from None
    if len(grammar) > _MAX_GBNF:
        raise EngineError("input", f"json_schema: makes a grammar of more than {_MAX_GBNF:,} characters")
    return grammar


def _converter(base: Any, builtin_rule: Any, text: str) -> Callable[[dict[str, Any]], str]:
    # No key holds it, so no other rule has such a name.
    prefix = "shared"
    while prefix in text:
        prefix += "d"

    class Converter(base):  # type: ignore[misc]
        def __init__(self, schema: dict[str, Any]) -> None:
            super().__init__(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
            self._refs = _Refs(schema)
            self._names: dict[str, str] = {}
            self._builtin = 0

        def _format_literal(self, literal: str) -> str:
            # `literal` is a value as JSON in ASCII.
            readable = json.dumps(json.loads(literal), ensure_ascii=False)
            escaped = readable.replace("\\", "\\\\").replace('"', '\\"')
            return f'"{escaped}"'

        def _generate_constant_rule(self, value: Any) -> str:
            return self._format_literal(json.dumps(value))

        def _add_primitive(self, name: str, rule: Any) -> str:
            if name == "char":
                # The converter's own lets control characters through, which no JSON text holds.
                rule = builtin_rule(_CHAR)
            self._builtin += 1
            added = str(super()._add_primitive(name, rule))
            self._builtin -= 1
            return added

        def _add_rule(self, name: str, rule: str) -> str:
            # Built-in rules name each other: a property must not take such a name, in whatever spelling.
            taken = not self._builtin and _NO_NAME.sub("-", name) in _BUILTIN
            return str(super()._add_rule(f"{name}-named" if taken else name, rule))

        def visit(self, schema: Any, name: str) -> str:
            # Counted repetitions as the library counts them: the converter nests a bracket for each, and the parser of
            # grammars calls itself for each bracket.
            if isinstance(schema, dict) and not _BEFORE_COUNTS & schema.keys():
                kind = schema.get("type")
                if kind == "string" and {"minLength", "maxLength"} & schema.keys():
                    self._add_primitive("char", None)
                    times = _times(schema.get("minLength", 0), schema.get("maxLength"))
                    return str(self._add_rule(name or "root", f'"\\"" char{times} "\\"" space'))
                if kind in (None, "array") and isinstance(schema.get("items"), dict):
                    item = self.visit(schema["items"], f"{name}-item" if name else "item")
                    items = _items(item, schema.get("minItems", 0), schema.get("maxItems"))
                    return str(self._add_rule(name or "root", f'"[" space {items} "]" space'))
            return str(super().visit(schema, name))

        def _visit_pattern(self, pattern: str, name: str) -> str:
            return str(super()._visit_pattern(plain_pattern(pattern)[0], name))

        def _resolve_ref(self, ref: str) -> str:
            if ref not in self._names:
                self._names[ref] = name = f"{prefix}-{len(self._names)}"
                self._names[ref] = self.visit(self._refs[ref], name)
            return self._names[ref]

    def convert(schema: dict[str, Any]) -> str:
        converter = Converter(schema)
        converter.visit(schema, "")
        return str(converter.format_grammar())

    return convert


class _Refs(dict[str, Any]):
    """The places in a schema, by their ``#/...``."""

    def __init__(self, schema: dict[str, Any]) -> None:
        super().__init__()
        self._schema = schema

    def __missing__(self, ref: str) -> Any:
        place: Any = self._schema
        for key in ref.removeprefix("#/").split("/"):
            key = unquote(key).replace("~1", "/").replace("~0", "~")  # noqa: PLW2901 - as it stands in the schema
            place = place[int(key)] if isinstance(place, list) else place[key]
        return place


def _times(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _items(item: str, least: int, most: int | None) -> str:
    if most == 0:
        return ""
    more = f'("," space {item}){_times(max(least - 1, 0), None if most is None else most - 1)}'
    if most == 1:
        more = ""
    return f"{item} {more}" if least else f"({item} {more})?"


class _Check:
    """What the converter would stumble over, run into, or fetch. Walks without calling itself."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._left: list[tuple[Any, int]] = [(schema, 0)]
        self._parts = self._paths = self._repeats = 0

    def all(self) -> None:
        """Raises ValueError with what cannot be taken."""
        while self._left:
            part, path = self._left.pop()
            if isinstance(part, list):
                self._left.extend((item, path + 8) for item in part)
                continue
            if not isinstance(part, dict):
                continue
            self._parts += 1
            self._paths += path
            if self._parts > MAX_PARTS:
                raise ValueError(f"json_schema: has more than {MAX_PARTS:,} parts")
            if self._paths > MAX_PATHS:
                raise ValueError("json_schema: names of properties within properties add up to too much; shorten them")
            self._one(part)
            # Also keys that hold no schema are walked: a $ref can point into any of them.
            self._left.extend((value, path + len(key) + 1) for key, value in part.items())

    def _one(self, part: dict[str, Any]) -> None:
        if "$ref" in part and not (isinstance(part["$ref"], str) and part["$ref"].startswith("#/")):
            raise ValueError('json_schema: "$ref" takes a place within the schema, "#/..."; nothing is fetched')
        for name in ("anyOf", "oneOf", "enum"):
            if name in part and not (isinstance(part[name], dict) or (isinstance(part[name], list) and part[name])):
                raise ValueError(f"json_schema: {name} takes a list that is not empty")
        properties = part.get("properties")
        if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
            raise ValueError(f"json_schema: an object has more than {MAX_PROPERTIES} properties")
        for low, high in _COUNTS:
            self._counts(part, low, high)
        if isinstance(part.get("pattern"), str):
            self._repeats += plain_pattern(part["pattern"])[1]
        if self._repeats > _MAX_REPEATS:
            raise ValueError(f"json_schema: repetitions add up to more than {_MAX_REPEATS:,}")

    def _counts(self, part: dict[str, Any], low: str, high: str) -> None:
        least, most = part.get(low, 0), part.get(high)
        # A property may have the keyword's name; then it is a schema.
        if isinstance(least, dict) or isinstance(most, dict):
            return
        for name, count in ((low, least), (high, most)):
            if count is None and name == high:
                continue
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_REPEAT:
                raise ValueError(f"json_schema: {name} takes a whole number from 0 to {MAX_REPEAT:,}")
        if most is not None and most < least:
            raise ValueError(f"json_schema: {high} is less than {low}")
        self._repeats += max(least, most or 0)
