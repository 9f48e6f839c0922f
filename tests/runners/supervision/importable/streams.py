"""Generator functions that workers run in these tests. Marks are files, as in `calls`."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from runners.protocol.frames import encode
from runners.protocol.messages import Item


def note(path, text):
    with Path(path).open("a") as file:
        file.write(f"{text}\n")


def wait_for(path):
    end = time.monotonic() + 20
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.002)


def count(n, size=0):
    for number in range(n):
        yield [number, "x" * size] if size else number


async def count_async(n):
    async with asyncio.timeout(60):  # belongs to the task that it was opened in
        for number in range(n):
            if number % 100 == 0:
                await asyncio.sleep(0)
            yield number


def made(path, n):
    """Says what it makes, and when it ends."""
    try:
        for number in range(n):
            note(path, number)
            yield number
    finally:
        note(path, "end")


async def made_async(path, n):
    try:
        for number in range(n):
            note(path, number)
            yield number
    finally:
        await asyncio.sleep(0)
        note(path, "end")


def pids(path, go, n):
    """Its process, then items when there is `go`."""
    note(path, "begun")
    yield os.getpid()
    wait_for(go)
    yield from range(n)


def first_held(path, go, n):
    """No item before `go`."""
    note(path, "begun")
    wait_for(go)
    yield os.getpid()
    yield from range(n)


async def first_held_async(path, go, n):
    for item in first_held(path, go, n):  # and with it the event loop
        yield item


def raises(n):
    yield from range(n)
    raise ValueError("after the items")


async def raises_async(n):
    for number in range(n):
        yield number
    sys.exit("after the items")


def arrays(n):
    for number in range(n):
        yield np.full(1000, number)


def not_data():
    yield 1
    yield object()


def stubborn(path):
    try:
        while True:
            yield 1
    finally:
        note(path, "held")
        time.sleep(60)


def loud():
    while True:  # it will not end
        with contextlib.suppress(GeneratorExit):
            yield 1


def crash_at(path, n):
    """Its `n`th item is its worker's last, the first time."""
    first = not Path(path).exists()
    Path(path).touch()
    for number in range(10):
        if number == n and first:
            os.abort()
        yield number


def cheat():
    """Sends more items than it may, past the worker's own code. Its request is the first one."""
    yield 1
    frame = encode(Item(1, msgspec.Raw(b"\x01")))
    for number in range(3, 64):
        try:
            held = socket.socket(fileno=os.dup(number))
        except OSError:
            continue
        held.sendall(frame * 3)
    time.sleep(20)


class Countdown:
    def __call__(self, n):
        yield from range(n, 0, -1)


countdown = Countdown()


async def gives_up(n):
    async with asyncio.timeout(0.2):
        for number in range(n):
            yield number
