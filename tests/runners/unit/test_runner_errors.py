"""The tree of errors is the one that its docstring draws, and errors of the worker arrive as the right ones."""

from __future__ import annotations

import builtins
import copy
import inspect
import pickle
import re

import pytest

import guardrails.errors
from guardrails.core.errors import CallerError, Failed, GuardrailError, Rejected
from guardrails.core.outcome import classify
from runners import errors
from runners.errors import (
    BudgetTooSmall,
    MissingExtra,
    RemoteError,
    RemoteTraceback,
    RunnerCrashed,
    RunnerError,
    RunnerUnavailable,
    StartFailed,
    request_error,
    start_error,
)
from runners.protocol.messages import ErrorInfo


def drawn():
    """Class, parent, and further bases, as the docstring of the module draws them."""
    path: list[str] = ["GuardrailError"]
    for line in inspect.getdoc(errors).splitlines():
        found = re.match(r"^([│├└─ ]*[├└]── )(\(.*\)|\w+)(.*)$", line)
        if found is None:
            continue
        depth = len(found[1]) // 4 - 1  # the drawing is set in by one step
        del path[depth:]
        path.append(found[2])
        if not found[2].startswith("("):
            also = re.search(r"\(also (\w+)\)", found[3])
            yield (
                found[2],
                [name for name in path[:-1] if not name.startswith("(")][-1],
                "(" in "".join(path[:-1]),
                also and also[1],
            )


def test_the_drawing_is_read():
    assert len(list(drawn())) > 15


@pytest.mark.parametrize(("name", "parent", "accepted", "also"), list(drawn()))
def test_every_class_of_the_drawing_has_the_bases_it_says(name, parent, accepted, also):
    cls = getattr(errors, name)
    assert issubclass(cls, getattr(errors, parent))
    assert issubclass(cls, Failed) == accepted
    if also:
        assert issubclass(cls, getattr(builtins, also, None) or getattr(guardrails.errors, also))


def test_the_mistakes_of_callers_are_marked_and_ignored():
    marked = set(re.findall(r"── (\w+) \*", inspect.getdoc(errors)))
    assert marked == {name for name, *_ in drawn() if issubclass(getattr(errors, name), CallerError)}
    for error in (
        errors.InvalidInput("x"),
        errors.InvalidType("x"),
        errors.PromptTooLong("x", prompt=2, wanted=3, context=1),
        errors.TemplateFailed("x"),
        errors.UnsendableValue("x"),
        errors.PoisonedRequest("x"),
    ):
        assert classify(error).kind == "ignored"
    for error in (RunnerCrashed("x"), errors.RequestTimeout("x"), errors.StartFailed("x"), RunnerError("x")):
        assert classify(error).kind == "failure"


@pytest.mark.parametrize("type_", ["ValueError", "TimeoutError", "my.Error"])
@pytest.mark.parametrize(("outcome", "wait"), [("ignored", None), ("throttled", 7.0), ("failure", None)])
def test_a_remote_error_counts_as_what_was_raised(type_, outcome, wait):
    info = ErrorInfo(kind="exception", message="x", type=type_, outcome=outcome, retry_after=wait)
    error = request_error(info, "r")
    for each in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (classify(each).kind, classify(each).retry_after) == (outcome, wait)


def test_every_class_is_in_the_drawing():
    shown = {name for name, *_ in drawn()}
    defined = {
        name
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, GuardrailError) and cls.__module__ == "runners.errors"
    }
    assert defined == shown - {"Rejected", "QueueFull"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("model_not_found", "ModelNotFound"),
        ("model_invalid", "InvalidModel"),
        ("model_unsupported", "UnsupportedModel"),
        ("tokenizer_not_found", "TokenizerNotFound"),
        ("tokenizer_invalid", "InvalidModel"),
        ("function_not_found", "FunctionNotFound"),
        ("bad_option", "InvalidOption"),
        ("exception", "StartFailed"),
        ("a kind of the future", "StartFailed"),
    ],
)
def test_errors_of_loading(kind, name):
    error = start_error(ErrorInfo(kind=kind, message="why"), "r")
    assert type(error) is getattr(errors, name)
    assert str(error) == "r: why"
    assert isinstance(error, StartFailed)


def test_a_missing_extra_in_the_worker():
    error = start_error(ErrorInfo(kind="missing_extra", message="onnxruntime"), "r")
    assert type(error) is MissingExtra
    assert "pip install 'guarded-runners[onnx]'" in str(error)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("unsendable", "UnsendableValue"),
        ("input", "InvalidInput"),
        ("exception", "RemoteError"),
        ("?", "RunnerError"),
        ("stream_mismatch", "StreamMismatch"),
    ],
)
def test_errors_of_requests(kind, name):
    assert type(request_error(ErrorInfo(kind=kind, message="why"), "r")) is getattr(errors, name)


@pytest.mark.parametrize("name", sorted(errors._PLAIN))
def test_a_remote_builtin_is_caught_as_itself(name):
    error = request_error(ErrorInfo(kind="exception", message="why", type=name, traceback="Traceback ..."), "r")
    assert isinstance(error, getattr(builtins, name))
    assert isinstance(error, RemoteError)
    assert (str(error), error.type, error.message) == (f"{name}: why", name, "why")
    assert isinstance(error.__cause__, RemoteTraceback)
    assert "Traceback ..." in str(error.__cause__)


@pytest.mark.parametrize(
    "name", ["myapp.ValueError", "SystemExit", "UnicodeDecodeError", "", "__import__", "StopIteration"]
)
def test_other_remote_errors_are_only_remote_errors(name):
    assert type(request_error(ErrorInfo(kind="exception", message="why", type=name), "r")) is RemoteError


@pytest.mark.parametrize(
    "error",
    [
        request_error(ErrorInfo(kind="exception", message="why", type="KeyError", traceback="trace"), "r"),
        request_error(ErrorInfo(kind="exception", message="why", type="app.Error", traceback="trace"), "r"),
        request_error(ErrorInfo(kind="exception", message="why", type="FileNotFoundError", numbers={"errno": 2}), "r"),
        request_error(ErrorInfo(kind="exception", message="why", type="TimeoutError"), "r"),
        BudgetTooSmall("small", needed=7),
        RunnerCrashed("gone", exit="by a signal", stderr="words", partial="so far"),
        RunnerUnavailable("r", retry_after=1.5, detail="it fails"),
        start_error(ErrorInfo(kind="model_not_found", message="why"), "r"),
        errors.RequestTimeout("late"),
    ],
)
def test_errors_survive_pickling_and_copying(error):
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert getattr(again, "errno", None) == getattr(error, "errno", None)
        assert {k: v for k, v in vars(again).items() if not k.startswith("__")} == vars(error)


def test_a_refusal_says_until_when():
    error = RunnerUnavailable("r", retry_after=1.25, detail="it fails")
    assert isinstance(error, Rejected)
    assert not isinstance(error, RunnerError)
    assert (error.reason, error.retry_after) == ("failed", 1.25)
    assert str(error) == "r: it fails (retry after 1.25 s)"
