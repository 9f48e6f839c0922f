"""Can be imported by one process only; that one waits until another has failed to."""

import os
import time

try:
    os.close(os.open(os.environ["ONCE"], os.O_CREAT | os.O_EXCL))
except FileExistsError:
    raise RuntimeError("not the first") from None
time.sleep(float(os.environ["LOAD"]))


def echo(value):
    return value
