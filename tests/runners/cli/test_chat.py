"""`runners complete` and `runners chat` with SmolLM2-135M, through pipes and in a real terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from runners.cli.generate import harmless
from runners.cli.models import ModelsMissing, find_smollm2
from tests.support import Terminal

pytestmark = pytest.mark.slow

pytest.importorskip("llama_cpp")
try:
    MODEL = os.fspath(find_smollm2())
except ModelsMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

SHORT = ("--context", "512", "--temperature", "0")


def runners(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runners", *arguments]
    done = subprocess.run(command, input=typed, capture_output=True, text=True, timeout=110, check=False)
    done.stderr = without_progress(done.stderr)
    return done


def without_progress(stderr: str) -> str:
    """What a command says besides that it is still loading, which depends on how busy the machine is."""
    return re.sub(r"^loading [^\n]*: \d+ s\n", "", stderr, flags=re.MULTILINE)


def test_complete_prints_what_comes_and_nothing_else() -> None:
    arguments = ("complete", MODEL, "The capital of France is", *SHORT, "--max-tokens", "8")
    told = json.loads(runners(*arguments, "--json").stdout)
    done = runners(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == harmless(told["text"]).removesuffix("\n") + "\n"
    stop = told["text"][-2:]
    assert runners(*arguments, "--stop", stop).stdout == harmless(told["text"].partition(stop)[0]) + "\n"


def test_complete_reads_the_prompt_and_tells_numbers() -> None:
    done = runners("complete", MODEL, *SHORT, "--max-tokens", "3", "--json", typed="One, two, three,")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["finish_reason"], told["completion_tokens"]) == ("length", 3)
    assert told["prompt_tokens"] >= 6
    assert told["text"]


def test_piped_messages_are_one_conversation_until_reset() -> None:
    # Each message fills more than half of the context: two of one conversation do not fit.
    arguments = ("chat", MODEL, *SHORT, "--max-tokens", "4")
    message = "word " * 300
    done = runners(*arguments, typed=f"{message}\n{message}\nnever answered\n")
    assert done.returncode == 1
    assert "512" in done.stderr
    assert done.stdout.count("\n\n") == 1
    done = runners(*arguments, typed=f"{message}\n/reset\n{message}\n/exit\nnever answered\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n\n") == 2


def test_a_reader_that_goes_away_ends_it() -> None:
    command = [sys.executable, "-m", "runners", "complete", MODEL, "Once", "--max-tokens", "400"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait(timeout=60) == 128 + 13
        assert without_progress(process.stderr.read().decode()) == ""


def test_ctrl_c_ends_a_completion() -> None:
    command = [sys.executable, "-m", "runners", "complete", MODEL, "Once", "--max-tokens", "400"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 128 + signal.SIGINT
        assert without_progress(process.stderr.read().decode()) == "\n"
        assert process.stdout.read().endswith(b"\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("complete", "nothing.gguf", "x"), "there is no file 'nothing.gguf'"),
        (("chat", __file__), "is not a GGUF file"),
        (("complete", MODEL, "x", "--memory", "100MiB"), "it needs memory="),
        (("complete", MODEL, "x", "--memory", "much"), "memory"),
        (("complete", MODEL, "x", "--slots", "0"), "slots takes 1 to 254"),
        (("complete", MODEL, "x", "--top-p", "7"), "top_p: takes a number from 0 to 1"),
        (("complete", MODEL, "word " * 600, *SHORT), "512"),
    ],
    ids=["no file", "no model", "budget", "size", "slots", "top_p", "long"],
)
def test_an_error_is_one_line(arguments: tuple[str, ...], said: str) -> None:
    done = runners(*arguments, typed="hello\n")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"runners {arguments[0]}: ")
    assert said in line


@pytest.mark.parametrize("command", ["complete", "chat"])
def test_help_teaches(command: str) -> None:
    done = runners(command, "--help")
    assert done.returncode == 0
    assert f"runners {command} smollm2.gguf" in done.stdout
    assert "--max-tokens" in done.stdout


def test_a_model_s_text_cannot_move_the_cursor() -> None:
    assert harmless("a\tb\nc\x1b[2J\rd é 汉") == "a\tb\nc\ufffd[2J\ufffdd é 汉"


# In a terminal


@pytest.fixture
def chat() -> Iterator[Terminal]:
    one = Terminal("runners", "chat", MODEL, "--context", "1024", "--temperature", "0", "--max-tokens", "300")
    one.until("> ")
    yield one
    one.close()


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(chat: Terminal) -> None:
    chat.type("Tell me a long story about a ship.\n")
    chat.until(r"ship\.\r\n.*?\S")  # it has begun
    chat.type("\x03")
    chat.until(r"Stopped\..*> ")
    chat.type("half a line")
    chat.until("half a line")
    time.sleep(0.5)  # CPython looks for signals, and then waits for a key: one that comes in between waits for it too
    chat.type("\x03")
    chat.until(r"Ctrl-D or /exit leaves\..*> ")
    chat.type("/reset\n")
    chat.until(r"A new conversation\..*> ")
    chat.type("\x04")
    assert chat.end() == 0
    assert "Traceback" not in chat.all


def test_a_worker_that_dies_costs_one_answer(chat: Terminal) -> None:
    chat.type("Tell me a long story about a ship.\n")
    chat.until(r"ship\.\r\n.*?\S")
    (worker,) = psutil.Process(chat.process.pid).children()
    worker.kill()
    assert "SIGKILL" in chat.until(r"The message was not answered; send it again, or /exit\..*> ")
    chat.type("Say: yes.\n")
    chat.until(r"yes\.\r\n.*?\S")
    chat.type("\x03")
    chat.until("> ")
    chat.type("/exit\n")
    assert chat.end() == 0
    assert "Traceback" not in chat.all


def test_chats_of_the_demo_in_a_grid() -> None:
    demo = Terminal("runners", "demo", "--act", "2", "--tokens", "16")
    try:
        assert demo.end(90) == 0, demo.all[-3000:]
    finally:
        demo.close()
    assert "╭─" in demo.all
    assert "↻ " in demo.all  # one that was asked again
    table = dict(re.findall(r"^  (\w[\w /]+?) {2,}(\d[^\r\n]*)", demo.all, re.MULTILINE))
    assert (table["chats at once"], table["came to their end"], table["lost"]) == ("16", "16", "0")
    assert table["worker killed"].startswith("1 of 2, after")
    assert int(table["redelivered"]) + int(table["asked again"]) >= 1
    assert "RunnerCrashed with" in demo.all
    assert "Traceback" not in demo.all
