"""What workers run in these tests. Marks are files: they tell the test that a call has begun, and how often."""

import asyncio
import builtins
import ctypes
import os
import resource
import signal
import socket
import sys
import time
import zlib
from pathlib import Path

from guardrails.errors import CallerError

NOT_CALLABLE = 3
_kept = []


def echo(value=None):
    return value


def describe(first, *rest, word="w", **more):
    return [first, list(rest), word, more]


async def echo_async(value):
    await asyncio.sleep(0)
    return value


class Adder:
    @staticmethod
    def add(left, right):
        return left + right

    async def __call__(self, value):
        return value


adder = Adder()


def generate():
    yield 1


async def generate_async():
    yield 1


class Own(Exception):
    pass


class Wordless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def fail(kind, *args):
    known = {"Own": Own, "Wordless": Wordless, "CancelledError": asyncio.CancelledError}
    cls = known.get(kind) or getattr(builtins, kind)
    raise cls(*args)


async def fail_async(kind):
    fail(kind)


class NoCity(CallerError):
    pass


class Status(Exception):
    """As an HTTP client's."""

    def __init__(self, status):
        super().__init__(status)
        self.status_code = status
        self.headers = {"retry-after": "7"}


def fail_as(what):
    if what == "damaged":
        zlib.decompress(b"no zlib")
    if what == "city":
        raise NoCity(what)
    if what.isdigit():
        raise Status(int(what))
    fail(what, what)


def fail_with_surrogate():
    Own.__module__ = "calls\udc80"
    raise Own("half a \udcff letter")


def unsendable():
    return {"answer": object()}


def large(size):
    return b"x" * size


def mark(path, text="x"):
    with Path(path).open("a") as file:
        file.write(f"{text}\n")
    return os.getpid()


def hold(path, go):
    """Says in `path` that it runs, until the file `go` is there."""
    mark(path)
    print("last words of", os.getpid(), file=sys.stderr)
    end = time.monotonic() + 20
    while not Path(go).exists() and time.monotonic() < end:
        time.sleep(0.002)
    return os.getpid()


def nap(seconds):
    time.sleep(seconds)
    return os.getpid()


def kill(signal_name):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), getattr(signal, signal_name))


def segfault():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def leave(code):
    os._exit(code)


def leak(size, seconds=0.0):
    _kept.append(b"\x01" * size)
    time.sleep(seconds)
    return os.getpid()


def jump(path, size):
    mark(path, time.monotonic())
    _kept.append(b"\x01" * size)
    time.sleep(20)


def native_hang(path):
    """Stuck in native code, with the interpreter's lock held: no Python code runs in this process any more."""
    mark(path)
    ctypes.PyDLL(None).sleep(60)


def native_nap(path, seconds):
    """The same for a while."""
    mark(path)
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def speak(*pieces):
    for piece in pieces:
        os.write(1, piece)
    return len(pieces)


def say(text):
    print(text)
    return text


def speak_long(size):
    for _ in range(size // 65536):
        os.write(1, b"y" * 65536)
    return size


def close_output():
    os.close(1)
    os.close(2)
    return True


def write_to_socket():
    for number in range(3, 64):
        try:
            held = socket.socket(fileno=os.dup(number))
        except OSError:
            continue
        held.sendall(b"\xff" * 64)
    time.sleep(20)


def fork_and_die(path):
    """Leaves a child of its own behind that holds all of its descriptors."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    Path(path).write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def act(name, *args):
    """Any of the others, where one test needs several of them in one worker."""
    return globals()[name](*args)
