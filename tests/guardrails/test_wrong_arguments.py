"""A call with wrong arguments is the caller's mistake: it raises a TypeError and reaches no gate."""

from __future__ import annotations

import pytest

from guardrails import breaker, bulkhead, cache, guard, keyed, retry
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio


def whose(prompt, *, user="any", **_):
    return user


@pytest.fixture(params=["bulkhead", "keyed", "retry", "cache"])
def layers(request):
    return {
        "bulkhead": [bulkhead(2, key=whose)],
        "keyed": [keyed(lambda user: bulkhead(2), key=whose)],
        "retry": [retry(on_result=lambda result: False), bulkhead(2)],
        "cache": [cache(ttl=60), bulkhead(2)],
    }[request.param]


@pytest.mark.parametrize("heard", [False, True])
async def test_a_call_with_wrong_arguments_reaches_no_gate(layers, heard):
    circuit = breaker(fail_max=1)
    strategies = [
        layer for layer in layers if isinstance(layer, type(retry())) or "cache" in type(layer).__name__.lower()
    ]
    gates = [layer for layer in layers if layer not in strategies]
    made = []

    @guard(*strategies, circuit, *gates)
    async def ask(prompt, *, user="any", **more):
        made.append(prompt)
        return prompt

    @guard(*strategies, circuit, *gates)
    def ask_sync(prompt, *, user="any"):
        made.append(prompt)
        return prompt

    with decisions() as seen:
        for _ in range(3):
            with pytest.raises(TypeError, match=r"ask\(\) missing 1 required positional argument: 'prompt'"):
                await ask()
            with pytest.raises(TypeError, match=r"ask_sync\(\) got an unexpected keyword argument 'wrong'"):
                ask_sync("x", wrong=1)
        assert seen == []
    assert (circuit.state, circuit.fail_counter, made) == ("closed", 0, [])
    assert await ask("x", user="me", more=1) == ask_sync("x") == "x"


async def test_a_stream_with_wrong_arguments_reaches_no_gate():
    circuit = breaker(fail_max=1)

    @circuit
    async def stream(count, /):
        yield count

    @circuit
    def items(count, *rest):
        yield count

    with pytest.raises(TypeError, match=r"stream\(\) missing 1 required positional argument: 'count'"):
        await anext(stream())
    with pytest.raises(TypeError, match=r"items\(\) missing 1 required positional argument: 'count'"):
        next(items())
    assert circuit.state == "closed"
    assert [item async for item in stream(1)] == list(items(1, 2)) == [1]
