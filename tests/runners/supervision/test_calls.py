"""Calls of functions: what goes across, and what is said when it cannot."""

from __future__ import annotations

import asyncio
import builtins
import datetime as dt
import errno
import math
from pathlib import Path

import numpy as np
import pytest

from guardrails import breaker
from guardrails.core.errors import Failed
from guardrails.core.outcome import classify
from guardrails.errors import CircuitOpen
from runners import FunctionRunner
from runners.errors import InvalidInput, RemoteError, RemoteTraceback, UnsendableValue

pytestmark = pytest.mark.anyio

NOON = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)


async def test_values_come_back_as_they_went():
    async with FunctionRunner("calls:echo") as echo:
        for value in (
            None,
            True,
            0,
            -(2**63),
            2**64 - 1,
            1.5,
            "ñandú",
            b"\x00\xff",
            [1, [2]],
            {"a": {"b": None}},
            NOON,
            "",
        ):
            answer = await echo(value)
            assert (answer, type(answer)) == (value, type(value))
        assert math.isnan(await echo(math.nan))
        assert await echo((1, 2)) == [1, 2]


async def test_arrays_come_back_as_they_went():
    arrays = [np.arange(12, dtype=np.float32).reshape(3, 4).T, np.zeros((0, 3)), np.array(7), np.array(["a", "bcd"])]
    async with FunctionRunner("calls:echo") as echo:
        answers = await echo({"arrays": arrays})
        for sent, back in zip(arrays, answers["arrays"], strict=True):
            assert back.dtype == sent.dtype
            np.testing.assert_array_equal(back, sent)
            back[...] = back  # it can be written to


async def test_a_worker_without_arrays_does_not_import_numpy():
    async with FunctionRunner("calls:act") as act:
        assert await act("echo", 1) == 1
        pid = act.stats().workers[0].pid
        assert "numpy" not in Path(f"/proc/{pid}/maps").read_text()


async def test_all_kinds_of_arguments():
    async with FunctionRunner("calls:describe") as describe:
        assert await describe(1) == [1, [], "w", {}]
        assert await describe(1, 2, 3, word="x", other=4) == [1, [2, 3], "x", {"other": 4}]


async def test_async_functions():
    async with FunctionRunner("calls:echo_async") as echo:
        assert await asyncio.gather(*(echo(n) for n in range(40))) == list(range(40))


async def test_methods_by_dotted_name_and_objects_with_async_call():
    async with FunctionRunner("calls:Adder.add") as add:
        assert await add(1, 2) == 3
    async with FunctionRunner("calls:adder") as adder:
        assert await adder(5) == 5


async def test_many_callers_each_get_their_own_answer():
    async with FunctionRunner("calls:echo", workers=2) as echo:
        assert await asyncio.gather(*(echo(n) for n in range(500))) == list(range(500))
        stats = echo.stats()
        assert stats.submitted == stats.answered == 500
        assert all(worker.answered for worker in stats.workers)


async def test_a_large_argument_and_a_large_result():
    async with FunctionRunner("calls:echo") as echo:
        value = bytes(range(256)) * 40_000
        assert await echo(value) == value


async def test_a_quick_answer_does_not_wait_for_the_slow_call_behind_it(tmp_path, until):
    async with FunctionRunner("calls:act") as act:
        slow_mark, go = tmp_path / "slow", tmp_path / "go"
        quick = asyncio.create_task(act("echo", "quick"))
        slow = asyncio.create_task(act("hold", str(slow_mark), str(go)))
        await until(quick.done)
        assert not slow.done()
        go.touch()
        await slow


# What it raises


async def test_an_exception_comes_across_with_type_message_and_traceback():
    async with FunctionRunner("calls:act") as act:
        with pytest.raises(RemoteError, match=r"^calls\.Own: 7$") as caught:
            await act("fail", "Own", 7)
        assert (caught.value.type, caught.value.message) == ("calls.Own", "7")
        assert isinstance(caught.value, Failed)
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert "in fail\n    raise cls(*args)\n" in str(caught.value.__cause__)
        assert "runners/worker" not in caught.value.traceback
        assert await act("echo", 1) == 1


@pytest.mark.parametrize(
    "name", ["ValueError", "KeyError", "ZeroDivisionError", "MemoryError", "RecursionError", "AttributeError"]
)
async def test_a_plain_builtin_is_caught_as_what_it_is(name):
    async with FunctionRunner("calls:fail") as fail:
        with pytest.raises(getattr(builtins, name)) as caught:
            await fail(name, "why")
        assert isinstance(caught.value, RemoteError)
        assert "why" in caught.value.message


@pytest.mark.parametrize(
    ("name", "number"),
    [("FileNotFoundError", errno.ENOENT), ("TimeoutError", errno.ETIMEDOUT), ("ConnectionResetError", None)],
)
async def test_an_error_of_the_system_is_caught_as_what_it_is(name, number):
    arguments = ("why",) if number is None else (number, "why")
    async with FunctionRunner("calls:fail") as fail:
        with pytest.raises(getattr(builtins, name)) as caught:
            await fail(name, *arguments)
        assert isinstance(caught.value, RemoteError)
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == number
        assert str(caught.value) == f"{name}: " + ("why" if number is None else f"[Errno {number}] why")
        with pytest.raises(OSError, match="why") as caught:
            await fail("OSError", 2**63, "why")
        assert caught.value.errno is None


