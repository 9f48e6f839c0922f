"""The demo, short, as a person runs it; and what is left when it is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tests.support import wait_for

pytestmark = pytest.mark.slow

TEXTS = 200


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "runners", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def demo() -> Iterator[subprocess.Popen[str]]:
    process = start("demo", "--act", "1", "--texts", str(TEXTS), "--kills", "1")
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_the_demo_loses_nothing(demo: subprocess.Popen[str]) -> None:
    output, errors = demo.communicate(timeout=100)
    assert demo.returncode == 0, output + errors
    table = {line[2:22].strip(): line[22:].strip() for line in output.splitlines() if line.startswith("  ")}
    assert table["requests"] == table["answered"] == str(TEXTS)
    assert table["lost"] == table["answered twice"] == "0"
    assert "1 x sigkill" in table["worker ended"]
    assert float(table["worst cosine"]) >= 0.9999
    assert f"/{TEXTS}" in errors  # progress was shown


def test_no_worker_outlives_a_demo_that_is_killed(demo: subprocess.Popen[str]) -> None:
    parent = psutil.Process(demo.pid)
    assert wait_for(parent.children, 30)
    (worker,) = parent.children()
    os.kill(demo.pid, signal.SIGKILL)
    assert wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 2)


def test_ctrl_c_ends_it_in_one_line(demo: subprocess.Popen[str]) -> None:
    assert wait_for(psutil.Process(demo.pid).children, 30)
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate(timeout=20)
    assert demo.returncode == 128 + signal.SIGINT
    assert errors.endswith("\nended by Ctrl-C\n")
    assert "Traceback" not in errors


def test_without_a_command_the_help_teaches() -> None:
    process = start()
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "runners demo" in output


@pytest.mark.parametrize("arguments", [("demo", "--texts", "0"), ("demo", "--texts", "many"), ("nothing",)])
def test_wrong_arguments_are_refused_by_name(arguments: tuple[str, ...]) -> None:
    process = start(*arguments)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert arguments[-1] in errors
