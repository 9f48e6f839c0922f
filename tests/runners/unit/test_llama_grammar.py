"""JSON schemas to grammars: what they let through, and hostile ones."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runners.worker.engines.base import EngineError
from runners.worker.engines.llama.pattern import plain_pattern

pytest.importorskip("llama_cpp")

from runners.worker.engines.llama.grammar import to_gbnf

_TOKEN = re.compile(r'\s+|"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|::=|[()|*+?]|\{\d*,?\d*\}|[\w-]+')
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|.)", re.DOTALL)


class Matcher:
    """A grammar in Python: which texts it takes. Sets of places instead of backtracking."""

    def __init__(self, gbnf):
        self.rules = {}
        self.memo = {}
        for line in gbnf.splitlines():
            name, rule = line.split(" ::= ", 1)
            tokens = [token for token in _TOKEN.findall(rule) if not token.isspace()]
            self.rules[name], rest = self.parse(tokens, 0)
            assert rest == len(tokens)

    def parse(self, tokens, at):
        alternatives, sequence = [], []
        while at < len(tokens) and tokens[at] != ")":
            token = tokens[at]
            at += 1
            if token == "|":
                alternatives.append(sequence)
                sequence = []
            elif token == "(":
                inner, at = self.parse(tokens, at)
                assert tokens[at] == ")"
                at += 1
                sequence.append(("any", inner))
            elif token in "*+?":
                low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[token]
                sequence[-1] = ("times", sequence[-1], low, high)
            elif token[0] == "{":
                low, _, high = token[1:-1].partition(",")
                high = None if "," in token and not high else int(high or low)
                sequence[-1] = ("times", sequence[-1], int(low), high)
            elif token[0] == '"':
                sequence.append(("text", _ESCAPE.sub(self.unescape, token[1:-1])))
            elif token[0] == "[":
                sequence.append(("set", re.compile(token)))
            else:
                sequence.append(("rule", token))
        return [*alternatives, sequence], at

    @staticmethod
    def unescape(match):
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) == 3 else {"n": "\n", "r": "\r", "t": "\t"}.get(code, code)

    def ends(self, item, text, at):
        kind = item[0]
        if kind == "text":
            return {at + len(item[1])} if text.startswith(item[1], at) else set()
        if kind == "set":
            return {at + 1} if at < len(text) and item[1].match(text[at]) else set()
        if kind == "rule":
            key = (item[1], text, at)
            if key not in self.memo:
                self.memo[key] = self.any(self.rules[item[1]], text, at)
            return self.memo[key]
        if kind == "any":
            return self.any(item[1], text, at)
        _, inner, low, high = item
        places, out, count = {at}, {at} if low == 0 else set(), 0
        while places and (high is None or count < high):
            places = {end for place in places for end in self.ends(inner, text, place)} - out
            count += 1
            if count >= low:
                out |= places
        return out

    def any(self, alternatives, text, at):
        out = set()
        for sequence in alternatives:
            places = {at}
            for item in sequence:
                places = {end for place in places for end in self.ends(item, text, place)}
            out |= places
        return out

    def takes(self, text):
        return len(text) in self.ends(("rule", "root"), text, 0)


def takes(schema, text):
    return Matcher(to_gbnf(schema)).takes(text)


def written(value):
    return json.dumps(value, ensure_ascii=False)


SCHEMAS = [
    (True, [{}, {"a": [1, "x", None, {"b": 1.5}]}], [[], 1, "a"]),
    ({"type": "object"}, [{}, {"é": -1}], [[]]),
    ({"type": "integer"}, [0, -12, 123], ["1", 1.5, None]),
    ({"type": ["string", "null"]}, ["", 'q"\\é\n', None], [1]),
    ({"const": 'q"\\\né'}, ['q"\\\né'], ["q", 'q"']),
    ({"enum": ["a", 1, None, 'é"', {"b": []}]}, ["a", 1, None, 'é"', {"b": []}], ["b", 2]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "abc", 'é"'], ["a", "abcd"]),
    ({"type": "array", "items": {"type": "integer"}}, [[], [1], [1, 2, 3]], [["a"], 1]),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}, [[1, 2], [1] * 3], [[1], [1] * 4]),
    ({"type": "array", "items": {"type": "integer"}, "maxItems": 1}, [[], [1]], [[1, 1]]),
    ({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, [[]], [[1]]),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, [[1], [1] * 5], [[]]),
    ({"prefixItems": [{"type": "integer"}, {"type": "string"}]}, [[1, "a"]], [[1], ["a", 1]]),
    (
        {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"]},
        [{"a": 1}, {"a": 1, "b": "x"}],
        [{}, {"b": "x"}, {"a": 1, "c": 1}],
    ),
    ({"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, [1, True], ["a"]),
    ({"type": "string", "format": "date"}, ["2026-01-31"], ["2026-13-01"]),
    ({"type": "string", "pattern": r"^\d{3}-[A-Z_]+\.x$"}, ["123-A_B.x"], ["123-.x", "12-A.x", "123-Axx"]),
    ({"type": "string", "pattern": "^ab|c$"}, ["ab", "c"], ["a", "abc", "ac"]),
    ({"type": "string", "pattern": "^.[^a]$"}, ["xé"], ['"b', "x\\", "xa", "x\n"]),
    (
        {"$ref": "#/$defs/node", "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}}},
        [{}, {"next": {}}, {"next": {"next": {}}}],
        [{"next": 1}],
    ),
    (
        {
            "properties": {"p": {"$ref": "#/$defs/p/x"}, "q": {"$ref": "#/$defs/q/x"}},
            "required": ["p", "q"],
            "$defs": {"p": {"x": {"type": "integer"}}, "q": {"x": {"type": "string"}}},
        },
        [{"p": 1, "q": "a"}],
        [{"p": 1, "q": 1}, {"p": "a", "q": "a"}],
    ),
    (
        {"properties": {k: {"const": n} for n, k in enumerate(("string", "date_time", "char", "é", "a b", "a-b"))}},
        [{"string": 0}, {"string": 0, "date_time": 1, "char": 2, "é": 3, "a b": 4, "a-b": 5}, {"a-b": 5}],
        [{"a-b": 4}, {"string": "x"}],
    ),
    (
        {"properties": {"string": {"type": "string", "maxLength": 1}, "x": {"type": "object"}}},
        [{"string": "a", "x": {"long key": "long text"}}],
        [{"string": "ab"}],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), SCHEMAS)
def test_what_a_grammar_takes(schema, good, bad):
    matcher = Matcher(to_gbnf(schema))
    for value in good:
        assert matcher.takes(written(value)), value
    for value in bad:
        assert not matcher.takes(written(value)), value


@pytest.mark.parametrize(("schema", "good", "bad"), SCHEMAS)
def test_the_library_reads_the_grammar(schema, good, bad):
    import llama_cpp

    sampler = llama_cpp.llama_sampler_init_grammar(None, to_gbnf(schema).encode(), b"root")
    assert sampler
    llama_cpp.llama_sampler_free(sampler)


def test_raw_control_characters_are_in_no_text():
    assert not takes({"type": "string"}, '"a\nb"')
    assert takes({"type": "string"}, '"a\\nb"')


@given(st.recursive(st.none() | st.booleans() | st.integers(-999, 999) | st.text(max_size=5), st.lists, max_leaves=5))
@settings(max_examples=50)
def test_a_constant_takes_its_own_text(value):
    assert takes({"const": value}, written(value))


def refused(schema):
    start = time.process_time()
    with pytest.raises(EngineError, match="json_schema") as caught:
        to_gbnf(schema)
    assert caught.value.kind == "input"
    assert time.process_time() - start < 2
    return str(caught.value)


@pytest.mark.parametrize("ref", ["https://example.com/s.json", "http://localhost/s", "file:///etc/passwd", "#", "x", 7])
def test_nothing_is_fetched(ref):
    assert "nothing is fetched" in refused({"properties": {"a": {"$ref": ref}}})


def nested(levels, wrap):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = wrap(schema)
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        False,
        "object",
        nested(100_000, lambda inner: {"items": inner}),
        nested(70, lambda inner: {"properties": {"a": inner}}),
        {"properties": {f"p{n}": {"type": "integer"} for n in range(201)}},
        {"properties": {f"{n}" * 500: nested(20, lambda inner: {"properties": {"k" * 50: inner}}) for n in range(50)}},
        {"anyOf": [{"type": "integer"}] * 3000},
        {"anyOf": []},
        {"enum": []},
        {"enum": 7},
        {"type": "weird"},
        {"$ref": "#/nowhere"},
        {"items": {"type": "integer"}, "maxItems": 10**9},
        {"items": {"type": "integer"}, "minItems": 2, "maxItems": 1},
        {"type": "string", "minLength": -1},
        {"type": "string", "maxLength": True},
        {"anyOf": [{"type": "string", "maxLength": 500}] * 30},
        {"properties": {"a": 7}},
        {"properties": [1]},
        {"items": [7]},
        {"type": "string", "pattern": "^" + "(" * 500 + "a" + ")" * 500 + "$"},
        *[
            {"type": "string", "pattern": p}
            for p in ("a", "^]$", "^}$", "^a{1000000000}$", "^a{2,1}$", "^*$", "^(?=a)$")
        ],
        *[
            {"type": "string", "pattern": p}
            for p in ("^a**$", '^"$', "^\\\\$", "^[]$", "^[a$", "^(a$", "^a)$", "^\\b$")
        ],
        *[{"type": "string", "pattern": p} for p in ("^[!-~]$", "^a|$", "^(|a)$", "^$a$", "^\\$", "^[[]$", "^\x01$")],
    ],
    ids=range(43),
)
def test_a_hostile_schema_is_refused_in_time(schema):
    refused(schema)


@example("^[1-.]$")
@given(st.text('ab^$[](){}|*+?.\\d-"1,', max_size=12).map(lambda body: f"^{body}$"))
@settings(max_examples=200)
def test_any_pattern_is_refused_or_means_what_it_says(pattern):
    import llama_cpp

    try:
        plain_pattern(pattern)
    except ValueError:
        return
    compiled = re.compile(pattern)
    gbnf = to_gbnf({"type": "string", "pattern": pattern})
    sampler = llama_cpp.llama_sampler_init_grammar(None, gbnf.encode(), b"root")
    assert sampler
    llama_cpp.llama_sampler_free(sampler)
    matcher = Matcher(gbnf)
    for text in ("", "a", "b", "ab", "aa", "1", "-", ",", "d", "a1", "[", "^", "."):
        assert matcher.takes(f'"{text}"') == (compiled.fullmatch(text) is not None), text


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["type", "items", "properties", "anyOf", "enum", "$ref", "pattern", "minItems", "allOf",
                         "additionalProperties", "required", "const", "format", "maxLength", "prefixItems", "a"]),
        inner | st.sampled_from(["string", "object", "array", "#/a", "^a$"]), max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["type", "items", "properties", "anyOf", "allOf", "$ref", "a"]), JSONISH))
@settings(max_examples=200)
def test_any_json_is_a_grammar_or_an_input_error(schema):
    before = json.dumps(schema)
    try:
        assert "root ::=" in to_gbnf(schema)
    except EngineError as error:
        assert error.kind == "input"  # noqa: PT017 - either is right
    assert json.dumps(schema) == before
