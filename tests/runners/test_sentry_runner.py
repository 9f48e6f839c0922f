"""Real workers that die in real ways, and what the real SDK sends of it."""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap

import pytest
import sentry_sdk
from sentry_sdk.integrations.logging import LoggingIntegration

from guardrails.memory import MemoryMonitor
from guardrails.telemetry.sentry import install
from runners import FunctionRunner
from runners.errors import FunctionNotFound, RunnerClosed, RunnerCrashed, RunnerUnavailable
from runners.supervision.restart import RestartPolicy
from tests.sentry_sink import SentrySink, sentry, sentry_sink
from tests.support import until

pytestmark = pytest.mark.anyio

PROMPT = "planted-prompt-what-is-the-capital"
KEY = "sk-planted-key-0451"
MIB = 2**20


@pytest.fixture
def anyio_backend() -> object:
    return ("asyncio", {"use_uvloop": False})


@pytest.fixture
def sink():
    with sentry_sink() as sink:
        yield sink


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that workers can import; returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)

    def write(name: str, source: str) -> str:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    return write


def crash_of(sink: SentrySink, reason: str):
    sentry_sdk.flush(timeout=10)
    return next(event for event in sink.events if event["tags"].get("guardrails.reason") == reason)


def frames_of(event) -> list[tuple[str, int | None]]:
    """Function and line of each frame in the module of the test."""
    frames = event["exception"]["values"][-1]["stacktrace"]["frames"]
    return [(frame["function"], frame["lineno"]) for frame in frames if frame["abs_path"].endswith("of_the_user.py")]


@pytest.mark.parametrize("send_text", [False, True])
async def test_an_exception_in_the_import(sink: SentrySink, module, send_text):
    name = module(
        "of_the_user",
        f"""\
        import sys

        def load(prompt):
            print(prompt, file=sys.stderr, flush=True)
            raise ValueError(prompt)

        TABLE = load("{PROMPT} " + "{KEY}")

        def call():
            return 1
        """,
    )
    with sentry(sink, integrations=[LoggingIntegration()]), install(send_text=send_text):
        with pytest.raises(FunctionNotFound, match=PROMPT):
            async with FunctionRunner(f"{name}:call", name="embedder"):
                pass
        event = crash_of(sink, "start_failed")
        await asyncio.sleep(0)
    raised = event["exception"]["values"][-1]
    assert (raised["type"], event["level"]) == ("ValueError", "error")
    assert raised["mechanism"] == {"type": "guardrails", "handled": False}
    assert frames_of(event) == [("<module>", 7), ("load", 5)]
    assert event["fingerprint"] == ["guardrails", "runner.worker_exited", "embedder", "start_failed", "ValueError"]
    if send_text:
        assert raised["value"].endswith(f"ended: start_failed: {PROMPT} {KEY}")
        assert f"{PROMPT} {KEY}" in event["contexts"]["worker"]["stderr"]
    else:
        assert raised["value"].startswith("embedder: worker ")
        assert raised["value"].endswith(" ended: start_failed")
        assert "worker" not in event["contexts"]
    assert (PROMPT.encode() in sink.raw) is send_text
    assert (KEY.encode() in sink.raw) is send_text


@pytest.mark.parametrize("send_text", [False, True])
async def test_a_segmentation_fault(sink: SentrySink, module, send_text):
    name = module(
        "of_the_user",
        """\
        import os, signal, sys

        def native(prompt):
            os.kill(os.getpid(), signal.SIGSEGV)

        def crash(prompt):
            print(prompt, file=sys.stderr, flush=True)
            native(prompt)
        """,
    )
    with sentry(sink, integrations=[LoggingIntegration()]), install(send_text=send_text):
        async with FunctionRunner(f"{name}:crash", name="images") as crash:
            with pytest.raises(RunnerCrashed):
                await crash(f"{PROMPT} {KEY}")
            event = crash_of(sink, "sigsegv")
    raised = event["exception"]["values"][-1]
    assert raised["type"] == "sigsegv"
    assert frames_of(event) == [("crash", 8), ("native", 4)]
    assert raised["stacktrace"]["frames"][0]["in_app"] is False  # of the worker itself
    assert event["contexts"]["guardrails"]["hint"].startswith("a crash in native code")
    assert (PROMPT.encode() in sink.raw) is send_text
    assert (KEY.encode() in sink.raw) is send_text


