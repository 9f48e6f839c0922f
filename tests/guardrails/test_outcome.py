from __future__ import annotations

import asyncio
import urllib.error
from email.message import Message
from email.utils import formatdate
from http import HTTPStatus
from types import SimpleNamespace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from guardrails.core.outcome import Outcome, classify, classify_result, is_cancellation, refusal_of, retry_after
from guardrails.core.retry_after import MAX_RETRY_AFTER
from guardrails.errors import QueueFull, TimedOut


class HTTPError(Exception):
    def __init__(self, **attributes):
        super().__init__(attributes)
        vars(self).update(attributes)


def response(status, **headers):
    return SimpleNamespace(
        status_code=status, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "ignored"),
        (401, "ignored"),
        (404, "ignored"),
        (408, "failure"),
        (422, "ignored"),
        (429, "throttled"),
        (500, "failure"),
        (502, "failure"),
        (503, "failure"),
        (529, "throttled"),
        (302, "failure"),
    ],
)
@pytest.mark.parametrize(
    "shape",
    [
        lambda status: HTTPError(status_code=status),
        lambda status: HTTPError(status=status),
        lambda status: HTTPError(response=response(status)),
        lambda status: urllib.error.HTTPError("http://x", status, "no", Message(), None),
    ],
    ids=["openai", "aiohttp", "requests", "urllib"],
)
def test_errors_are_read_by_shape(shape, status, kind):
    outcome = classify(shape(status))
    assert outcome.kind == kind
    assert isinstance(outcome.exception, Exception)


def test_a_status_may_be_an_enum():
    assert classify(HTTPError(status_code=HTTPStatus.TOO_MANY_REQUESTS)).kind == "throttled"


@pytest.mark.parametrize("error", [ValueError(), OSError(), TimeoutError(), TimedOut("t", limit="total", seconds=1)])
def test_an_error_without_a_status_is_a_failure(error):
    assert classify(error).kind == "failure"


@pytest.mark.parametrize("nonsense", [None, True, "503", 503.0, [503]])
def test_a_status_that_is_no_whole_number_is_none(nonsense):
    assert classify(HTTPError(status_code=nonsense)).kind == "failure"
    assert classify_result(SimpleNamespace(status_code=nonsense)).kind == "success"


@pytest.mark.parametrize("exc", [asyncio.CancelledError(), GeneratorExit(), KeyboardInterrupt(), SystemExit()])
def test_what_stops_a_call_from_outside_is_ignored(exc):
    assert classify(exc).kind == "ignored"


def test_cancellation_is_told_from_errors():
    assert is_cancellation(asyncio.CancelledError())
    assert is_cancellation(trio.Cancelled._create())
    assert not is_cancellation(TimeoutError())
    assert classify(trio.Cancelled._create()).kind == "ignored"


def test_a_refusal_of_ours_is_ignored():
    assert classify(QueueFull("inner")).kind == "ignored"


def test_a_group_is_as_bad_as_its_worst_member():
    refused, throttled, failed = QueueFull("inner"), HTTPError(response=response(429, retry_after="7")), ValueError()
    assert classify(ExceptionGroup("tasks", [refused, ExceptionGroup("more", [refused])])).kind == "ignored"
    both = classify(ExceptionGroup("tasks", [refused, throttled]))
    assert (both.kind, both.retry_after) == ("throttled", 7.0)
    assert classify(ExceptionGroup("tasks", [throttled, ExceptionGroup("more", [refused, failed])])).kind == "failure"


def test_a_group_with_a_cancellation_is_ignored():
    assert classify(BaseExceptionGroup("tasks", [asyncio.CancelledError(), ValueError()])).kind == "ignored"


@pytest.mark.parametrize(
    ("status", "kind"), [(200, "success"), (304, "success"), (404, "ignored"), (429, "throttled"), (503, "failure")]
)
def test_a_returned_response_speaks_for_itself(status, kind):
    assert classify_result(response(status)).kind == kind
    assert classify_result(response(HTTPStatus(status))).kind == kind


def test_a_group_asks_for_the_longest_wait_of_its_members():
    short, long = (HTTPError(response=response(429, retry_after=seconds)) for seconds in ("3", "40"))
    for members in ([short, long], [long, short], [short, ExceptionGroup("more", [ValueError(), long])]):
        assert classify(ExceptionGroup("tasks", members)).retry_after == 40.0
    refusals = ExceptionGroup("tasks", [QueueFull("a", retry_after=2), QueueFull("b", retry_after=5), QueueFull("c")])
    assert (classify(refusals).kind, classify(refusals).retry_after) == ("ignored", 5.0)


