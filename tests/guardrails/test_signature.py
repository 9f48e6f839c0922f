"""A guarded function takes and refuses the same arguments as the bare one, whatever their names."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import breaker, guard, retry, timeout
from guardrails.core.guard import Gate
from guardrails.core.pipeline import Layer
from guardrails.core.signature import Shape, shape_of


class Open(Layer, Gate):
    """Lets everybody in, and says what it was shown."""

    name = "open"

    def __init__(self, *, reads_call):
        self.reads_call = reads_call
        self.seen = []

    def describe(self):
        return self.name

    def try_enter(self, call):
        self.seen.append((call.args, dict(call.kwargs)))
        return 1

    def settle(self, ticket, outcome):
        pass


def made(parameters, *, is_async):
    names = {}
    exec(f"{'async ' if is_async else ''}def fn({parameters}): return dict(locals())", names)
    return names["fn"]


def run(fn, is_async, args, kwargs):
    return asyncio.run(fn(*args, **kwargs)) if is_async else fn(*args, **kwargs)


PARAMETERS = [
    ("", (), {}),
    ("x", (1,), {}),
    ("x", (), {"x": 1}),
    ("x, /", (1,), {}),
    ("x, /, y=2, *, z", (1,), {"z": 3}),
    ("x, y=2, *, z=3, w=4", (1,), {"w": 5}),
    ("*, only", (), {"only": 1}),
    ("self, exc, stage, result, outcome", (1, 2), {"stage": 3, "result": 4, "outcome": 5}),
    ("call, held, truth, fn, ticket_0", (1, 2, 3, 4), {"ticket_0": 5}),
    ("arg_1, arg_0, *, arg_3, arg_2", (1, 2), {"arg_2": 3, "arg_3": 4}),
    ("*args", (1, 2), {}),
    ("x, **rest", (1,), {"y": 2}),
]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("reads_call", [False, True])
@pytest.mark.parametrize(("parameters", "args", "kwargs"), PARAMETERS)
def test_arguments_arrive_as_given(parameters, args, kwargs, reads_call, is_async):
    bare = made(parameters, is_async=is_async)
    gate = Open(reads_call=reads_call)
    for layers in ((gate,), (retry(attempts=2), gate, Open(reads_call=False))):
        guarded = guard(*layers, check_order=False)(bare)
        assert run(guarded, is_async, args, kwargs) == run(bare, is_async, args, kwargs)
        assert inspect.signature(guarded) == inspect.signature(bare)
        assert inspect.iscoroutinefunction(guarded) == is_async
    if reads_call:
        assert gate.seen == [(args, kwargs)] * 2


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("parameters", "args", "kwargs"), PARAMETERS)
def test_a_further_attempt_gets_the_same_arguments(parameters, args, kwargs, is_async):
    bare = made(parameters, is_async=is_async)
    seen = []

    if is_async:

        async def flaky(*args, **kwargs):
            seen.append(await bare(*args, **kwargs))
            if len(seen) < 3:
                raise ConnectionError
    else:

        def flaky(*args, **kwargs):
            seen.append(bare(*args, **kwargs))
            if len(seen) < 3:
                raise ConnectionError

    source = f"{'async ' if is_async else ''}def fn({parameters}):\n    "
    passed = ", ".join(
        {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**", "KEYWORD_ONLY": f"{name}="}.get(parameter.kind.name, "") + name
        for name, parameter in inspect.signature(bare).parameters.items()
    )
    names = {"_flaky": flaky}
    exec(source + f"{'await ' if is_async else ''}_flaky({passed})", names)
    run(guard(retry(attempts=3, wait=0, budget=None), Open(reads_call=False))(names["fn"]), is_async, args, kwargs)
    assert seen == [run(bare, is_async, args, kwargs)] * 3


@pytest.mark.parametrize(
    ("parameters", "args", "kwargs"),
    [
        ("x", (), {}),
        ("x", (1, 2), {}),
        ("x", (1,), {"y": 2}),
        ("x", (1,), {"arg_0": 2}),
        ("x, /", (), {"x": 1}),
        ("*, only", (1,), {}),
        ("", (), {"fn": 1}),
    ],
)
def test_wrong_arguments_are_refused_by_name_and_no_gate_sees_them(parameters, args, kwargs):
    bare = made(parameters, is_async=False)
    gate = Open(reads_call=False)
    with pytest.raises(TypeError) as expected:
        bare(*args, **kwargs)
    with pytest.raises(TypeError) as caught:
        gate(bare)(*args, **kwargs)
    assert str(caught.value) == str(expected.value)
    assert gate.seen == []


def test_methods_and_defaults_that_are_objects():
    default = object()

    class Service:
        @breaker
        def call(self, what=default, *, how=default):
            return self, what, how

        @classmethod
        @breaker()
        def made(cls, x):
            return cls, x

    service = Service()
    assert service.call() == (service, default, default)
    assert service.call(1, how=2) == (service, 1, 2)


def test_what_is_no_plain_function_takes_any_arguments():
    class Work:
        def __call__(self, x, *, y=0):
            return x + y

    assert breaker()(Work())(1, y=2) == 3
    assert breaker()(len)("abc") == 3


@pytest.mark.anyio
async def test_an_interrupting_gate_too():
    @timeout(5)
    async def work(stage, *, truth="t"):
        return stage, truth

    assert await work("s") == ("s", "t")
    assert await work(stage=1, truth=2) == (1, 2)


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))
def test_a_shape_writes_down_its_parameters(only, positional, named):
    shape = Shape(only, positional, named)
    names = {}
    exec(f"def inner({shape.parameters}): return list(locals().values())", names)
    exec(f"def outer({shape.parameters}): return inner({shape.arguments})", names)
    assert shape_of(names["inner"]) == shape
    by_place = list(range(only + positional))
    by_name = {place: number for number, place in enumerate(shape.places) if number >= only + positional}
    assert names["outer"](*by_place, **by_name) == list(range(sum(shape)))
