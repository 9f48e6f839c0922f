"""What guarding leaves of a function's type: all of it. Checked by test_typing.py, never run.

What must be refused says so at the end of its line, with the reason; all other lines must not be refused.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, TypeVar, assert_type

from guardrails import admit, breaker, bulkhead, connections, fallback, guard, hedge, keyed, limiter, retry, timeout
from guardrails.strategies.cache import cache
from guardrails.strategies.inject import inject

T = TypeVar("T")

api = guard(retry(attempts=3), breaker(name="api"), limiter(requests=500, per=60), admit(concurrency=4), timeout(30))

# async def


@breaker
async def bare(prompt: str, *, tokens: int = 10) -> list[float]:
    return [float(tokens)]


@breaker(name="dependency", failure_rate=0.5)
async def called(prompt: str, *, tokens: int = 10) -> list[float]:
    return [float(tokens)]


@breaker
@admit(memory="300MiB")
@timeout(5)
async def stacked(prompt: str, *, tokens: int = 10) -> list[float]:
    return [float(tokens)]


@api
async def piped(prompt: str, *, tokens: int = 10) -> list[float]:
    return [float(tokens)]


async def coroutines() -> None:
    assert_type(await bare("x", tokens=3), list[float])
    assert_type(await called("x"), list[float])
    assert_type(await stacked("x"), list[float])
    assert_type(await piped(prompt="x"), list[float])
    await bare(3)  # expect: arg-type | reportArgumentType
    await bare()  # expect: call-arg | reportCallIssue
    await called("x", 3)  # expect: call-arg | reportCallIssue
    await stacked("x", token=3)  # expect: call-arg | reportCallIssue
    await piped("x", tokens="3")  # expect: arg-type | reportArgumentType
    (await piped("x")).append("text")  # expect: arg-type | reportArgumentType
    bare("x")[0]  # expect: index | reportIndexIssue


passed_on: Callable[[str], Awaitable[list[float]]] = piped
not_that: Callable[[int], Awaitable[list[float]]] = piped  # expect: assignment | reportAssignmentType


# Every guard, on an async function. `add` is the same function behind each.


async def add(a: int, b: int = 1) -> int:
    return a + b


def whose(a: int, b: int = 1) -> str:
    return str(a)


async def every_guard() -> None:
    assert_type(await admit(add)(1), int)
    assert_type(await admit(concurrency=2)(add)(1, b=2), int)
    assert_type(await breaker(add)(1), int)
    assert_type(await breaker()(add)(1, b=2), int)
    assert_type(await bulkhead(3)(add)(1, b=2), int)
    assert_type(await cache(ttl=60)(add)(1, b=2), int)
    assert_type(await connections(per_key=2, key=whose)(add)(1, b=2), int)
    assert_type(await fallback(0)(add)(1, b=2), int)
    assert_type(await hedge(0.5)(add)(1, b=2), int)
    assert_type(await inject(latency=1)(add)(1, b=2), int)
    assert_type(await keyed(lambda key: breaker(name=str(key)), key=whose)(add)(1, b=2), int)
    assert_type(await limiter(requests=5)(add)(1, b=2), int)
    assert_type(await retry(add)(1, b=2), int)
    assert_type(await retry(attempts=2)(add)(1, b=2), int)
    assert_type(await timeout(5)(add)(1, b=2), int)
    assert_type(await guard(breaker(), timeout(5))(add)(1, b=2), int)
    await admit(add)("1")  # expect: arg-type | reportArgumentType
    await admit(concurrency=2)(add)("1")  # expect: arg-type | reportArgumentType
    await breaker(add)("1")  # expect: arg-type | reportArgumentType
    await breaker()(add)("1")  # expect: arg-type | reportArgumentType
    await bulkhead(3)(add)("1")  # expect: arg-type | reportArgumentType
    await cache(ttl=60)(add)("1")  # expect: arg-type | reportArgumentType
    await connections(per_key=2, key=whose)(add)("1")  # expect: arg-type | reportArgumentType
    await fallback(0)(add)("1")  # expect: arg-type | reportArgumentType
    await hedge(0.5)(add)("1")  # expect: arg-type | reportArgumentType
    await inject(latency=1)(add)("1")  # expect: arg-type | reportArgumentType
    await keyed(lambda key: breaker(name=str(key)), key=whose)(add)("1")  # expect: arg-type | reportArgumentType
    await limiter(requests=5)(add)("1")  # expect: arg-type | reportArgumentType
    await retry(add)("1")  # expect: arg-type | reportArgumentType
    await retry(attempts=2)(add)("1")  # expect: arg-type | reportArgumentType
    await timeout(5)(add)("1")  # expect: arg-type | reportArgumentType
    await guard(breaker(), timeout(5))(add)("1")  # expect: arg-type | reportArgumentType


# def


@breaker
def local(path: str, *, deep: bool = False) -> bytes:
    return b""


@guard(retry(), breaker(), bulkhead(2))
def local_too(path: str, *, deep: bool = False) -> bytes:
    return b""


def functions() -> None:
    assert_type(local("x", deep=True), bytes)
    assert_type(local_too("x"), bytes)
    local(b"x")  # expect: arg-type | reportArgumentType
    local_too("x", True)  # expect: call-arg | reportCallIssue
    local("x").encode()  # expect: attr-defined | reportAttributeAccessIssue, reportUnknownMemberType


# Async generators, generators


@breaker
async def stream(prompt: str) -> AsyncIterator[str]:
    yield prompt


@api
async def conversation(prompt: str) -> AsyncGenerator[str, int]:
    given = yield prompt
    yield str(given)


@admit
def numbers(count: int) -> Iterator[int]:
    yield count


@breaker(fail_max=2)
def dialogue(count: int) -> Generator[int, str, bool]:
    answer = yield count
    return bool(answer)


async def streams() -> None:
    async for item in stream("x"):
        assert_type(item, str)
    talk = conversation("x")
    assert_type(await talk.asend(3), str)
    for number in numbers(3):
        assert_type(number, int)
    assert_type(dialogue(3).send("x"), int)
    stream(3)  # expect: arg-type | reportArgumentType
    await talk.asend("x")  # expect: arg-type | reportArgumentType
    numbers("x")  # expect: arg-type | reportArgumentType
    async for letter in numbers(3):  # expect: attr-defined | reportGeneralTypeIssues, reportUnknownVariableType
        print(letter)


def delegating() -> Generator[int, str, None]:
    assert_type((yield from dialogue(3)), bool)


# Methods, generic functions, what others guard


class Client:
    @breaker
    async def ask(self, prompt: str) -> str:
        return prompt

    @api
    async def embed(self, texts: list[str]) -> list[list[float]]:
        return [[0.0] for _ in texts]

    @staticmethod
    @timeout(5)
    async def ping(host: str) -> bool:
        return bool(host)

    @classmethod
    @retry
    async def connect(cls, host: str) -> Client:
        return cls()


async def methods(client: Client) -> None:
    assert_type(await client.ask("x"), str)
    assert_type(await client.embed(["x"]), list[list[float]])
    assert_type(await Client.ping("x"), bool)
    assert_type(await Client.connect("x"), Client)
    await client.ask(3)  # expect: arg-type | reportArgumentType
    await client.embed("x")  # expect: arg-type | reportArgumentType
    await Client.ping(3)  # expect: arg-type | reportArgumentType
    await Client.connect()  # expect: call-arg | reportCallIssue


async def first(items: list[T]) -> T:
    return items[0]


async def generics() -> None:
    assert_type(await breaker(first)([1]), int)
    assert_type(await api(first)(["x"]), str)
    await breaker(first)(1)  # expect: arg-type | reportArgumentType


async def anything(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


async def untyped() -> None:
    assert_type(await breaker(anything)(1, x=2), Any)


# Not functions


breaker(3)  # expect: call-overload | reportArgumentType
api("x")  # expect: arg-type | reportArgumentType
retry(None)  # expect: call-overload | reportArgumentType
