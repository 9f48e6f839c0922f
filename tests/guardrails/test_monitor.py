"""The monitor itself: its thread, its ends, forks, what it tells, and real processes that grow."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time

import anyio
import pytest

import guardrails.memory
from guardrails.core import events
from guardrails.memory import MemoryMonitor
from guardrails.memory.cgroup import delegated_group, own_cgroups
from guardrails.memory.monitor.log_line import log_fields, log_line
from guardrails.memory.monitor.sample import ProcessSample, Sample
from guardrails.memory.reading import Scope
from guardrails.memory.signals import AlertCleared, AlertRaised, MemorySampled
from guardrails.testing import capture_events

MIB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux")


class FastClock:
    """Real time, `speed` times as fast: a minute of the monitor's passes in a second of the test's."""

    def __init__(self, speed=60.0):
        self.speed = speed

    def now(self):
        return time.monotonic() * self.speed

    def wait_thread(self, event, seconds):
        return event.wait(None if seconds is None else seconds / self.speed)


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name == "guardrails-monitor"] == []


@pytest.fixture
def log():
    """What the monitor logs, as records."""
    records, logger = [], logging.getLogger("guardrails.memory")
    handler = logging.Handler()
    handler.emit = records.append
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


# Life


def test_it_samples_by_itself_and_ends_with_its_block():
    with capture_events(MemorySampled) as seen, MemoryMonitor(interval=0.01, calls=False) as monitor:
        assert monitor.running
        wait_for(lambda: len(seen) >= 3)
        assert monitor.sample() in [event.sample for event in seen]
    assert not monitor.running
    assert {event.source for event in seen} == {"memory"}
    first = seen[0].sample
    assert (first.processes[0].name, first.processes[0].pid) == ("self", os.getpid())
    assert first.scopes[0].name == "host"
    assert len(first.gc) == len(first.gc_pending) == 3
    assert first.at == pytest.approx(time.time(), abs=60)
    assert [point.maximum for point in monitor.history("self")] == [event.sample.processes[0].private for event in seen]
    assert {"self", "total", "host"} <= set(monitor.names)
    assert 0 < monitor.history_bytes < 100_000


@pytest.mark.anyio
async def test_it_is_an_async_context_manager_on_every_loop():
    async with MemoryMonitor(interval=0.01) as monitor:
        with anyio.fail_after(20):
            while not monitor.names:
                await anyio.sleep(0.002)
    assert not monitor.running


@pytest.mark.anyio
async def test_a_cancellation_ends_it_too():
    with anyio.move_on_after(0.05):
        async with MemoryMonitor(interval=0.01) as monitor:
            await anyio.sleep_forever()
    assert not monitor.running


def test_starting_and_stopping_twice_does_nothing_more_and_it_starts_again():
    monitor = MemoryMonitor(interval=0.01)
    before = events.sinks
    assert monitor.start() is monitor
    thread = monitor._run.thread
    assert monitor.start()._run.thread is thread
    assert len(events.sinks) == len(before) + 1
    monitor.stop()
    monitor.stop()
    assert events.sinks == before
    with monitor:
        assert monitor._run.thread is not thread
        assert not thread.is_alive()
    assert repr(monitor) == "<memory monitor 'memory', stopped>"


def test_one_that_nobody_keeps_runs_on_and_ends_with_the_interpreter():
    code = """
    import gc, sys, threading, time
    from guardrails.memory import MemoryMonitor
    from guardrails.memory.signals import MemorySampled
    from guardrails import subscribe
    seen = threading.Event()
    def sink(event):
        if isinstance(event, MemorySampled) and event.sample.monotonic > begun:
            seen.set()
    MemoryMonitor(interval=0.01).start()
    gc.collect()
    begun = time.monotonic()
    subscribe(sink)
    assert seen.wait(20)
    print("ended", flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"ended\n", b"")


