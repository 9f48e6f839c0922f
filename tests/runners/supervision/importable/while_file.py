"""Can be imported only while the file that FLAG names is there."""

import os
import time
from pathlib import Path

if not Path(os.environ["FLAG"]).exists():
    raise RuntimeError("the cause of all failures")
time.sleep(float(os.environ.get("LOAD", "0")))


def pid():
    return os.getpid()


def nap():
    time.sleep(0.01)
    return os.getpid()