def test_a_group_of_refusals_is_a_refusal():
    first, second = QueueFull("a"), QueueFull("b")
    assert refusal_of(first) is first
    assert refusal_of(ExceptionGroup("tasks", [ExceptionGroup("more", [second]), first])) is second
    for other in (None, ValueError(), ExceptionGroup("tasks", [first, ExceptionGroup("more", [ValueError()])])):
        assert refusal_of(other) is None


@pytest.mark.parametrize("result", [None, 503, "text", [1], {"status_code": 503}, SimpleNamespace(status=503)])
def test_anything_else_returned_is_a_success(result):
    assert classify_result(result).kind == "success"


def test_503_with_retry_after_is_throttled():
    outcome = classify_result(response(503, retry_after="3"))
    assert (outcome.kind, outcome.retry_after) == ("throttled", 3.0)


class Explosive:
    def __getattr__(self, name):
        raise AttributeError(name) if name.startswith("__") else RuntimeError(name)


class ExplosiveError(Exception):
    response = property(lambda self: 1 / 0)


def test_attributes_that_raise_are_no_answer():
    assert classify_result(Explosive()).kind == "success"
    assert classify(ExplosiveError()).kind == "failure"
    assert classify(HTTPError(response=Explosive())).kind == "failure"
    assert classify(HTTPError(status=429, headers=Explosive())).retry_after is None


# Retry-After


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": 0}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "junk", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "nan", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "", "retry-after": "7"}, 7.0),
    ],
)
def test_retry_after_in_seconds_and_milliseconds(headers, seconds):
    assert retry_after(headers) == seconds


@pytest.mark.parametrize(
    "junk", ["", "soon", "nan", "inf", "-inf", "7 seconds", "99:99", b"\xff", [], object(), 10**400]
)
def test_junk_is_no_answer(junk):
    assert retry_after({"retry-after": junk}) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "1e308"},
        {"retry-after": "9999999"},
        {"retry-after": 86_401},
        {"retry-after-ms": "1e308"},
        {"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"},
        {"retry-after": "Fri, 31 Dec 9999 23:59:59 -2359"},
    ],
)
def test_no_dependency_can_ask_for_more_than_a_day(headers):
    assert retry_after(headers) == MAX_RETRY_AFTER == 86_400


@pytest.mark.parametrize(
    ("given", "held"),
    [
        (None, None),
        (3, 3.0),
        ("3", 3.0),
        (-1, 0.0),
        (1e308, 86_400.0),
        (float("inf"), None),
        (float("nan"), None),
        ("x", None),
    ],
)
def test_an_outcome_holds_a_wait_that_can_be_used(given, held):
    # Whoever made it: a classify of the user's, or a guard inside that was misused.
    assert Outcome("throttled", None, given).retry_after == held
    assert classify(QueueFull("inner", retry_after=given)).retry_after == held


@pytest.mark.parametrize("headers", [None, 7, "retry-after: 7", [], SimpleNamespace(get=lambda: 1), Explosive()])
def test_headers_of_another_kind_are_no_answer(headers):
    assert retry_after(headers) is None


NOW = 1_700_000_000


@pytest.mark.parametrize("seconds", [0, 1, 3600])
def test_a_date_is_read_against_the_wall_clock(seconds):
    date = formatdate(NOW + seconds, usegmt=True)
    assert retry_after({"retry-after": date}, wall_now=NOW) == seconds
    assert classify(HTTPError(response=response(429, retry_after=date))).retry_after == 0.0  # long past


def test_a_date_in_the_past_means_now():
    assert retry_after({"retry-after": formatdate(NOW - 5, usegmt=True)}, wall_now=NOW) == 0.0


def test_a_date_without_a_zone_is_in_gmt(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        date = formatdate(NOW + 60, usegmt=True).removesuffix(" GMT")
        assert retry_after({"retry-after": date}, wall_now=NOW) == 60.0
    finally:
        monkeypatch.undo()
        time.tzset()


@given(
    st.one_of(st.text(), st.binary(), st.floats(), st.integers(), st.none()),
    st.one_of(st.text(), st.floats(), st.none()),
)
def test_no_header_can_break_the_verdict(value, milliseconds):
    outcome = classify(HTTPError(response=response(429, retry_after=value, retry_after_ms=milliseconds)))
    assert outcome.kind == "throttled"
    assert outcome.retry_after is None or 0 <= outcome.retry_after < float("inf")