@linux
def test_in_a_fork_it_is_stopped_and_starts_anew_when_it_is_asked():
    code = """
    import os, threading, time
    from guardrails.core import events
    from guardrails.memory import MemoryMonitor
    from guardrails.memory.monitor.names import name_process

    def wait_for(condition):
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.002)

    monitor = MemoryMonitor(interval=0.01, log_every=None).start()
    stopped = MemoryMonitor(interval=0.01)
    wait_for(lambda: len(monitor.history("self")) > 3 if "self" in monitor.names else False)
    name_process(os.getpid(), "never")
    readers = [threading.Thread(target=lambda: [monitor.history("self") for _ in range(2000)]) for _ in range(2)]
    for reader in readers:
        reader.start()
    children = []
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            # However the parent's thread was caught, nothing of it is here.
            assert not monitor.running
            assert threading.active_count() == 1
            assert events.sinks == ()
            assert monitor.names == ()
            assert monitor.sample().processes[0].pid == os.getpid()
            monitor.start()
            wait_for(lambda: "self" in monitor.names and monitor.sample().processes[0].pid == os.getpid())
            assert [thread.name for thread in threading.enumerate()].count("guardrails-monitor") == 1
            assert not stopped.running
            assert len(events.sinks) == 1
            monitor.stop()
            assert events.sinks == ()
            os._exit(42)
        children.append(pid)
    for pid in children:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    for reader in readers:
        reader.join()
    monitor.stop()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=60, check=True)


@linux
def test_a_fork_by_its_own_thread_ends_the_copy_of_that_thread():
    code = """
    import os, threading
    from guardrails.memory import MemoryMonitor

    done, statuses = threading.Event(), []
    def fork(event):
        pid = os.fork()
        if pid == 0:
            return  # the copy of the monitor's thread goes home, and finds that it is not the one any more
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        done.set()

    parent = os.getpid()
    monitor = MemoryMonitor(interval=0.01, warning=0.000001, critical=0.99, hold=0, log_every=None, on_alert=fork)
    watch = monitor._watch
    def watched(run):
        watch(run)
        if os.getpid() != parent:
            os._exit(7 if not monitor.running and threading.active_count() == 1 else 8)
    monitor._watch = watched
    monitor.start()
    assert done.wait(30)
    assert monitor.running
    monitor.stop()
    assert statuses[0] == 7, statuses
    """
    subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], timeout=60, check=True)


@linux
def test_a_child_that_only_execs_is_no_trouble():
    with MemoryMonitor(interval=0.001):
        for _ in range(10):
            subprocess.run([sys.executable, "-S", "-c", ""], check=True, preexec_fn=lambda: None)


def test_stop_may_be_called_by_the_callback():
    monitor = MemoryMonitor(
        interval=0.01, warning=0.000001, critical=0.99, hold=0, log_every=None, on_alert=lambda _: monitor.stop()
    )
    monitor.start()
    wait_for(lambda: not monitor.running)
    assert "memory_high" in [alert.alert for alert in monitor.alerts]
    wait_for(lambda: "guardrails-monitor" not in {thread.name for thread in threading.enumerate()})


def test_a_look_that_fails_is_logged_once_a_minute_and_tried_again(log, monkeypatch):
    monitor, tried = MemoryMonitor(interval=0.001), []

    def broken(*_, **__):
        tried.append(1)
        raise OSError("no descriptor is left")

    monkeypatch.setattr(monitor._observer, "read", broken)
    with monitor:
        wait_for(lambda: len(tried) > 5)
    assert [record.getMessage() for record in log] == ["a look at memory failed; trying again in 0.001 s"]
    assert log[0].exc_info[0] is OSError


def test_a_callback_that_fails_is_logged_and_nothing_else_happens(log):
    def broken(_):
        raise RuntimeError("no network")

    with (
        capture_events(AlertRaised) as seen,
        MemoryMonitor(interval=0.001, warning=0.000001, critical=0.99, hold=0, on_alert=broken) as monitor,
    ):
        wait_for(lambda: len(monitor.history("self")) > 5 if "self" in monitor.names else False)
    assert "host" in [event.source for event in seen]
    assert "on_alert failed on memory_high" in [record.getMessage() for record in log]


# What it is given


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"interval": 0}, "interval takes a number of seconds above 0, not 0"),
        ({"hold": -1}, "hold takes a number of seconds of at least 0, not -1"),
        ({"log_every": 0}, "log_every takes a number of seconds above 0, not 0"),
        ({"quiet": -1}, "quiet takes"),
        ({"remind": 0}, "remind takes"),
        ({"most": 0}, "most takes a whole number of at least 1, not 0"),
        ({"most": True}, "most takes a whole number of at least 1, not True"),
        ({"warning": 0.9, "critical": 0.8}, "0 < warning < critical <= 1 must hold, not warning=0.9, critical=0.8"),
        ({"critical": 1.5}, "must hold"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        MemoryMonitor(**wrong)


def test_a_callback_that_is_none_is_refused():
    with pytest.raises(TypeError, match="on_alert takes a function of one event, not str"):
        MemoryMonitor(on_alert="page me")


def test_it_is_loaded_when_it_is_asked_for():
    code = """
    import sys
    import guardrails.memory.monitor.names
    sys.exit("guardrails.memory.monitor.monitor" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=30, check=False).returncode == 0
    assert guardrails.memory.__all__ == ["MemoryMonitor"]
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        guardrails.memory.Nothing  # noqa: B018


