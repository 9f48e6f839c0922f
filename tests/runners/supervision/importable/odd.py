"""Calls whose result, or whose exception, cannot be sent, or does worse when it is."""

import datetime as dt
import os
import sys
import time
from pathlib import Path


def mark(path):
    with Path(path).open("a") as file:
        file.write("x\n")


class Raising(dt.tzinfo):
    def __init__(self, error):
        self.error = error

    def utcoffset(self, when):
        raise self.error


class Wordless(Exception):
    def __str__(self):
        raise SystemExit("no words")


class Oddly(OSError):
    @property
    def errno(self):
        raise KeyboardInterrupt


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def circle():
    value = []
    value.append(value)
    return value


RESULTS = {
    "tzinfo": lambda: dt.datetime(2026, 1, 1, tzinfo=Raising(RuntimeError("no offset"))),
    "tzinfo out of memory": lambda: dt.datetime(2026, 1, 1, tzinfo=Raising(MemoryError())),
    "tzinfo exits": lambda: dt.datetime(2026, 1, 1, tzinfo=Raising(SystemExit(3))),
    "surrogate": lambda: "half \udc80",
    "large int": lambda: 1 << 80,
    "circle": circle,
    "nested": lambda: nested(5000),
    "too large": lambda: bytes(300 * 2**20),
    "object": object,
}


def result(path, kind):
    mark(path)
    return RESULTS[kind]()


def raises(path, kind):
    mark(path)
    if kind == "recursion":
        return raises(path, kind)
    known = {"wordless": Wordless(), "exit": SystemExit(5), "interrupt": KeyboardInterrupt(), "memory": MemoryError(),
             "generator exit": GeneratorExit(), "errno": Oddly(2, "odd")}  # fmt: skip
    raise known[kind]


def act(name, *args):
    return globals()[name](*args)


async def act_async(name, *args):
    return globals()[name](*args)


def items(name, *args):
    yield 1
    yield globals()[name](*args)


async def items_async(name, *args):
    yield 1
    yield globals()[name](*args)


def clears_the_page_and_dies(path):
    """The page says that nothing runs, and the worker dies."""
    mark(path)
    frame = sys._getframe()
    while "running" not in frame.f_locals:
        frame = frame.f_back
    frame.f_locals["running"]._end()
    os.abort()


def nap(seconds):
    time.sleep(seconds)
    return os.getpid()