async def test_an_exception_that_ends_the_worker(sink: SentrySink, module):
    name = module(
        "of_the_user",
        """\
        import os, sys, traceback

        def deep(prompt):
            raise ValueError(prompt)

        def die(prompt):
            try:
                deep(prompt)
            except ValueError:
                traceback.print_exc()
                print(prompt, file=sys.stderr, flush=True)
                os._exit(7)
        """,
    )
    with sentry(sink, integrations=[LoggingIntegration()]), install():
        async with FunctionRunner(f"{name}:die", name="dying") as die:
            with pytest.raises(RunnerCrashed):
                await die(f"{PROMPT} {KEY}")
            event = crash_of(sink, "exit_7")
    assert event["exception"]["values"][-1]["type"] == "ValueError"
    assert frames_of(event) == [("die", 8), ("deep", 4)]
    assert PROMPT.encode() not in sink.raw
    assert KEY.encode() not in sink.raw


async def test_a_hard_budget_with_the_memory_before_it(sink: SentrySink, module):
    name = module(
        "of_the_user",
        f"""\
        held = []

        def grow(prompt, size):
            held.append(bytearray(b"x") * size)
            if size > {40 * MIB}:
                while True:
                    pass
            return len(held)
        """,
    )
    with sentry(sink), install():
        async with FunctionRunner(f"{name}:grow", name="leaky", memory="60MiB", memory_hard="80MiB") as grow:
            await grow(PROMPT, 1 * MIB)
            with MemoryMonitor(interval=0.05) as monitor:
                await until(lambda: any(process.role == "worker" for process in monitor.sample().processes))
            with pytest.raises(RunnerCrashed):
                await grow(PROMPT, 200 * MIB)
            event = crash_of(sink, "hard_budget")
    raised = event["exception"]["values"]
    assert [(one["type"], "stacktrace" in one) for one in raised] == [("hard_budget", False)]  # it was killed
    assert event["contexts"]["guardrails"]["hint"].startswith("raise memory_hard=")
    workers = [held for held in event["contexts"]["memory"].values() if isinstance(held, dict) and "role" in held]
    assert [held["role"] for held in workers if held["role"] == "worker"] == ["worker"]
    assert PROMPT.encode() not in sink.raw


async def test_a_runner_that_has_failed(sink: SentrySink, module, tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    name = module(
        "of_the_user",
        """\
        import os, pathlib

        if not pathlib.Path(os.environ["FLAG"]).exists():
            raise LookupError("planted-prompt-what-is-the-capital")

        def pid():
            return os.getpid()
        """,
    )
    policy = RestartPolicy(intensity=1, backoff=0.01, probe_interval=60)
    with sentry(sink, integrations=[LoggingIntegration()]), install():
        async with FunctionRunner(f"{name}:pid", environment={"FLAG": str(flag)}, restart=policy) as pid:
            flag.unlink()
            os.kill(await pid(), signal.SIGKILL)
            await until(lambda: pid.state == "failed")
            with pytest.raises(RunnerUnavailable):
                await pid()
            sink.flushed()
            killed, *refused, failed = sink.events
    assert killed["tags"]["guardrails.reason"] == "sigkill"
    assert {event["exception"]["values"][-1]["type"] for event in refused} == {"LookupError"}
    assert (failed["message"], failed["level"]) == ("pid: ready -> failed", "error")
    categories = [crumb["category"] for crumb in failed["breadcrumbs"]["values"]]
    assert "guardrails.runner.worker_ready" in categories
    assert PROMPT.encode() not in sink.raw


async def test_what_ends_as_it_was_meant_to_is_no_issue(sink: SentrySink, module):
    name = module("of_the_user", "def call():\n    return 1\n")
    with sentry(sink), install() as reporting:
        async with FunctionRunner(f"{name}:call") as call:
            assert await call() == 1
            await call.recycle()
            assert await call() == 1
        starting = FunctionRunner(f"{name}:call")
        task = asyncio.create_task(starting.start())
        await asyncio.sleep(0.02)
        await starting.close()
        with pytest.raises(RunnerClosed):
            await task
        sentry_sdk.capture_message("own")
        sink.flushed()
        assert reporting.sent == 0
    (own,) = sink.events
    categories = [crumb["category"] for crumb in own["breadcrumbs"]["values"]]
    assert "guardrails.runner.worker_replaced" in categories
