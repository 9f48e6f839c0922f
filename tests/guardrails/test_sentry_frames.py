"""The stack in a standard error, and nothing else of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.telemetry.sentry.frames import Frame, fatal, uncaught

SECRET = "sk-planted-0451"


def fail(depth: int, error: BaseException) -> None:
    if depth:
        fail(depth - 1, error)
    else:
        raise error


def raised(depth: int, error: BaseException) -> tuple[str, list[Frame]]:
    """The text of its traceback, and the stack as Python has it."""
    try:
        fail(depth, error)
    except type(error) as caught:
        text = "".join(traceback.format_exception(caught))
        stack = traceback.extract_tb(caught.__traceback__)
        return text, [Frame(frame.filename, frame.lineno or 0, frame.name) for frame in stack]
    raise AssertionError


@given(st.integers(0, 2), st.sampled_from([ValueError, KeyError, RuntimeError, OSError]), st.text(max_size=80))
def test_the_stack_of_a_real_exception(depth, kind, message):
    text, stack = raised(depth, kind(message))
    found = uncaught(text)
    assert [(one.type, list(one.frames)) for one in found[-1:]] == [(kind.__name__, stack)]


def test_a_chain_begins_with_what_it_came_from():
    def outer():
        try:
            fail(0, ValueError(f"{SECRET}\nin two lines"))
        except ValueError as error:
            raise RuntimeError("later") from error

    try:
        outer()
    except RuntimeError as error:
        text = "".join(traceback.format_exception(error))
    first, second = uncaught(text)
    assert (first.type, first.message) == ("ValueError", f"{SECRET}\nin two lines")
    assert (second.type, second.message) == ("RuntimeError", "later")
    assert [frame.function for frame in first.frames] == ["outer", "fail"]
    assert second.frames[-1].function == "outer"


def test_only_the_last_exception_counts_and_not_one_that_was_logged_before():
    caught, _ = raised(0, ValueError("caught, and logged"))
    died, stack = raised(1, KeyError("gone"))
    (found,) = uncaught(f"{caught}\na line between\n{died}\nand after")
    assert (found.type, list(found.frames)) == ("KeyError", stack)


def test_a_stack_whose_beginning_is_cut_off():
    text, stack = raised(2, ValueError("x"))
    lines = text.splitlines()
    second = [number for number, line in enumerate(lines) if line.startswith("  File")][1]
    (found,) = uncaught("\n".join(lines[second:]))
    assert found.type == "ValueError"
    assert list(found.frames) == stack[1:]


def test_a_group_is_known_by_its_own_stack():
    text, stack = raised(0, ExceptionGroup("several", [ValueError(SECRET), TypeError("b")]))
    (found,) = uncaught(text)
    assert (found.type, list(found.frames)) == ("ExceptionGroup", stack)
    assert SECRET not in repr(found)


def test_a_syntax_error_has_no_function():
    text = textwrap.dedent("""\
        Traceback (most recent call last):
          File "/app/main.py", line 1, in <module>
            import broken
          File "/app/broken.py", line 3
            def f(:
                  ^
        SyntaxError: invalid syntax
    """)
    (found,) = uncaught(text)
    assert found.type == "SyntaxError"
    assert found.frames == (Frame("/app/main.py", 1, "<module>"), Frame("/app/broken.py", 3, None))


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("ValueError", "ValueError"),
        ("ValueError: x", "ValueError"),
        ("myapp.images.Unreadable: x", "myapp.images.Unreadable"),
        ("BackendError: x", "BackendError"),
        ("SystemExit: 3", "SystemExit"),
        # What stands there may have been written by somebody else in the same moment.
        ("Paris: capital of France", None),
        ("Hello", None),
        (f"{SECRET}: x", None),
        ("api.example.com: x", None),
        ("El precio es: 3", None),
        ("K" * 500 + "Error: x", None),
    ],
)
def test_a_class_is_taken_only_if_it_is_named_like_one(last, expected):
    (found,) = uncaught(f'Traceback (most recent call last):\n  File "/a.py", line 1, in f\n{last}\n')
    assert found.type == expected


def test_no_stack_no_exception():
    assert uncaught("") == []
    assert uncaught("llama_decode: failed\nValueError: said a log line\n") == []
    assert fatal("Segmentation fault\n") == []


@given(st.text(), st.integers(0, 3))
def test_whatever_a_message_says_it_is_in_neither_the_class_nor_the_stack(message, depth):
    text, _ = raised(depth, ValueError(SECRET + message + SECRET))
    for one in uncaught(text):
        assert SECRET not in f"{one.type} {one.frames}"


LINES = st.sampled_from([
    "Traceback (most recent call last):",
    '  File "/a.py", line 1, in f',
    '  File "/a.py", line 1 in f',
    '  File "/a.py", line 99999999999999999999, in f',
    "    return 1",
    "ValueError: x",
    "ValueError",
    "Current thread 0x00007f4e427e1b80 (most recent call first):",
    "During handling of the above exception, another exception occurred:",
    "",
    "  | ",
    "  + Exception Group Traceback (most recent call last):",
    "  +-+---------------- 1 ----------------",
])  # fmt: skip


@given(st.lists(st.one_of(LINES, st.text(max_size=20)), max_size=40).map("\n".join))
def test_any_text_can_be_read(text):
    for one in (*uncaught(text), *fatal(text)):
        assert one.frames
        assert len(one.message) <= 4096


def test_what_is_endless_is_cut():
    frames = "\n".join(f'  File "/a.py", line {n}, in f' for n in range(5000))
    (found,) = uncaught(f"Traceback (most recent call last):\n{frames}\nRecursionError: x")
    assert [frame.line for frame in found.frames] == list(range(4900, 5000))  # the innermost
    block = 'Traceback (most recent call last):\n  File "/a.py", line 1, in f\nValueError: x\n\n'
    link = "During handling of the above exception, another exception occurred:\n\n"
    assert len(uncaught(link.join([block] * 40))) == 5


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_where_a_signal_hit_as_a_real_process_tells():
    program = textwrap.dedent("""\
        import faulthandler, os, signal, sys, threading
        faulthandler.enable()
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        def inner(prompt):
            os.kill(os.getpid(), signal.SIGSEGV)
        def outer(prompt):
            inner(prompt)
        print("an earlier line", file=sys.stderr)
        outer("planted")
    """)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGSEGV
    (found,) = fatal(ended.stderr)
    assert found.type is None
    assert [(frame.file, frame.line, frame.function) for frame in found.frames] == [
        ("<string>", 9, "<module>"),
        ("<string>", 7, "outer"),
        ("<string>", 5, "inner"),
    ]
