"""Functions whose memory grows in ways that the tests of budgets need."""

import os
import time
from pathlib import Path

_kept = []


def climb(path, over, size, step=8 << 20):
    """Takes `size` bytes in steps, and says in `path` when more than `over` bytes are taken; then holds them."""
    marked = False
    for taken in range(step, size + step, step):
        _kept.append(b"\x01" * step)
        if taken > over and not marked:
            marked = True
            with Path(path).open("a") as file:
                file.write(f"{time.monotonic()}\n")
    time.sleep(20)


def climb_and_free(size, seconds, kept=0, step=4 << 20):
    """Takes `size` bytes in steps, over so many seconds, and frees all but `kept` of them."""
    _kept.append(b"\x01" * kept)
    taken = []
    for _ in range(0, size, step):
        taken.append(b"\x01" * step)
        time.sleep(seconds * step / size)
    return os.getpid()


def leak(size, seconds):
    _kept.append(b"\x01" * size)
    time.sleep(seconds)
    return os.getpid()


def leak_once_and_hold(path, go, size):
    """Waits until `go` exists; the first call ever takes `size` bytes before."""
    if not Path(path).exists():
        _kept.append(b"\x01" * size)
        Path(path).touch()
    while not Path(go).exists():
        time.sleep(0.005)
    return os.getpid()


def leak_a_part(data, share):
    """Leaves `share` times the size of its argument behind."""
    _kept.append(b"\x01" * (len(data) * share))
    return len(data)


def echo(value=None):
    return value


def act(name, *args):
    """Any of the others, where one test needs several of them in one worker."""
    return globals()[name](*args)
