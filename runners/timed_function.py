"""`TimedFunction`: calls of a `FunctionRunner` with a timeout of their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from runners.supervision.stream import Stream

Call = Callable[[tuple[Any, ...], dict[str, Any], float], Awaitable[Any]]
Items = Callable[[tuple[Any, ...], dict[str, Any], float], Stream]


class TimedFunction:
    """The calls of a `FunctionRunner`, each with another timeout than the runner's: see `FunctionRunner.with_timeout`.

    It starts and closes nothing, and can be kept, shared and guarded like the runner.

    Attributes:
        timeout: seconds that a call or a whole stream may take, waiting included; infinity for no limit.
    """

    __slots__ = ("_call", "_items", "_name", "_unpacked", "timeout")

    def __init__(
        self,
        name: str,
        timeout: float,
        *,
        call: Call,
        items: Items,
        unpacked: Callable[..., Any],
    ) -> None:
        self.timeout = timeout
        self._name = name
        self._call = call
        self._items = items
        self._unpacked = unpacked

    async def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """See `FunctionRunner.__call__`."""
        return await self._call(args, kwargs, self.timeout)

    async def stream(self, /, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """See `FunctionRunner.stream`."""
        with self._items(args, kwargs, self.timeout) as items:
            async for item, array_bytes in items:
                yield self._unpacked(item, array_bytes)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} within {self.timeout:g} s>"


__all__ = ["TimedFunction"]