def test_without_calls_guards_pay_nothing():
    with MemoryMonitor(interval=0.01, calls=False):
        assert events.sinks == ()


# What it tells


def test_a_sample_of_one_that_does_not_run_is_taken_now():
    monitor = MemoryMonitor()
    one, two = monitor.sample(), monitor.sample()
    assert one is not two
    assert one.processes[0].pid == os.getpid()
    assert monitor.names == ()


def example():
    return Sample(
        at=1.7e9,
        monotonic=5.0,
        processes=(
            ProcessSample("self", 1, "self", 212 * MIB, 340 * MIB, 230 * MIB),
            ProcessSample("embed/0", 2, "worker", 800 * MIB, 900 * MIB, None, 1024 * MIB),
        ),
        scopes=(
            Scope("host", 61, 100),
            Scope("/cg/a", 10, 100),
            Scope("/cg", 42, 100),
        ),
        gc=(90, 8, 1),
    )


def test_the_line_is_for_people_and_its_fields_for_programs():
    assert log_line(example()) == (
        "memory private=212MiB rss=340MiB pss=230MiB total=0.988GiB processes=2 largest=embed/0:800MiB "
        "host=61% cgroup=42% gc=90/8/1 trimmed=no alerts=none"
    )
    fields = log_fields(example())
    assert json.loads(json.dumps(fields)) == fields
    assert fields["processes"]["embed/0"] == {"pid": 2, "private": 800 * MIB, "rss": 900 * MIB, "pss": None}
    assert fields["scopes"]["/cg"] == {"used": 42, "limit": 100}


def test_it_logs_a_line_a_minute_and_its_alerts(log):
    with MemoryMonitor(interval=1.0, warning=0.000001, critical=0.99, hold=0, clock=FastClock(600)) as monitor:
        wait_for(lambda: len(monitor.history("self")) > 130 if "self" in monitor.names else False)
    lines = [record for record in log if record.getMessage().startswith("memory private=")]
    assert 3 <= len(lines) <= 1 + len(monitor.history("self")) * 600 // 60
    assert lines[0].memory["total"] > 0
    assert "alerts=memory_high@host" in lines[0].getMessage()
    (alert,) = [record for record in log if record.getMessage().startswith("memory_high host: ")]
    assert alert.levelno == logging.WARNING
    assert alert.alert["share"] > 0


def test_it_logs_nothing_where_another_sink_does(log):
    with (
        MemoryMonitor(interval=0.001, warning=0.000001, critical=0.99, hold=0, log_every=None) as monitor,
        capture_events(AlertRaised),
    ):
        wait_for(lambda: monitor.alerts)
    assert log == []


def test_an_alert_is_raised_and_cleared_in_the_stream_for_the_callback_and_in_the_list(monkeypatch):
    used, told = [0.85], []
    monitor = MemoryMonitor(interval=0.001, hold=0, on_alert=told.append)
    monkeypatch.setattr(monitor._observer._scopes, "look", lambda now: (Scope("host", int(used[0] * 1000), 1000),))
    with capture_events(AlertRaised, AlertCleared) as seen, monitor:
        wait_for(lambda: monitor.alerts)
        (alert,) = monitor.alerts
        used[0] = 0.1
        wait_for(lambda: not monitor.alerts)
    assert (alert.alert, alert.source, alert.severity) == ("memory_high", "host", "warning")
    assert alert.since == pytest.approx(time.time(), abs=60)
    assert [type(event) for event in seen] == [AlertRaised, AlertCleared]
    assert seen == told


