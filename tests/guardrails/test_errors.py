from __future__ import annotations

import copy
import pickle

import pybreaker
import pytest

from guardrails import errors
from guardrails.errors import (
    CircuitOpen,
    Failed,
    GuardrailError,
    InternalError,
    MemoryRefused,
    MissingExtra,
    QueueFull,
    Rejected,
    TimedOut,
    WaitTimeout,
)


@pytest.mark.parametrize("error", [CircuitOpen, QueueFull, WaitTimeout, MemoryRefused])
def test_every_refusal_is_a_rejected(error):
    assert issubclass(error, Rejected)
    assert issubclass(error, GuardrailError)
    assert not issubclass(error, Failed)


def test_circuit_open_is_pybreakers_error_too():
    assert issubclass(CircuitOpen, pybreaker.CircuitBreakerError)


def test_timed_out_is_a_timeout_error_and_a_failure():
    assert issubclass(TimedOut, TimeoutError)
    assert issubclass(TimedOut, Failed)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Rejected, "rejected"),
        (CircuitOpen, "open"),
        (QueueFull, "queue_full"),
        (WaitTimeout, "wait_timeout"),
        (MemoryRefused, "memory_critical"),
    ],
)
def test_each_refusal_has_a_default_reason(error, reason):
    assert error("g").reason == reason


def test_a_reason_can_be_given():
    assert CircuitOpen("g", reason="half_open").reason == "half_open"
    assert CircuitOpen.reason == "open"


def test_the_message_names_the_guard_the_reason_and_the_wait():
    assert str(QueueFull("chat")) == "chat: queue full"
    assert str(QueueFull("chat", detail="8 calls wait already")) == "chat: 8 calls wait already"
    assert str(CircuitOpen("chat", retry_after=1.23456)) == "chat: open (retry after 1.23 s)"


@pytest.mark.parametrize(
    ("limit", "text"), [("total", "no answer"), ("first", "no first item"), ("idle", "no further item")]
)
def test_timed_out_says_which_limit_was_passed(limit, text):
    error = TimedOut("slow", limit=limit, seconds=2.5)
    assert str(error) == f"slow: {text} within 2.5 s"
    assert (error.guard, error.limit, error.seconds) == ("slow", limit, 2.5)


def test_timed_out_does_not_pose_as_an_error_of_the_operating_system():
    assert TimedOut("slow", limit="total", seconds=2).errno is None
    assert TimedOut("slow", limit="total", seconds=2).filename is None


@pytest.mark.parametrize(
    "error",
    [
        Rejected("a", reason="b", retry_after=1.5, detail="c"),
        CircuitOpen("a", reason="half_open", retry_after=1.5, detail="c"),
        QueueFull("a"),
        WaitTimeout("a", detail="c"),
        MemoryRefused("a", reason="memory_too_large"),
        TimedOut("a", limit="first", seconds=3),
        InternalError("broken"),
        MissingExtra("the http transport", extra="http", module="httpx2"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    "through", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"]
)
def test_errors_survive_a_process_boundary(error, through):
    error.add_note("seen by the caller")
    twin = through(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_a_missing_extra_is_one_line_with_the_command():
    error = MissingExtra("the http transport", extra="http", module="httpx2")
    assert isinstance(error, ImportError)
    assert error.name == "httpx2"
    assert str(error) == "the http transport needs the package 'httpx2': pip install 'guarded-runners[http]'"


def test_the_public_module_has_what_it_lists_and_nothing_else():
    for name in errors.__all__:
        assert getattr(errors, name).__name__ == name
    with pytest.raises(AttributeError, match="CircuitClosed"):
        _ = errors.CircuitClosed