@pytest.mark.parametrize(
    "name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError", "BaseException"]
)
async def test_what_is_no_exception_fails_its_own_call_only(name):
    async with FunctionRunner("calls:act") as act:
        pid = act.stats().workers[0].pid
        with pytest.raises(RemoteError, match=name):
            await act("fail", name)
        assert act.stats().workers[0].pid == pid
        assert await act("echo", 1) == 1


@pytest.mark.parametrize("name", ["CancelledError", "ValueError", "SystemExit"])
async def test_an_async_function_may_raise_anything_too(name):
    async with FunctionRunner("calls:fail_async") as fail:
        for _ in range(2):
            with pytest.raises(RemoteError, match=name):
                await fail(name)
        assert fail.stats().restarts == {}


async def test_an_exception_that_cannot_say_what_it_is():
    async with FunctionRunner("calls:fail") as fail:
        with pytest.raises(RemoteError, match="its __str__ raised RuntimeError"):
            await fail("Wordless")


async def test_surrogates_in_names_and_messages_are_escaped():
    async with FunctionRunner("calls:fail_with_surrogate") as fail:
        with pytest.raises(RemoteError) as caught:
            await fail()
        assert caught.value.message == r"half a \udcff letter"
        assert caught.value.type == r"calls\udc80.Own"


async def test_wrong_arguments_are_the_functions_own_type_error():
    async with FunctionRunner("calls:echo") as echo:
        with pytest.raises(TypeError, match="positional") as caught:
            await echo(1, 2, 3)
        assert isinstance(caught.value, RemoteError)


# What cannot be sent


async def test_a_result_that_cannot_be_sent_names_its_type():
    async with FunctionRunner("calls:act") as act:
        with pytest.raises(UnsendableValue, match=r"result of calls:act cannot be sent back: a builtins\.object"):
            await act("unsendable")
        assert await act("echo", 1) == 1


@pytest.mark.parametrize("value", [object(), "half \ud800", 2**64, {"a": object}, np.array([object()]), 1j])
async def test_an_argument_that_cannot_be_sent_is_refused_here(value):
    async with FunctionRunner("calls:echo") as echo:
        with pytest.raises(UnsendableValue, match="echo: an argument cannot be sent") as caught:
            await echo(value)
        assert isinstance(caught.value, TypeError)
        assert echo.stats().submitted == 0


async def test_arguments_beyond_the_limit_are_refused_here(monkeypatch):
    monkeypatch.setattr("runners.function.MAX_FRAME", 2000)
    async with FunctionRunner("calls:echo") as echo:
        with pytest.raises(UnsendableValue, match=r"1,0.. bytes; at most 1,000"):
            await echo(b"x" * 1001)
        assert await echo(b"x" * 900) == b"x" * 900


async def test_nesting_is_either_sent_or_refused_but_never_a_crash():
    async with FunctionRunner("calls:echo") as echo:
        for depth in (100, 300, 900, 5000):
            value: list = []
            for _ in range(depth):
                value = [value]
            try:
                assert await echo(value) is not None
            except (UnsendableValue, InvalidInput, RecursionError):
                assert depth > 100
        assert echo.stats().restarts == {}


@pytest.mark.parametrize("what", ["ValueError", "KeyError", "damaged", "city", "404"])
async def test_bad_input_of_one_caller_does_not_open_the_circuit_for_all(what):
    circuit = breaker(fail_max=5)
    async with FunctionRunner("calls:act") as act:
        guarded = circuit(act)
        for _ in range(10):
            with pytest.raises(RemoteError):
                await guarded("fail_as", what)
        assert await guarded("echo", 1) == 1
        assert (circuit.state, circuit.fail_counter) == ("closed", 0)


async def test_what_a_function_depends_on_opens_the_circuit():
    circuit = breaker(fail_max=2)
    async with FunctionRunner("calls:act") as act:
        guarded = circuit(act)
        for what in ("ConnectionError", "500"):
            with pytest.raises(RemoteError):
                await guarded("fail_as", what)
        with pytest.raises(CircuitOpen):
            await guarded("echo", 1)


async def test_a_429_in_a_function_is_throttling():
    async with FunctionRunner("calls:act") as act:
        with pytest.raises(RemoteError) as caught:
            await act("fail_as", "429")
    assert caught.value.retry_after == 7.0
    assert classify(caught.value).kind == "throttled"


async def test_arguments_that_cannot_be_sent_do_not_open_the_circuit():
    circuit = breaker(fail_max=1)
    async with FunctionRunner("calls:act") as act:
        with pytest.raises(UnsendableValue):
            await circuit(act)("echo", object())
    assert circuit.state == "closed"