def test_out_of_memory_in_the_logs_is_an_alert():
    logger, stream = logging.getLogger("some.node.process"), io.StringIO()
    with MemoryMonitor(interval=0.001) as monitor:
        logger.addHandler(monitor.log_handler)
        try:
            logger.error("FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory")
            wait_for(lambda: monitor.alerts)
        finally:
            logger.removeHandler(monitor.log_handler)
    (alert,) = monitor.alerts
    assert (alert.alert, alert.source, alert.values["cause"]) == ("memory_crash", "some.node.process", "v8")
    assert stream.getvalue() == ""


# Real processes


GROWING = """
import time
kept, began = [], time.monotonic()
print("up", flush=True)
while True:
    kept.append(bytearray(b"x") * 2**18)  # 256 KiB, touched
    time.sleep(0.01)
"""


@linux
def test_a_real_child_that_grows_is_announced_and_one_that_does_not_is_not():
    quiet = [sys.executable, "-c", "print('up', flush=True); input()"]
    with (
        subprocess.Popen([sys.executable, "-c", GROWING], stdout=subprocess.PIPE) as growing,
        subprocess.Popen(quiet, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as steady,
    ):
        try:
            for child in (growing, steady):
                child.stdout.readline()
            # At most 25 MiB a second, looked at as if it were 25 MiB in four minutes.
            with MemoryMonitor(interval=4.0, log_every=None, clock=FastClock(240)) as monitor:
                began = time.monotonic()
                wait_for(lambda: any(alert.alert == "memory_growth" for alert in monitor.alerts), 60)
                took = (time.monotonic() - began) * 240
                names = {each.pid: each.name for each in monitor.sample().processes}
                (alert,) = [alert for alert in monitor.alerts if alert.alert == "memory_growth"]
        finally:
            growing.kill()
            steady.kill()
    assert alert.source == names[growing.pid]
    assert alert.values["slope"] == pytest.approx(25 * MIB / 240, rel=0.5)
    assert took < 20 * 60
    assert monitor.history(names[growing.pid])[-1].median > monitor.history(names[growing.pid])[0].median + 10 * MIB


# A real cgroup


@pytest.fixture
def group():
    """A memory cgroup of our own with a limit, where this machine lets one be made: `group(limit)` gives its path."""
    made = []

    def make(limit):
        parent = delegated_group()
        if parent is not None:
            file = "memory.max"
        else:
            own = [each.path for each in own_cgroups() if each.version == 1]
            if not own or not os.access(own[0], os.W_OK):
                pytest.skip("no memory cgroup can be made here")
            parent, file = own[0], "memory.limit_in_bytes"
        path = parent / f"guardrails-test-{os.getpid()}"
        try:
            path.mkdir()
            made.append(path)
            (path / file).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no memory cgroup can be made here: {error}")
        return path

    yield make
    for path in made:
        path.rmdir()


IN_A_GROUP = """
import json, sys, time
from guardrails.memory import MemoryMonitor
sys.stdin.readline()
with MemoryMonitor(interval=0.02, hold=0.2, log_every=None, calls=False) as monitor:
    kept = bytearray(b"x") * (104 * 2**20)
    end = time.monotonic() + 20
    while not any(alert.source != "host" for alert in monitor.alerts) and time.monotonic() < end:
        time.sleep(0.01)
    print(json.dumps([[alert.alert, alert.source, alert.severity, dict(alert.values)] for alert in monitor.alerts]))
"""


@linux
def test_the_limit_of_a_real_cgroup_is_told_before_the_kernel_kills(group):
    path = group(128 * MIB)
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_GROUP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        (path / "cgroup.procs").write_text(str(child.pid))
        alerts = json.loads(child.communicate("go\n", timeout=60)[0])
    assert child.returncode == 0
    ((alert, source, severity, values),) = [each for each in alerts if each[1] != "host"]
    assert (alert, source, severity) == ("memory_high", str(path), "warning")
    assert values["limit"] == 128 * MIB
    assert 0.8 <= values["share"] < 0.9
