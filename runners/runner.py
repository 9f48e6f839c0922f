"""What all runners share: they check what they are given, say it to a `Supervisor`, and read the answer.

A runner is an async context manager, safe to share between the tasks of one event loop, and runs on asyncio (uvloop
included).
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from math import isnan
from types import TracebackType
from typing import Any, Literal, Self

from guardrails.core import events
from guardrails.core.deadline import wait_limit
from guardrails.core.sizes import parse_size
from guardrails.core.validate import real
from runners.errors import InvalidInput, InvalidType
from runners.protocol.parts import Payload
from runners.spec import Faults, Resources, WorkerSpec
from runners.supervision.autoscale import Autoscale, as_autoscale
from runners.supervision.environment import as_inherited
from runners.supervision.limits import Limits
from runners.supervision.report import Count, Report
from runners.supervision.request import Answer, Request
from runners.supervision.restart import RestartPolicy
from runners.supervision.stats import RunnerStats
from runners.supervision.status import publish, wanted
from runners.supervision.stream import Stream, StreamRequest
from runners.supervision.supervisor import Supervisor

if sys.platform == "win32":
    msg = (
        "runners needs Linux or macOS: it hands sockets to its workers and ends them by signals. "
        "On Windows guardrails works whole"
    )
    raise ImportError(msg)

#: glibc keeps up to 8 x cores heaps of freed memory; two are plenty for a worker of one busy thread.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}
#: The hard budget, when only the soft one is given.
_HARD_FACTOR = 1.5
#: Requests of one call that are in the supervisor's hands at once: one call cannot fill the queue for everybody.
_OUTSTANDING = 16
_FOREVER = float("inf")


class Runner:
    """What all runners share. The keywords here are those of every runner.

    Args:
        name: how it calls itself in logs, events and errors.
        memory: soft budget of a worker's private memory, as a size (``"512MiB"``). A worker that reaches it is
            replaced, with no request lost. None: no limit.
        memory_hard: hard budget: a worker that reaches it is killed at once. By default one and a half times `memory`.
        workers: processes: a number; or ``(minimum, maximum)``, or an `Autoscale`, between which their number follows
            the load. A minimum of 0 means `lazy`, and unloaded after 60 s without a request.
        lazy: load with the first request, which waits for it, and not at the start.
        idle_unload: seconds without a request after which all workers are drained; the next request loads again.
        max_age: seconds after which a worker is replaced, with no request lost; up to 10 % earlier, so that workers
            which began together do not go together. None: never.
        max_requests: requests after which a worker is replaced, in the same way. None: never.
        queue: requests that may wait in this process; one more is refused with `QueueFull`.
        queue_bytes: what these may hold together, as a size; more is refused in the same way. What a worker can take at
            once does not count.
        timeout: seconds that a request may take, waiting included; None for no limit. Calls of models can set
            their own; an ambient deadline (`deadline_in`) shortens it for any call.
        heartbeat: seconds that a worker may go without finishing a step while it has work, before it is replaced as
            stuck.
        start_timeout: seconds that a worker may take to load.
        drain_timeout: seconds after which a worker that is replaced is ended whatever it still has. None: it answers
            what it has, for as long as the requests' own timeouts allow.
        grace: seconds that `close` gives accepted requests to be answered.
        environment: variables for the workers, on top of those that they inherit.
        inherit_environment: names of this process's variables that workers inherit too, as in ``("DATABASE_URL",
            "AWS_*")``; True: all of them. By default what Python and numeric libraries need, and no secrets: see
            `runners.supervision.environment.INHERITED`.
        restart: when crashed workers are started again.
        resources: cores, threads, niceness and the like of the workers; see `runners.spec.Resources`.
        publish_status: whether `runners top` shows this runner; by default what the variable RUNNERS_STATUS says.
        faults: faults to commit on purpose, for tests and game days.
        python: the interpreter that runs workers; by default this one.
    """

    def __init__(
        self,
        *,
        name: str,
        engine: str,
        options: dict[str, Any],
        memory: str | float | None,
        memory_hard: str | float | None,
        max_age: float | None,
        max_requests: int | None,
        workers: int | tuple[int, int] | Autoscale,
        lazy: bool,
        idle_unload: float | None,
        queue: int,
        queue_bytes: str | float,
        timeout: float | None,
        heartbeat: float | None,
        start_timeout: float,
        drain_timeout: float | None,
        grace: float,
        environment: Mapping[str, str] | None,
        inherit_environment: Iterable[str] | Literal[True],
        restart: RestartPolicy | None,
        resources: Resources | None,
        publish_status: bool | None,
        faults: Faults | None,
        python: str | None,
    ) -> None:
        if not isinstance(queue, int) or isinstance(queue, bool) or queue < 0:
            msg = f"queue takes a whole number of at least 0, not {queue!r}"
            raise ValueError(msg)
        for argument, seconds in (
            ("timeout", timeout),
            ("heartbeat", heartbeat),
            ("start_timeout", start_timeout),
            ("drain_timeout", drain_timeout),
            ("max_age", max_age),
        ):
            if seconds is not None and not seconds > 0:
                msg = f"{argument} takes a number of seconds above 0, not {seconds!r}"
                raise ValueError(msg)
        soft = None if memory is None else parse_size(memory, "memory")
        hard = int(soft * _HARD_FACTOR) if soft is not None else None
        if memory_hard is not None:
            hard = parse_size(memory_hard, "memory_hard")
            if soft is not None and hard <= soft:
                msg = (
                    f"memory_hard={memory_hard!r} must be above memory={memory!r}: "
                    "a worker is replaced at one and killed at the other"
                )
                raise ValueError(msg)
        self.name = name
        self.timeout = timeout
        self.grace = grace
        self._model = os.path.basename(options.get("path") or options.get("function") or name)  # noqa: PTH119
        self._status_folder = wanted(publish_status)
        self._spec = WorkerSpec(
            name=name,
            engine=engine,
            options=options,
            sys_path=tuple(os.path.abspath(entry) for entry in sys.path),  # noqa: PTH100 - text in, text out
            environment={**_ENVIRONMENT, **(environment or {})},
            inherit_environment=as_inherited(inherit_environment),
            resources=(resources or Resources()).shared_by(as_autoscale(workers).maximum),
            faults=faults or Faults(),
        )
        self._supervisor = Supervisor(
            self._spec,
            limits=Limits(soft=soft, hard=hard, heartbeat=heartbeat, max_age=max_age, max_requests=max_requests),
            workers=workers,
            lazy=lazy,
            idle_unload=idle_unload,
            queue=queue,
            queue_bytes=parse_size(queue_bytes, "queue_bytes"),
            policy=restart,
            start_timeout=start_timeout,
            drain_timeout=drain_timeout,
            python=python,
        )

    async def start(self) -> Self:
        """Start the workers and wait until they are loaded and warm.

        Raises:
            StartFailed: one could not be brought up; the subclass says why. Nothing is left running then.
        """
        await self._supervisor.start()
        if self._status_folder is not None:
            self._supervisor.keep("publish", partial(publish, self._supervisor, self._status_folder))
        return self

    async def close(self) -> None:
        """Answer what is accepted, for `grace` seconds at most, then end the workers. Closing again does nothing."""
        await self._supervisor.close(self.grace)

    def kill(self) -> None:
        """End all workers at once; what was accepted fails with `RunnerClosed`. Again, it does nothing.

        Unlike `close` it works in any thread, and when the event loop of the runner is closed or blocked. It is also
        what ends the workers of a runner that was dropped without `close`.
        """
        self._supervisor.kill()

    def __del__(self) -> None:
        """`kill`, as the last resort."""
        supervisor = getattr(self, "_supervisor", None)  # None: the arguments were refused
        if supervisor is not None and supervisor.state not in ("new", "stopped"):
            with contextlib.suppress(Exception):  # at the interpreter's end nothing may be left to say it with
                warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)
            supervisor.kill()

    async def recycle(self) -> None:
        """Replace every worker by a new one, one after the other, and return when that is done. No request is lost.

        The new workers may have loaded other files of the model; else a worker that has is refused with `ModelChanged`.
        As soon as one of them serves, the old ones only answer what they have. A runner without workers takes the new
        files with its next load.

        A call while one goes on joins it. It goes on when the caller stops waiting.

        Raises:
            StartFailed: a new worker could not be brought up; those not replaced yet stay in service.
            RunnerClosed, RunnerUnavailable: the runner is not running, or was closed meanwhile.
        """
        await self._supervisor.recycle()

    async def __aenter__(self) -> Self:
        """`start`."""
        return await self.start()

    async def __aexit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        """`close`; at once if the block failed."""
        await self._supervisor.close(self.grace if exc is None else 0)

    @property
    def state(self) -> str:
        """``new``, ``idle`` (nothing loaded), ``starting``, ``ready``, ``draining``, ``failed`` or ``stopped``."""
        return self._supervisor.state

    def stats(self) -> RunnerStats:
        """A snapshot of requests and workers."""
        return self._supervisor.stats()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.state}>"

    def _seconds(self, timeout: float | None) -> float:
        """Seconds that a call may take. A deadline around it counts too; one that a `timeout` enforces ends the call
        itself, by cancelling it.
        """
        seconds = self.timeout if timeout is None else self._checked(timeout)
        return wait_limit(_FOREVER if seconds is None else seconds)

    def _checked(self, timeout: float) -> float:
        """A call's own timeout. One of 0 or less is over at once: it may be computed from a deadline."""
        try:
            seconds = real("timeout", timeout)
        except TypeError as error:
            raise InvalidType(f"{self.name}: {error}") from None
        except ValueError as error:
            raise InvalidInput(f"{self.name}: {error}") from None
        if isnan(seconds):
            raise InvalidInput(f"{self.name}: timeout must be a number of seconds, not nan")
        return seconds

    async def _ask_one(
        self,
        body: bytes,
        payload: Payload,
        *,
        timeout: float | None,
        redeliver: bool,
        affinity: int | None = None,
        operation: str = "call",
        count: Count | None = None,
    ) -> Answer:
        """Put one request and wait for its answer; it is withdrawn if the caller leaves.

        While somebody listens to events its end is told, as one of an `operation`, with the tokens that `count` finds
        in the answer.
        """
        supervisor = self._supervisor
        seconds = self._seconds(timeout)
        report = Report(self.name, operation, self._model, count) if events.sinks else None
        try:
            request = supervisor.submit(body, payload, seconds=seconds, redeliver=redeliver, affinity=affinity)
            if report is not None:
                report.request = request
            try:
                answer = await request.future
            except BaseException:
                supervisor.withdraw(request)
                raise
        except BaseException as error:
            if report is not None:
                report.failed(error)
            raise
        if report is not None:
            report.end("answered", answer=answer)
        return answer

    def _ask_stream(
        self,
        body: bytes,
        payload: Payload,
        *,
        window: int,
        timeout: float | None,
        redeliver: bool,
        affinity: int | None = None,
        operation: str = "stream",
        count: Count | None = None,
    ) -> Stream:
        """Put one request whose answer comes in items, of which at most `window` are on the way. Read it in its block::

            with self._ask_stream(...) as items:
                async for body, payload in items: ...
            items.answer                    # of the end

        Leaving the block early cancels the request. `timeout` is for the whole of it. An error comes after the items
        before it. If the worker dies the request may be run again (`redeliver`) until an item was taken. Its end is
        told as that of `_ask_one`, when the block ends.
        """
        supervisor = self._supervisor
        seconds = self._seconds(timeout)
        report = Report(self.name, operation, self._model, count) if events.sinks else None
        try:
            request = supervisor.submit(
                body, payload, seconds=seconds, redeliver=redeliver, affinity=affinity, window=window
            )
        except BaseException as error:
            if report is not None:
                report.failed(error)
            raise
        assert isinstance(request, StreamRequest)  # noqa: S101 - there is a window
        if report is not None:
            report.request = request
        return Stream(request, supervisor.dispatcher, report)

    async def _ask(
        self,
        bodies: Sequence[tuple[bytes, Payload]],
        *,
        timeout: float | None,
        redeliver: bool,
        operation: str = "call",
    ) -> list[Answer]:
        """Put requests, a few at a time, and collect all answers, or the first error; what is not needed then is
        withdrawn. Their end is told as that of one: it is one call.
        """
        if len(bodies) == 1:
            return [await self._ask_one(*bodies[0], timeout=timeout, redeliver=redeliver, operation=operation)]
        seconds = self._seconds(timeout)
        report = Report(self.name, operation, self._model, None) if events.sinks else None
        try:
            answers = await self._ask_all(bodies, seconds, redeliver=redeliver, report=report)
        except BaseException as error:
            if report is not None:
                report.failed(error)
            raise
        if report is not None:
            report.end("answered")
        return answers

    async def _ask_all(
        self, bodies: Sequence[tuple[bytes, Payload]], seconds: float, *, redeliver: bool, report: Report | None
    ) -> list[Answer]:
        """All answers of one call. Where the model was changed in between, those of the old one are asked for again."""
        began = time.monotonic()
        answers: dict[int, tuple[Answer, int]] = {}
        asked = list(range(len(bodies)))
        while asked:
            left = seconds - (time.monotonic() - began)
            found = await self._ask_once([bodies[number] for number in asked], left, redeliver=redeliver, report=report)
            answers.update(zip(asked, found, strict=True))
            newest = max(generation for _, generation in answers.values())
            asked = [number for number, (_, generation) in answers.items() if redeliver and generation != newest]
        return [answers[number][0] for number in range(len(bodies))]

    async def _ask_once(
        self, bodies: Sequence[tuple[bytes, Payload]], seconds: float, *, redeliver: bool, report: Report | None
    ) -> list[tuple[Answer, int]]:
        """The answers, each with the generation of the model that gave it."""
        supervisor = self._supervisor
        began = time.monotonic()
        waiting: deque[Request] = deque()
        answers: list[tuple[Answer, int]] = []

        async def take() -> None:
            answer = await waiting[0].future
            answers.append((answer, waiting.popleft().generation))

        try:
            for body, payload in bodies:
                left = seconds - (time.monotonic() - began)
                waiting.append(supervisor.submit(body, payload, seconds=left, redeliver=redeliver))
                if report is not None and report.request is None:
                    report.request = waiting[0]
                if len(waiting) >= _OUTSTANDING:
                    await take()
            while waiting:
                await take()
        except BaseException:
            for request in waiting:
                supervisor.withdraw(request)
            raise
        return answers


__all__ = ["Runner"]
