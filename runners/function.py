"""`FunctionRunner`: any importable function."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Iterable, Mapping
from math import inf
from typing import Any, Literal

import msgspec

from guardrails.core.validate import seconds as checked_seconds
from runners.errors import FunctionNotFound, StreamMismatch, UnsendableValue
from runners.protocol.frames import MAX_FRAME
from runners.protocol.messages import stream_mismatch
from runners.protocol.parts import Incoming, Payload
from runners.protocol.values import UnsendableError, pack, pack_call, unpack
from runners.runner import Runner
from runners.spec import Faults, Resources
from runners.supervision.autoscale import Autoscale
from runners.supervision.restart import RestartPolicy
from runners.supervision.stream import Stream
from runners.timed_function import TimedFunction

_MAX_WINDOW = 65_536
#: As many as the status page has room for.
_MAX_CONCURRENCY = 488


class FunctionRunner(Runner):
    """Calls of one importable function, in supervised subprocesses.

    Arguments and results cross as data: None, bool, int, float, str, bytes, list, dict, datetime, numpy arrays and
        numbers.
    Tuples and sets arrive as lists. Nothing is pickled. A generator function, async or not, is read with `stream`.

    Args:
        function: ``"module:function"``, importable in the worker, where `sys.path` is this process's.
        idempotent: whether a call may be run again when the worker dies while it runs. If not, that call gets
            `RunnerCrashed`; calls that had not begun are run by the next worker either way. A stream is run again
            only as long as its reader has got no item.
        concurrency: calls of an `async def` function, or open streams of a generator function, that one worker runs at
            once. None: 16. A plain function runs one call at a time.
        initializer: ``"module:function"``, called once in each worker, without arguments, before it takes calls. Where
            `function` names a class whose instances can be called, one instance is made in each worker.
        window: items of one stream that may be on the way before its reader takes them; then the generator is paused.

    The other keywords are those of `Runner`.
    """

    def __init__(
        self,
        function: str,
        *,
        memory: str | float | None = None,
        memory_hard: str | float | None = None,
        max_age: float | None = None,
        max_requests: int | None = None,
        idempotent: bool = False,
        concurrency: int | None = None,
        initializer: str | None = None,
        window: int = 32,
        name: str | None = None,
        workers: int | tuple[int, int] | Autoscale = 1,
        lazy: bool = False,
        idle_unload: float | None = None,
        queue: int = 1024,
        queue_bytes: str | float = 1 << 30,
        timeout: float | None = 60,
        heartbeat: float | None = None,
        start_timeout: float = 60,
        drain_timeout: float | None = None,
        grace: float = 10,
        environment: Mapping[str, str] | None = None,
        inherit_environment: Iterable[str] | Literal[True] = (),
        restart: RestartPolicy | None = None,
        resources: Resources | None = None,
        publish_status: bool | None = None,
        faults: Faults | None = None,
        python: str | None = None,
    ) -> None:
        if not isinstance(function, str):
            msg = (
                f"function takes the name 'module:function', not {type(function).__name__}: "
                "the worker imports it afresh, and nothing is pickled"
            )
            raise TypeError(msg)
        _check_name("function", function)
        _check_count("window", window, _MAX_WINDOW)
        if concurrency is not None:
            _check_count("concurrency", concurrency, _MAX_CONCURRENCY)
        options: dict[str, Any] = {"function": function}
        if concurrency is not None:
            options["concurrency"] = concurrency
        if initializer is not None:
            _check_name("initializer", initializer)
            options["initializer"] = initializer
        super().__init__(
            name=name or function.partition(":")[2],
            engine="function",
            options=options,
            memory=memory,
            memory_hard=memory_hard,
            max_age=max_age,
            max_requests=max_requests,
            workers=workers,
            lazy=lazy,
            idle_unload=idle_unload,
            queue=queue,
            queue_bytes=queue_bytes,
            timeout=timeout,
            heartbeat=heartbeat,
            start_timeout=start_timeout,
            drain_timeout=drain_timeout,
            grace=grace,
            environment=environment,
            inherit_environment=inherit_environment,
            restart=restart,
            resources=resources,
            publish_status=publish_status,
            faults=faults,
            python=python,
        )
        self.idempotent = idempotent
        self.window = window
        self._function = function
        self._plain = False  # known not to be a generator function

    async def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function in a worker.

        Raises:
            RemoteError: it raised; where that was a plain builtin exception, the error is one of that class too.
            UnsendableValue: arguments or result are not data.
            StreamMismatch: it is a generator function; read it with `stream`.
            RunnerCrashed, PoisonedRequest, RequestTimeout, QueueFull, RunnerUnavailable: see `runners.errors`.
        """
        return await self._call(args, kwargs, None)

    async def stream(self, /, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Call the generator function in a worker, and yield its items as they come.

        Its call begins with the first item asked for. Leaving early (`break` out of the loop, `aclose`, a cancellation)
        closes the generator in the worker. At most `window` items are made ahead of the reader. The runner's `timeout`
        is for the whole stream.

        Raises:
            RemoteError: it raised, after the items before.
            StreamMismatch: it is no generator function; call it with `await runner(...)`.
            RunnerCrashed: its worker died, and it may not be run twice, or items had been taken.
            UnsendableValue: arguments or an item are not data.
            PoisonedRequest, RequestTimeout, QueueFull, RunnerUnavailable: see `runners.errors`.
        """
        with self._items(args, kwargs, None) as items:
            async for item, array_bytes in items:
                yield self._unpacked(item, array_bytes)

    def with_timeout(self, seconds: float | None) -> TimedFunction:
        """The same function with another timeout than the runner's, to call or to read as a stream: ``await
        runner.with_timeout(2)(image)``. A method, since all keywords of a call are the function's own.

        Args:
            seconds: that a call or a whole stream may take, waiting included; None or infinity for no limit. A nearer
                ambient deadline (`deadline_in`) still counts.

        Raises:
            TypeError: it is no number.
            ValueError: it is not above 0.
        """
        timeout = inf if seconds is None else checked_seconds("seconds", seconds, hint="; None is no limit")
        return TimedFunction(self.name, timeout, call=self._call, items=self._items, unpacked=self._unpacked)

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Any:
        if not self._plain:
            self._plain = self._check_kind(streamed=False)
        body, payload = self._packed(args, kwargs)
        answer, array_bytes = await self._ask_one(body, payload, timeout=timeout, redeliver=self.idempotent)
        return self._unpacked(answer, array_bytes)

    def _items(self, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Stream:
        self._check_kind(streamed=True)
        body, payload = self._packed(args, kwargs)
        return self._ask_stream(body, payload, window=self.window, timeout=timeout, redeliver=self.idempotent)

    def _unpacked(self, answer: msgspec.Raw, array_bytes: Incoming) -> Any:
        try:
            return unpack(answer, array_bytes)
        except (msgspec.DecodeError, ValueError, TypeError) as error:  # a `msgspec.Ext` with a code of ours
            raise UnsendableValue(f"{self.name}: what the function returned cannot be read: {error}") from error

    def _check_kind(self, *, streamed: bool) -> bool:
        """Refuse the wrong way of calling, if a worker is up that has said what the function is; whether one has."""
        for worker in self._supervisor.workers:
            if worker.info["streams"] != streamed:
                raise StreamMismatch(f"{self.name}: {stream_mismatch(self._function, streams=not streamed)}")
            return True
        return False

    def _packed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, Payload]:
        try:
            if "opentelemetry.trace" in sys.modules:  # imported by a program that uses it
                body, payload = pack((args, kwargs, *_tracing()))
            else:
                body, payload = pack_call(args, kwargs)
        except UnsendableError as error:
            raise UnsendableValue(
                f"{self.name}: an argument cannot be sent: {error}; pass plain data or numpy arrays"
            ) from error
        size = len(body) + len(payload)
        if size > MAX_FRAME // 2:
            raise UnsendableValue(
                f"{self.name}: the arguments are {size:,} bytes; at most {MAX_FRAME // 2:,} can be sent"
            )
        return body, payload


def _check_name(name: str, value: str) -> None:
    module, _, attribute = value.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise FunctionNotFound(f"{name}={value!r} is not of the form 'module:function'")


def _tracing() -> tuple[dict[str, str], ...]:
    """The OpenTelemetry context of the caller, if it has one."""
    from opentelemetry import propagate  # noqa: PLC0415 - an extra, which this program has

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return (carrier,) if carrier else ()


def _check_count(name: str, value: object, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        msg = f"{name} takes a whole number from 1 to {most}, not {value!r}"
        raise ValueError(msg)


__all__ = ["FunctionRunner"]
