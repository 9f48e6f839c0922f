"""Chat templates: the essential forms of real ones, and hostile ones."""

# ruff: noqa: E501 - a template on one line is easier to read

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("jinja2")

from runners.worker.engines.base import EngineError
from runners.worker.engines.llama.sandbox import Sandbox
from runners.worker.engines.llama.template import ChatTemplate

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}
"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n<tools>' }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- set ns = namespace(calls=0) %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role }}
    {%- if message.content %}{{- '\n' + message.content }}{%- endif %}
    {%- for tool_call in message.tool_calls %}
        {%- set ns.calls = ns.calls + 1 %}
        {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
        {{- '\n<tool_call>\n{"name": "' ~ tool_call.name ~ '", "arguments": ' ~ tool_call.arguments | tojson ~ '}' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and
enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}
"""
PARTS_ONLY = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}|{% endfor %}"
HELLO = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "<é>"}}


def fails(source, messages=HELLO, *, seconds=0.1, **more):
    """The error of a template, which comes soon: in processor time, whatever else the machine does."""
    start = time.process_time()
    with pytest.raises(EngineError) as caught:
        ChatTemplate(source, "<s>", "</s>", seconds=seconds).render(messages, **more)
    assert time.process_time() - start < 5
    return caught.value


def test_chatml():
    template = ChatTemplate(CHATML)
    assert template.render(HELLO) == (
        "<|im_start|>system\nYou are helpful<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not template.render(HELLO, add_generation_prompt=False).endswith("assistant\n")
    assert (template.knows_tools, template.takes_text, template.takes_parts) == (False, True, False)


def test_gemma():
    template = ChatTemplate(GEMMA, "<bos>", "<eos>")
    assert (template.knows_tools, template.takes_text, template.takes_parts) == (False, True, True)
    parts = [{"type": "text", "text": "he"}, {"type": "text", "text": "llo "}]
    for content in ("hello", parts):
        messages = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": content}]
        assert template.render(messages) == (
            "<bos><start_of_turn>user\nBe kind\n\nhello<end_of_turn>\n<start_of_turn>model\n"
        )


def test_qwen_with_tools():
    template = ChatTemplate(QWEN)
    assert template.knows_tools
    call = {"id": "x", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert template.render(messages, [TOOL], {"enable_thinking": False}) == (
        "<|im_start|>system\n# Tools\n<tools>\n"
        '{"type": "function", "function": {"name": "weather", "description": "<é>"}}\n</tools><|im_end|>\n'
        "<|im_start|>user\nhello<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}<|im_end|>\n'
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_content_in_the_form_that_the_template_reads():
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert "user\nab<|im_end|>" in ChatTemplate(CHATML).render(parts)
    template = ChatTemplate(PARTS_ONLY)
    assert (template.takes_text, template.takes_parts) == (False, True)
    assert template.render(HELLO) == "hello|"
    assert template.render(parts) == "ab|"


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("  {% if true %}\na\n  {% endif %}\nb", "a\nb"),
        ("{% generation %}a{{ bos_token }}{% endgeneration %}{{ eos_token }}", "a<s></s>"),
        ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{{ [1, '<é>', none] | tojson }}{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '[1, "<é>", null]{\n "a": 2,\n "b": 1\n}'),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% macro f(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ f(1) }}{{ f(1, y=3) | upper }}", "<12><13>"),
        ("{% set ns = namespace(a=[]) %}{% for m in messages %}{% set ns.a = ns.a + [m.role] %}{% endfor %}{{ ns.a | join('-') }}", "user"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | length }}", "1"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{% for k, v in {'b': 2} | items %}{{ k }}{% endfor %}", "a1b"),
        ("{% for x in [1, 2] %}{{ loop.index }}{{ loop.last }}{{ loop.previtem }}{% else %}none{% endfor %}", "1False2True1"),
        ("{% for x in nothing %}x{% else %}none{% endfor %}{{ nothing is defined }}", "noneFalse"),
        ("{{ 'a-b'.split('-') | last }}{{ 'abc'[::-1] }}{{ ' x '.strip() }}{{ 'aXb'.replace('X', '.') }}", "bcbaxa.b"),
        ("{{ '%s=%d' % ('a', 3) }} {{ '{}-{x}'.format(1, x=2) }} {{ 2 ** 5 + 7 // 2 * 2 % 4 }}", "a=3 1-2 34"),
        ("{{ 'a' in 'abc' and 1 < 2 <= 2 and 'role' in messages[0] and messages[0] == messages[-1] }}", "True"),
        ("{{ [3, 1, 2] | sort | join }}{{ [1, 2] | sum }}{{ 2.6 | round | int }}{{ 'x' | indent(2, true) }}{{ (1, 2) | first }}", "12333  x1"),
        ("{% for x in [[1, [2]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}", "12"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x ~ 2 ~ none }}{{ messages.0.content or 'z' }}", "a12Nonehello"),
        ("{{ dict(a=1).get('b', 'no') }}{{ '' | default('d', true) }}{{ messages | map(attribute='role') | unique | join }}", "noduser"),
    ],
)  # fmt: skip
def test_what_templates_use(source, out):
    assert ChatTemplate(source, "<s>", "</s>").render(HELLO) == out


@pytest.mark.parametrize("source", [None, "", "  \n"])
def test_a_model_without_a_template(source):
    error = fails(source)
    assert error.kind == "template"
    assert "template=" in str(error)


def test_a_refusal_is_shown_in_the_templates_own_words():
    error = fails(GEMMA, [{"role": "assistant", "content": "my secret"}])
    assert error.kind == "input"
    assert "Conversation roles must alternate user/assistant/user/assistant/..." in str(error)
    error = fails(
        "{{ raise_exception('Bad text: ' + messages[0].content) }}", [{"role": "user", "content": "my secret"}]
    )
    assert error.kind == "input"
    assert str(error).endswith("Bad text: ...")


@pytest.mark.parametrize(
    "source",
    [
        "\n{{ messages[0].content + 1 }}",
        "\n{{ messages[0][messages[0].content].x }}",
        "\n{{ messages[0].content | map('no such' ~ messages[0].content) | list }}",
        "\n{{ [1] | map(messages[0].content) | list }}",
        "\n{{ {}[messages].x }}",
        "\n{% include messages[0].content %}",
    ],
)
def test_a_failure_names_the_line_and_no_prompt(source):
    error = fails(source, [{"role": "user", "content": "my secret"}])
    assert error.kind == "template"
    assert "secret" not in str(error)
    assert "line 2" in str(error)


DOUBLING = "{%% set ns = namespace(x=%s, y=%s) %%}{%% for i in range(60) %%}{%% set ns.x = %s %%}{%% set ns.y = %s %%}{%% endfor %%}"


def doubling(start, step, use):
    return DOUBLING % (start, start, step % ("ns.x", "ns.x"), step % ("ns.y", "ns.y")) + use


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) if false %}{% endfor %}" * 200,
        "{% block a %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endblock %}",
        "{% for i in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
        "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% set x %}{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endset %}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ 10 ** 9 * [1] }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
        "{{ ('a' * 100000).replace('', 'b' * 100000) }}",
        "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
        "{{ ('b' * 100000).join(range(99999)) }}",
        "{{ range(99999) | join('b' * 100000) }}",
        "{{ ('\n' * 1000000) | indent(1000) }}",
        "{{ ('%s' * 10000) % ((('x' * 100000),) * 10000) }}",
        "{{ ('{0}' * 10000).format('x' * 100000) }}",
        doubling("'ab'", "%s + %s", ""),
        doubling("'ab'", "%s ~ %s", ""),
        doubling("[1]", "%s + %s", ""),
        doubling("[1]", "[%s, %s]", "{{ ns.x }}"),
        doubling("[1]", "[%s, %s]", "{{ ns.x | tojson }}"),
        doubling("[1]", "[%s, %s]", "{{ ns.x | string }}"),
        doubling("[1]", "[%s, %s]", "{{ [ns.x] | join }}"),
        doubling("[1]", "[%s, %s]", "{{ 'a' ~ ns.x }}"),
        doubling("[1]", "[%s, %s]", "{{ '%s' % [ns.x] }}"),
        doubling("[1]", "[%s, %s]", "{{ '{}'.format(ns.x) }}"),
        doubling("[1]", "[%s, %s]", "{{ ns.x == ns.y }}"),
        doubling("[1]", "[%s, %s]", "{{ ns.x in [ns.y] }}"),
        doubling("[1]", "[%s, %s]", "{{ ns.x is eq(ns.y) }}"),
        doubling("[1]", "[%s, %s]", "{{ [ns.x, ns.y] | sort }}"),
        doubling("[1]", "[%s, %s]", "{{ [ns.x].index(ns.y) }}"),
        doubling("(1,)", "(%s, %s)", "{{ {ns.x: 1} }}"),
    ],
    ids=range(35),
)
def test_a_template_that_takes_too_much(source):
    error = fails(source)
    assert error.kind == "template"
    assert any(word in str(error) for word in ("takes longer", "more than", "power"))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.x }}",
        "{{ ''['__class__'].x }}",
        "{{ messages.__class__.x }}",
        "{{ range.__self__.x }}",
        "{{ raise_exception.__globals__.x }}",
        "{{ messages.append.__self__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ messages[0].pop('role') }}",
        "{{ self._TemplateReference__context.x }}",
        "{% macro f() %}{% endmacro %}{{ f._environment.x }}",
        "{% for x in [1] %}{{ loop._iterable.x }}{% endfor %}",
        "{{ namespace.__init__.x }}",
        "{{ dict.mro() }}",
        "{{ '{0.__class__}'.format(1)[0].x }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%.*f' % (1000000000, 1) }}",
        "{{ 'x'.center(1000000000) }}",
        "{{ 'x'.zfill(1000000000) }}",
        "{{ 'x'.encode() }}",
        "{{ 1.5 | round(1000000000, 'ceil') }}",
        "{{ 'x' | indent(1000000000) }}",
        "{{ [1] | tojson(indent=1000000000) }}",
        "{{ strftime_now('%1000000000d') }}",
        "{{ [[]] | sum(start=[]) }}",
        "{{ range }}",
        "{{ namespace(a=1) }}",
        "{{ cycler(1) }}",
        "{{ lipsum() }}",
        "{{ 'x' | attr('__class__') }}",
        "{{ 'x' | center(100) }}",
        "{% include 'x' %}",
        "{% import 'x' as x %}",
        "{% extends 'x' %}",
    ],
)
def test_a_template_that_reaches_out(source):
    assert fails(source).kind == "template"


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{",
        "{% unknown %}",
        "{% break %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "-" * 50_000 + "1 }}",
        "{{ " + "a." * 30_000 + "a }}",
        "{{ 1" + "+1" * 30_000 + " }}",
        "{{ " + "9" * 60_000 + " }}",
        "{% if 1 %}" * 150 + "{% endif %}" * 150,
        "{% for x in y %}" * 30 + "{% endfor %}" * 30 + "{{ a.b.c }}",
        "x" * 70_000,
        "\ud800{{ a.b.c }}",
    ],
    ids=range(13),
)
def test_a_broken_template(source):
    assert fails(source).kind == "template"


def test_a_prompt_larger_than_the_limit():
    messages = [{"role": "user", "content": "x" * 100_000}] * 90
    assert "8,388,608" in str(fails(CHATML, messages, seconds=10))


def test_ten_thousand_messages_are_fast_enough():
    template = ChatTemplate(QWEN)
    messages = [{"role": role, "content": "some words"} for role in ("user", "assistant")] * 5000
    start = time.process_time()
    assert template.render(messages).count("some words") == 10_000
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\]"),
        ({"options": {"messages": 1}}, "template_options"),
        ({"options": {"raise_exception": 1}}, "template_options"),
        ({"options": {f"v{n}": n for n in range(101)}}, "template_options"),
        ({"tools": [TOOL]}, "tools: .* no place"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\]"),
        ({"tools": {}}, "tools"),
        ({"tools": [TOOL, TOOL]}, "tools: two"),
    ],
)
def test_what_a_caller_gets_wrong(more, name):
    with pytest.raises(EngineError, match=name) as caught:
        ChatTemplate(CHATML).render(**{"messages": HELLO, **more})
    assert caught.value.kind == "input"


def test_messages_are_not_changed():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}], "tool_calls": [{"function": {"arguments": "{}"}}]}
    ]
    before = repr(messages)
    ChatTemplate(CHATML).render(messages)
    assert repr(messages) == before


PIECES = st.sampled_from([
    "{{ ", " }}", "{% for x in messages %}", "{% endfor %}", "{% if x %}", "{% endif %}", "{% set x = ", " %}", "x", "messages",
    ".content", "['role']", "[0]", "|", "tojson", "trim", "join", "list", "(", ")", "+", "~", "*", "1", "'a'", "loop.index",
    "{% macro f(x) %}", "{% endmacro %}", "range(9)", "raise_exception('no')", "__class__", "\n", "{%- ", "{# ", " #}", "is string",
])  # fmt: skip


@given(st.lists(PIECES, max_size=15).map("".join))
@settings(max_examples=100)
def test_any_template_renders_or_is_an_engine_error(source):
    try:
        assert isinstance(ChatTemplate(source, seconds=1).render(HELLO), str)
    except EngineError as error:
        assert error.kind in ("template", "input")  # noqa: PT017 - either is right


def test_the_sandbox_has_only_what_is_listed():
    sandbox = Sandbox()
    assert set(sandbox.globals) == {"dict", "namespace", "raise_exception", "range", "strftime_now"}
    assert not {"attr", "center", "format", "pprint", "random", "slice", "batch", "wordwrap", "xmlattr"} & set(
        sandbox.filters
    )
