"""What exceptions and responses of client packages count as: of the real ones, or of classes with their shape."""

from __future__ import annotations

import asyncio
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import aiohttp
import botocore.exceptions
import botocore.retries.standard
import grpc
import grpc.aio
import httpx2
import pytest
import redis.exceptions
import requests
from google.api_core import exceptions as google
from google.protobuf.duration_pb2 import Duration

from guardrails import breaker, fallback, guard, limiter, retry
from guardrails.core.client_errors import _AWS_THROTTLED, _AWS_TIMED_OUT, _GRPC
from guardrails.core.outcome import classify, classify_result
from guardrails.errors import CallerError, CircuitOpen, QueueFull, RateLimited
from guardrails.testing import FakeClock

STATUSES = [
    (400, "ignored"),
    (404, "ignored"),
    (408, "failure"),
    (429, "throttled"),
    (500, "failure"),
    (503, "failure"),
]


class Answer(BaseHTTPRequestHandler):
    """Answers ``/429`` with status 429, and asks for 7 seconds of peace where that is the status."""

    def do_GET(self):
        status = int(self.path[1:])
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "7")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def url():
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def _aiohttp(url, *, raises):
    async def get():
        async with aiohttp.ClientSession(raise_for_status=raises) as session, session.get(url) as response:
            return response

    return asyncio.run(get())


def _httpx2(url, *, raises):
    with httpx2.Client(trust_env=False) as client:
        response = client.get(url)
    return response.raise_for_status() if raises else response


def _requests(url, *, raises):
    with requests.Session() as session:
        session.trust_env = False
        response = session.get(url)
    if raises:
        response.raise_for_status()
    return response


CLIENTS = pytest.mark.parametrize("get", [_aiohttp, _httpx2, _requests])


@CLIENTS
@pytest.mark.parametrize(("status", "kind"), [(200, "success"), *STATUSES])
def test_a_returned_response(url, get, status, kind):
    outcome = classify_result(get(f"{url}/{status}", raises=False))
    assert (outcome.kind, outcome.retry_after) == (kind, 7.0 if status == 429 else None)


@CLIENTS
@pytest.mark.parametrize(("status", "kind"), STATUSES)
def test_a_raised_status(url, get, status, kind):
    with pytest.raises(Exception, match=str(status)) as caught:
        get(f"{url}/{status}", raises=True)
    outcome = classify(caught.value)
    assert (outcome.kind, outcome.retry_after) == (kind, 7.0 if status == 429 else None)


@pytest.mark.parametrize(("status", "kind"), STATUSES)
def test_urllib(url, status, kind):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as caught:
        opener.open(f"{url}/{status}")
    caught.value.close()
    assert classify(caught.value).kind == kind
    with opener.open(f"{url}/200") as response:
        assert classify_result(response).kind == "success"


@CLIENTS
def test_a_connection_that_fails(get):
    with pytest.raises((aiohttp.ClientError, httpx2.TransportError, requests.ConnectionError)) as caught:
        get("http://127.0.0.1:1/", raises=True)
    assert classify(caught.value).kind == "failure"


# gRPC

KINDS = {"RESOURCE_EXHAUSTED": "throttled"} | dict.fromkeys(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"), "failure"
)


