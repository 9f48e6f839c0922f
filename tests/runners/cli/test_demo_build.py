"""Waiting for the build of llama-cpp-python beside the demo: real processes that write its log."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from runners.cli import demo_build

BUILDER = 'echo "builder $$" >{log}; {body}'


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "build.log"


def build(log: Path, body: str) -> subprocess.Popen[str]:
    script = BUILDER.format(log=log, body=body.replace("LOG", str(log)))
    return subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, text=True)


def wait_for_log(log: Path, words: str) -> None:
    end = time.monotonic() + 10
    while not log.exists() or words not in log.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_waits_until_the_build_has_worked(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = 'echo "[7/93] Building CXX object" >>LOG; sleep 0.5; echo "exit status 0" >>LOG'
    with build(log, f"echo begun; {body}") as process:
        wait_for_log(log, "[7/93]")
        assert demo_build.wait(log) is None
        process.wait(timeout=5)
    assert "building llama-cpp-python, once: 7 of 93 files" in capsys.readouterr().err


def test_one_that_has_ended_says_nothing(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_text("builder 1\n...\nexit status 0\n")
    assert demo_build.wait(log) is None
    assert capsys.readouterr().err == ""


def test_a_failure_has_its_last_error(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setenv("CXX", "c++")
    log.write_text("builder 1\nerror: one\nerror: no space left\nmake: over\nexit status 2\n")
    told = demo_build.wait(log)
    assert told == f"llama-cpp-python could not be built; its log is {log}. It ends with: error: no space left"


def test_without_a_compiler_it_says_how_to_get_one(log: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    log.write_text("builder 1\nexit status 1\n")
    told = demo_build.wait(log)
    assert told is not None
    assert "no C and C++ compiler here" in told
    assert "apt install build-essential" in told


def test_a_builder_that_is_gone_is_not_waited_for(log: Path) -> None:
    with build(log, "read never") as process:
        wait_for_log(log, "\n")
        process.kill()
    assert "could not be built" in (demo_build.wait(log) or "")
    assert "could not be built" in (demo_build.wait(log.with_name("no.log")) or "")


def test_the_demo_s_second_act_says_what_is_missing_and_the_first_still_counts(log: Path) -> None:
    program = (
        "import sys, importlib.util as u; find = u.find_spec; "
        "u.find_spec = lambda name, *rest: None if name == 'llama_cpp' else find(name, *rest); "
        "from runners.cli import demo, demo_embed; demo_embed.play = lambda **_: int(sys.argv[2]); "
        "acts = [int(act) for act in sys.argv[1]]; "
        "sys.exit(demo.run(acts, texts=1, callers=1, kills=0, tokens=1))"
    )

    def play(acts: str, first: int) -> tuple[int, str]:
        command = [sys.executable, "-c", program, acts, str(first)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stdout

    status, shown = play("12", 0)
    assert status == 0
    assert "not played: it needs llama-cpp-python: pip install 'guarded-runners[llama]'" in shown
    assert play("12", 1)[0] == 1
    assert play("2", 0)[0] == 2
