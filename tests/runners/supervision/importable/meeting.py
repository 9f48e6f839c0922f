"""Asynchronous functions that need each other, or count each other."""

import asyncio
import os
import sys
from pathlib import Path

_here = 0
_ticks = 0
_tasks = []


async def meet(count):
    """Returns when so many are here."""
    global _here
    _here += 1
    mine = _here
    while _here < count:
        await asyncio.sleep(0.001)
    return mine


async def meet_in_streams(count):
    yield await meet(count)


async def together():
    """How many were here at most."""
    global _here
    _here += 1
    most = 0
    for _ in range(20):
        most = max(most, _here)
        await asyncio.sleep(0.001)
    _here -= 1
    return most


async def linger(path, name, go):
    def note(text):
        with Path(path).open("a") as file:
            file.write(f"{text}\n")

    note(name)
    try:
        while not Path(go).exists():
            await asyncio.sleep(0.002)
    except asyncio.CancelledError:
        note(f"{name}-cancelled")
        raise
    return name


async def _tick():
    global _ticks
    while True:
        _ticks += 1
        await asyncio.sleep(0.001)


async def leave_a_task(what):
    if what == "start":
        _tasks.append(asyncio.create_task(_tick()))
    return _ticks


async def _exit():
    sys.exit("from a task")


async def exits_in_a_task():
    _tasks.append(asyncio.create_task(_exit()))
    return os.getpid()