@contextmanager
def grpc_server():
    """A server whose every method ends with the status that the request names."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(answer)

    def answer(request, context):
        if request == b"RESOURCE_EXHAUSTED":
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "1500"),))
        context.abort(grpc.StatusCode[request.decode()], "on request")

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_every_status_of_grpc_is_known():
    assert set(_GRPC) == {code.name for code in grpc.StatusCode} - {"OK"}


@pytest.mark.parametrize("is_async", [False, True])
def test_grpc(is_async):
    async def call(target, name):
        async with grpc.aio.insecure_channel(target) as channel:
            return await channel.unary_unary("/a/b")(name)

    def call_blocking(target, name):
        with grpc.insecure_channel(target) as channel:
            return channel.unary_unary("/a/b")(name)

    with grpc_server() as target:
        for name in _GRPC:
            with pytest.raises(grpc.RpcError) as caught:
                asyncio.run(call(target, name.encode())) if is_async else call_blocking(target, name.encode())
            outcome = classify(caught.value)
            assert (name, outcome.kind) == (name, KINDS.get(name, "ignored"))
            assert outcome.retry_after == (1.5 if name == "RESOURCE_EXHAUSTED" else None)


# Google


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (google.from_grpc_status(grpc.StatusCode.INVALID_ARGUMENT, "x"), "ignored"),
        (google.from_grpc_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "x"), "throttled"),
        (google.from_grpc_status(grpc.StatusCode.DEADLINE_EXCEEDED, "x"), "failure"),
        (google.from_grpc_status(grpc.StatusCode.UNAVAILABLE, "x"), "failure"),
        (google.from_http_status(404, "x"), "ignored"),
        (google.from_http_status(418, "x"), "ignored"),
        (google.from_http_status(429, "x"), "throttled"),
        (google.from_http_status(503, "x"), "failure"),
        (google.RetryError("gave up", cause=None), "failure"),
    ],
)
def test_google_api_core(error, kind):
    assert classify(error).kind == kind


def test_the_wait_among_googles_details():
    info = SimpleNamespace(retry_delay=Duration(seconds=2, nanos=500_000_000))
    assert classify(google.ServiceUnavailable("x", details=[object(), info])).kind == "throttled"
    assert classify(google.ServiceUnavailable("x", details=[object(), info])).retry_after == 2.5


class GenaiError(Exception):
    """As `google.genai.errors.APIError` 3.6."""

    def __init__(self, code, status, *details):
        self.code, self.status, self.response = code, status, None
        self.details = {"error": {"code": code, "status": status, "details": list(details)}}


def test_google_genai():
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "27.5s"}
    outcome = classify(GenaiError(429, "RESOURCE_EXHAUSTED", {"@type": "x"}, info))
    assert (outcome.kind, outcome.retry_after) == ("throttled", 27.5)
    assert classify(GenaiError(400, "INVALID_ARGUMENT")).kind == "ignored"
    assert classify(GenaiError(503, "UNAVAILABLE", {"retryDelay": "soon"}, 7)).kind == "failure"


# AWS


def aws(status, code="Nothing", **headers):
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": given}
    return botocore.exceptions.ClientError({"Error": {"Code": code}, "ResponseMetadata": metadata}, "PutObject")


@pytest.mark.parametrize(("status", "kind"), STATUSES)
def test_botocore_by_its_status(status, kind):
    assert classify(aws(status)).kind == kind


def test_botocore_by_its_code():
    checker = botocore.retries.standard
    assert set(checker.ThrottledRetryableChecker._THROTTLED_ERROR_CODES) == _AWS_THROTTLED
    assert set(checker.TransientRetryableChecker._TRANSIENT_ERROR_CODES) - _AWS_THROTTLED == _AWS_TIMED_OUT
    for code in _AWS_THROTTLED:
        assert classify(aws(400, code)).kind == "throttled"
    for code in _AWS_TIMED_OUT:
        assert classify(aws(400, code)).kind == "failure"


def test_the_waits_of_botocore():
    assert classify(aws(503, "SlowDown", retry_after="3")).retry_after == 3.0
    assert classify(aws(400, "ThrottlingException", x_amz_retry_after="1500")).retry_after == 1.5


@pytest.mark.parametrize("response", [{}, {"Error": None}, {"ResponseMetadata": 7}, {"Error": {"Code": ["x"]}}])
def test_a_botocore_error_that_says_nothing(response):
    error = botocore.exceptions.ClientError({}, "x")
    error.response = response
    assert classify(error).kind == "failure"


def test_botocore_without_an_answer():
    assert classify(botocore.exceptions.EndpointConnectionError(endpoint_url="x")).kind == "failure"


# openai and anthropic


class APIError(Exception):
    """As openai's and anthropic's: `code` is a word, and what failed within a stream has the status 200, or none."""

    def __init__(self, status, body=None, **headers):
        if status is not None:
            self.status_code = status
            self.response = SimpleNamespace(status_code=status, headers=headers)
        self.body = body
        self.code = body.get("code") if isinstance(body, dict) else None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (APIError(429), "throttled"),
        (APIError(529), "throttled"),
        (APIError(400, {"type": "overloaded_error"}), "ignored"),
        (APIError(200, {"type": "error", "error": {"type": "overloaded_error"}}), "throttled"),
        (APIError(200, {"type": "error", "error": {"type": "invalid_request_error"}}), "ignored"),
        (APIError(200, {"type": "error", "error": {"type": "api_error"}}), "failure"),
        (APIError(200, {"type": "error", "error": {"type": "new_error"}}), "failure"),
        (APIError(200, "text"), "failure"),
        (APIError(None, {"code": "rate_limit_exceeded", "type": "requests"}), "throttled"),
        (APIError(None, {"code": "server_error"}), "failure"),
        (APIError(None), "failure"),
    ],
)
def test_openai_and_anthropic(error, kind):
    assert classify(error).kind == kind


# Redis


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (redis.exceptions.ConnectionError("gone"), "failure"),
        (redis.exceptions.TimeoutError("late"), "failure"),
        (redis.exceptions.BusyLoadingError("loading"), "failure"),
        (redis.exceptions.ReadOnlyError("replica"), "failure"),
        (redis.exceptions.OutOfMemoryError("full"), "failure"),
        (redis.exceptions.ClusterDownError("down"), "failure"),
        (redis.exceptions.ResponseError("BUSY Redis is busy running a script"), "failure"),
        (redis.exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "failure"),
        (redis.exceptions.ResponseError("WRONGTYPE Operation against a key"), "ignored"),
        (redis.exceptions.ResponseError("value is not an integer or out of range"), "ignored"),
        (redis.exceptions.ResponseError(), "ignored"),
        (redis.exceptions.DataError("Invalid input of type: 'dict'"), "ignored"),
        (redis.exceptions.NoScriptError("no such script"), "ignored"),
        (redis.exceptions.WatchError("changed"), "ignored"),
    ],
)
def test_redis(error, kind):
    assert classify(error).kind == kind


# Numbers that are no statuses


class Numbered(Exception):
    """As pymongo's errors, and many others': numbered by themselves."""

    def __init__(self, code):
        self.code = code
        self.details = {}


@pytest.mark.parametrize("code", [13, 121, 404, 503, 11_000, lambda required: required, type, "404"])
def test_a_code_of_another_kind(code):
    assert classify(Numbered(code)).kind == "failure"


@pytest.mark.parametrize("status", [503, "503", 7, 1006])
def test_a_status_of_another_kind_that_is_returned(status):
    assert classify_result(SimpleNamespace(status=status)).kind == "success"
    assert classify_result(SimpleNamespace(status=status, headers=None)).kind == "success"


# What guards make of it


def test_bad_requests_do_not_open_a_circuit_for_others():
    circuit = breaker(fail_max=5)

    @circuit
    async def put(key):
        if key == "bad":
            raise aws(400, "InvalidRequest")
        return key

    async def calls():
        for _ in range(20):
            with pytest.raises(botocore.exceptions.ClientError):
                await put("bad")
        return await put("good")

    assert asyncio.run(calls()) == "good"
    assert (circuit.state, circuit.fail_counter) == ("closed", 0)


def test_a_returned_503_of_aiohttp_opens_it(url):
    circuit = breaker(fail_max=2)

    @circuit
    async def get():
        async with aiohttp.ClientSession() as session, session.get(f"{url}/503") as response:
            return response

    async def calls():
        await get()
        await get()
        await get()

    with pytest.raises(CircuitOpen):
        asyncio.run(calls())


class NoSuchCity(CallerError):
    pass


def test_an_error_of_ones_own_for_a_callers_mistake(clock):
    attempts = []

    @guard(fallback("a guess", on=CircuitOpen), retry(attempts=3, clock=clock), breaker(fail_max=1, clock=clock))
    async def forecast(city):
        attempts.append(city)
        raise NoSuchCity(city)

    async def calls():
        for _ in range(3):
            with pytest.raises(NoSuchCity):
                await forecast("Atlantis")

    asyncio.run(calls())
    assert len(attempts) == 3


@pytest.mark.parametrize("kind", ["success", "failure", "throttled", "ignored"])
def test_an_exception_that_carries_its_verdict(kind):
    error = ValueError()
    error.__outcome__ = kind
    error.retry_after = 3
    assert (classify(error).kind, classify(error).retry_after) == (kind, 3.0)


@pytest.mark.parametrize("nonsense", [None, 7, "maybe", ["failure"]])
def test_a_verdict_that_is_none(nonsense):
    error = ValueError()
    error.__outcome__ = nonsense
    assert classify(error).kind == "failure"


def test_a_verdict_of_the_pipelines_own_comes_first():
    from guardrails.core.outcome import Outcome

    circuit = breaker(fail_max=1)

    @guard(circuit, classify=lambda exc: Outcome("failure", exc))
    async def forecast():
        raise NoSuchCity

    with pytest.raises(NoSuchCity):
        asyncio.run(forecast())
    assert circuit.state == "open"


def test_a_limiter_waits_a_day_at_most(clock):
    error = APIError(429, None, **{"retry-after": "1e308"})
    limit = limiter(requests=100, per=1, clock=clock, max_wait=1)

    @limit
    async def call():
        raise error

    with pytest.raises(APIError):
        asyncio.run(call())
    clock.advance(86_390)
    with pytest.raises(RateLimited):
        asyncio.run(call())
    clock.advance(11)
    with pytest.raises(APIError):
        asyncio.run(call())


class Instant(FakeClock):
    async def sleep(self, seconds):
        self.advance(seconds)


def test_a_group_of_refusals_is_a_refusal():
    clock = Instant()
    inner = ExceptionGroup("more", [QueueFull("b", retry_after=5)])
    refused = ExceptionGroup("tasks", [QueueFull("a", retry_after=2), inner])
    attempts = []

    @guard(fallback("an answer"), retry(attempts=2, retry_rejected=True, wait=0, clock=clock))
    async def call():
        attempts.append(clock.now())
        raise refused

    assert asyncio.run(call()) == "an answer"
    assert [later - attempts[0] for later in attempts] == [0, 5]


def test_a_group_with_a_callers_mistake_is_not_answered():
    @fallback("an answer")
    async def call():
        raise ExceptionGroup("tasks", [QueueFull("a"), NoSuchCity()])

    with pytest.raises(ExceptionGroup):
        asyncio.run(call())
