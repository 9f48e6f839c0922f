"""Functions to put behind a cache, and callers of them."""

from __future__ import annotations

from types import SimpleNamespace

import anyio


class Backend:
    """A function that returns, or raises, what the test says; by default a new list each time."""

    def __init__(self):
        self.calls = []
        self.answers = []

    def answer(self, args):
        self.calls.append(args)
        answer = self.answers.pop(0) if self.answers else [len(self.calls)]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def of(self, layer, kind):
        """The guarded function, as one that is called with `await` whatever its kind."""
        if kind == "async":

            @layer
            async def work(*args, **kwargs):
                return self.answer((args, kwargs))

            return work

        @layer
        def plain(*args, **kwargs):
            return self.answer((args, kwargs))

        async def call(*args, **kwargs):
            return plain(*args, **kwargs)

        call.__guarded__ = SimpleNamespace(fn=plain.__guarded__.fn, wrapper=call)
        return call


class Gated:
    """A function whose calls end when the test says so."""

    def __init__(self):
        self.calls = []

    async def work(self, *args):
        call = SimpleNamespace(args=args, event=anyio.Event(), answer=None, cancelled=False)
        self.calls.append(call)
        try:
            await call.event.wait()
        except BaseException:
            call.cancelled = True
            raise
        if isinstance(call.answer, BaseException):
            raise call.answer
        return call.answer

    def answer(self, number, answer):
        self.calls[number - 1].answer = answer
        self.calls[number - 1].event.set()

    @property
    def made(self):
        return len(self.calls)


class Caller:
    """A call in a task of its own, that can be cancelled by itself."""

    def __init__(self):
        self.scope = anyio.CancelScope()
        self.result = self.error = None
        self.done = False

    async def of(self, work, *args):
        with self.scope:
            try:
                self.result = await work(*args)
            except Exception as error:
                self.error = error
        self.done = True


def callers(group, work, number, *args):
    found = [Caller() for _ in range(number)]
    for caller in found:
        group.start_soon(caller.of, work, *args)
    return found
