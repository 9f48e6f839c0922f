"""Says that it is being imported, and takes its time."""

import os
import time
from pathlib import Path

Path(os.environ["MARK"]).touch()
time.sleep(30)


def echo(value):
    return value
