"""`FunctionRunner`: any importable function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runners.errors import FunctionNotFound, UnsendableValue
from runners.protocol.frames import MAX_FRAME
from runners.protocol.values import UnsendableError, pack, unpack
from runners.runner import Runner
from runners.spec import Faults, Resources
from runners.supervision.autoscale import Autoscale
from runners.supervision.restart import RestartPolicy


class FunctionRunner(Runner):
    """Calls of one importable function, in supervised subprocesses.

    Arguments and results cross as data: None, bool, int, float, str, bytes, list, dict, datetime, numpy arrays and
        numbers.
    Tuples and sets arrive as lists. Nothing is pickled.

    Args:
        function: ``"module:function"``, importable in the worker, where `sys.path` is this process's.
        idempotent: whether a call may be run again when the worker dies while it runs. If not, that call gets
            `RunnerCrashed`; calls that had not begun are run by the next worker either way.

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
        name: str | None = None,
        workers: int | tuple[int, int] | Autoscale = 1,
        lazy: bool = False,
        idle_unload: float | None = None,
        queue: int = 1024,
        timeout: float | None = 60,
        heartbeat: float | None = None,
        start_timeout: float = 60,
        grace: float = 10,
        environment: Mapping[str, str] | None = None,
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
        module, _, attribute = function.partition(":")
        if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
            raise FunctionNotFound(f"function={function!r} is not of the form 'module:function'")
        super().__init__(
            name=name or attribute,
            engine="function",
            options={"function": function},
            memory=memory,
            memory_hard=memory_hard,
            max_age=max_age,
            max_requests=max_requests,
            workers=workers,
            lazy=lazy,
            idle_unload=idle_unload,
            queue=queue,
            timeout=timeout,
            heartbeat=heartbeat,
            start_timeout=start_timeout,
            grace=grace,
            environment=environment,
            restart=restart,
            resources=resources,
            publish_status=publish_status,
            faults=faults,
            python=python,
        )
        self.idempotent = idempotent

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function in a worker.

        Raises:
            RemoteError: it raised; where that was a plain builtin exception, the error is one of that class too.
            UnsendableValue: arguments or result are not data.
            RunnerCrashed, PoisonedRequest, RequestTimeout, QueueFull, RunnerUnavailable: see `runners.errors`.
        """
        try:
            body, payload = pack((args, kwargs))
        except UnsendableError as error:
            raise UnsendableValue(
                f"{self.name}: an argument cannot be sent: {error}; pass plain data or numpy arrays"
            ) from error
        if len(body) + len(payload) > MAX_FRAME // 2:
            size = len(body) + len(payload)
            raise UnsendableValue(
                f"{self.name}: the arguments are {size:,} bytes; at most {MAX_FRAME // 2:,} can be sent"
            )
        answer, array_bytes = await self._ask_one(body, payload, timeout=None, redeliver=self.idempotent)
        return unpack(answer, array_bytes)


__all__ = ["FunctionRunner"]
