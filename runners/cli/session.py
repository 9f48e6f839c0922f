"""A runner for a program that is not asynchronous: its event loop has a thread of its own, so that the main thread may
wait for the keyboard while the worker stays supervised.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import signal
import sys
import threading
import time
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any, Self, TypeVar

from runners.llama import LlamaRunner, TextPieces

T = TypeVar("T")

#: Seconds of silence while a model loads.
_SILENCE = 2.0
_EVERY = 0.2
_EVERY_IN_A_LOG = 5.0


class Session:
    """Starts the runner, and closes it at the end of the block. All methods are for one thread; Ctrl-C ends each.

    Args:
        runner: not started yet.
    """

    def __init__(self, runner: LlamaRunner) -> None:
        self.runner = runner
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="runners", daemon=True)

    def _live(self) -> None:
        # Ctrl-C is for the main thread. The kernel may hand it to any thread that does not block it, and then what the
        # main thread waits in, `input()` say, is not interrupted until the next key.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self._loop.run_forever()

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._load()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns. Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def read(self, pieces: TextPieces) -> Generator[str]:
        """The pieces as they come. Ctrl-C, and closing the iterator, cancel what is not generated yet."""
        box: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async with pieces:
                    async for text in pieces:
                        box.put(text)
            finally:
                box.put(None)

        future = asyncio.run_coroutine_threadsafe(pump(), self._loop)
        try:
            while (text := box.get()) is not None:
                yield text
            future.result()
        finally:
            future.cancel()

    def _load(self) -> None:
        began = time.perf_counter()
        live = sys.stderr.isatty()
        future = asyncio.run_coroutine_threadsafe(self.runner.start(), self._loop)
        shown = False
        try:
            while not future.done():
                concurrent.futures.wait([future], _SILENCE if not shown else _EVERY if live else _EVERY_IN_A_LOG)
                if not future.done():
                    text = f"loading {self.runner.name}: {time.perf_counter() - began:.0f} s"
                    sys.stderr.write(f"\r\x1b[2K{text}" if live else f"{text}\n")
                    sys.stderr.flush()
                    shown = True
            future.result()
        finally:
            future.cancel()
            if shown and live:
                sys.stderr.write("\r\x1b[2K")
                sys.stderr.flush()

    def _end(self) -> None:
        try:
            self.wait(self.runner.close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
