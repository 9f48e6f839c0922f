"""Takes as long to import as the variable LOAD says."""

import os
import time

time.sleep(float(os.environ["LOAD"]))


def pid():
    return os.getpid()
