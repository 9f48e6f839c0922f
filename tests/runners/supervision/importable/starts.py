"""Functions that start processes of their own. Each writes the numbers of those to a file."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
_kept = []


def child(path, *, session=False, wait=0.0):
    """A program that runs on."""
    process = subprocess.Popen(_SLEEP, start_new_session=session)
    _kept.append(process)
    _write(path, process.pid)
    time.sleep(wait)
    return process.pid


def grandchild(path):
    """A program that a program started which has ended."""
    start = f"import subprocess; print(subprocess.Popen({_SLEEP!r}, stdout=subprocess.DEVNULL).pid)"
    pid = int(subprocess.check_output([sys.executable, "-S", "-c", start]))
    _write(path, pid)
    return pid


def forked(path):
    """A fork, as multiprocessing makes one."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    _kept.append(process)
    _write(path, process.pid)
    return process.pid


def terminated(how):
    """How a child ends that is sent SIGTERM."""
    if how == "program":
        process = subprocess.Popen(_SLEEP)
        process.terminate()
        return process.wait(20)
    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    forked.start()
    forked.terminate()
    forked.join(20)
    return forked.exitcode


def send_oneself(name):
    os.kill(os.getpid(), getattr(signal, name))
    return os.getpid()


def act(name, *args, **kwargs):
    return globals()[name](*args, **kwargs)


def _write(path, pid):
    Path(f"{path}.part").write_text(str(pid))
    Path(f"{path}.part").rename(path)


def wait_for_any():
    return os.wait()
