"""How a Redis does, looked at in a real one, at a socket of the test's own; and what is judged, in numbers."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pybreaker
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.core import events
from guardrails.errors import MissingExtra
from guardrails.memory.signals import AlertCleared, AlertRaised
from guardrails.shared import redis_health as module
from guardrails.shared.redis_health import (
    BigKey,
    Keys,
    Numbers,
    RedisFinding,
    RedisReport,
    RedisUnreachable,
    RedisWatch,
    redis_health,
)
from guardrails.shared.redis_keys import _literally
from guardrails.shared.redis_report import judge
from guardrails.shared.redis_server import command_line
from tests.support import redis_binary, redis_server, until

MIB = 1 << 20
SECRET = "user:4711:ada@example.org"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as socket:
        yield socket


@pytest.fixture
def redis(server):
    """A client, and a server as if new."""
    import redis

    with redis.Redis(unix_socket_path=server) as client:
        client.flushall()
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("save", "")
        client.config_resetstat()
        yield client


@pytest.fixture
def url(server, redis):
    return f"unix://{server}"


def look(url, **options):
    return asyncio.run(redis_health(url, **options))


def line(report, check):
    (found,) = [finding for finding in report.findings if finding.check == check]
    return found


def apply(finding):
    """Do what the mend says, in a shell that has redis-cli."""
    path = f"{Path(redis_binary('redis-cli')).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", "-c", finding.mend], check=False, capture_output=True, env={**os.environ, "PATH": path})


# In a real server


def test_a_redis_that_was_set_up_is_ok(url, redis):
    redis.config_set("maxmemory", 100 * MIB)
    redis.config_set("maxmemory-policy", "allkeys-lru")
    redis.set("guardrails:breaker:api", "x", ex=60)
    redis.set(SECRET, "x", ex=60)
    report = look(url)
    assert report.level == "ok", report.findings
    assert (report.keys.total, report.keys.looked, report.keys.own, report.keys.complete) == (2, 2, 1, True)
    assert report.numbers.limit == 100 * MIB
    assert all(finding.mend is None for finding in report.findings)


def prepare(redis):
    redis.set("guardrails:quota:1", "x")
    redis.set("LIMITS:LIMITER/1", "x")
    redis.set("guardrails:quota:2", "x", ex=60)
    redis.set(SECRET, "x")
    redis.set("page:1", "x", ex=60)


@pytest.mark.parametrize(
    ("check", "level"), [("memory", "failure"), ("policy", "warning"), ("own_ttl", "failure"), ("ttl", "warning")]
)
def test_every_mend_turns_its_line_to_ok(url, redis, check, level):
    prepare(redis)
    report = look(url)
    assert {finding.check for finding in report.findings if finding.level != "ok"} == {
        "memory", "policy", "own_ttl", "ttl",
    }  # fmt: skip
    before = line(report, check)
    assert before.level == level
    apply(before)
    assert line(look(url), check).level == "ok"


def test_a_mend_for_keys_leaves_the_ttls_that_are_there(url, redis):
    prepare(redis)
    redis.set("api:pybreaker:state", "closed")
    for check in ("own_ttl", "ttl"):
        apply(line(look(url), check))
    assert 50 < redis.ttl("guardrails:quota:2") <= 60
    assert 50 < redis.ttl("page:1") <= 60
    assert redis.ttl("guardrails:quota:1") > 80_000
    assert redis.ttl("api:pybreaker:state") == -1


def test_a_full_redis_is_told(url, redis):
    redis.set("blob", b"x" * 4 * MIB, ex=60)
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] * 1.02))
    report = look(url)
    assert (line(report, "memory").level, line(report, "policy").level) == ("failure", "failure")
    apply(line(report, "memory"))
    assert line(look(url), "memory").level == "ok"


def test_a_key_that_holds_most_of_it_is_told_without_its_name(url, redis):
    redis.config_set("maxmemory", 200 * MIB)
    redis.set(SECRET, b"x" * 12 * MIB, ex=60)
    redis.set("guardrails:x", b"x" * 10_000, ex=60)
    report = look(url)
    assert line(report, "biggest").level == "warning"
    assert [key.size > 12 * MIB for key in report.keys.biggest] == [True, False]
    assert report.keys.biggest[1].name.startswith("guardrails:#")
    assert 0 < report.keys.biggest[0].ttl <= 60
    assert "ada" not in repr(report)
    assert "4711" not in repr(report)
    shown = look(url, show_keys=True)
    assert shown.keys.biggest[0].name == SECRET
    assert SECRET in line(shown, "biggest").why


def test_names_are_cut_and_harmless(url, redis):
    redis.set(b"\x1b[2J\xff" + b"n" * 100, "x", ex=60)
    name = look(url, show_keys=True).keys.biggest[0].name
    assert len(name) == 60
    assert name.isprintable()


def test_what_breakers_share_is_not_asked_for_a_ttl(url, redis):
    pybreaker.CircuitRedisStorage("closed", redis, namespace="api")
    report = look(url)
    assert report.keys.fixed == redis.dbsize() > 0
    assert (line(report, "own_ttl").level, line(report, "ttl").level) == ("ok", "ok")


def test_the_look_is_bounded_and_never_asks_for_all_keys(url, redis):
    with redis.pipeline() as pipe:
        for number in range(5000):
            pipe.set(f"page:{number}", "x", ex=60)
        for number in range(20):
            pipe.set(f"guardrails:{number}", "x")
        pipe.execute()
    redis.config_resetstat()
    report = look(url, sample=100)
    assert not report.keys.complete
    assert 100 <= report.keys.looked <= 300  # and as many again of each prefix
    assert report.keys.own_unlimited == 20
    assert "that were seen, of 5,020" in line(report, "ttl").why
    used = {name.removeprefix("cmdstat_") for name in redis.info("commandstats")}
    assert used & {"keys", "get", "hgetall", "lrange", "dump"} == set()
    assert redis.info("commandstats")["cmdstat_pttl"]["calls"] <= 300
    everything = look(url, sample=6000)
    assert everything.keys.complete
    assert everything.keys.looked == 5020


def test_exactly_as_many_keys_as_are_sampled_are_all_of_them(url, redis):
    for number in range(10):
        redis.set(f"page:{number}", "x", ex=60)
    assert look(url, sample=10).keys.complete
    assert not look(url, sample=9).keys.complete


def test_a_client_of_the_callers_is_used_and_stays_open(server, redis):
    import redis.asyncio as asyncio_redis

    async def run():
        async with asyncio_redis.Redis(unix_socket_path=server, decode_responses=True) as client:
            await client.set("guardrails:x", "y")
            report = await redis_health(client)
            return report, await client.ping()

    report, answered = asyncio.run(run())
    assert answered
    assert report.keys.own_unlimited == 1


def test_a_user_who_may_not_read_settings_gets_a_report(server, redis):
    redis.execute_command("ACL", "SETUSER", "doctor", "on", ">pass", "~*", "+@all", "-config", "-memory")
    redis.set("guardrails:x", "y")
    report = look(f"unix://doctor:pass@{server}")
    assert report.keys.own_unlimited == 1
    assert report.keys.biggest == ()
    assert report.numbers.persistent is None
    with pytest.raises(RedisUnreachable) as caught:
        look(f"unix://doctor:a-wrong-password@{server}")
    assert server in str(caught.value)
    assert "a-wrong-password" not in str(caught.value)


def test_a_server_that_is_not_there_is_said_in_time(tmp_path):
    with pytest.raises(RedisUnreachable, match=r"nowhere\.sock: no such file or directory$"):
        look(f"unix://{tmp_path}/nowhere.sock")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(RedisUnreachable, match=rf"^127\.0\.0\.1:{port}: connection refused$"):
            look(f"redis://127.0.0.1:{port}")


def test_a_server_that_says_nothing_is_said_in_time(tmp_path):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        with pytest.raises(RedisUnreachable, match=r"no answer within 0\.05 s"):
            look(f"unix://{tmp_path}/silent.sock", timeout=0.05)


# Arguments


@pytest.mark.parametrize(
    ("client", "options", "error", "text"),
    [
        (object(), {}, TypeError, "client takes a redis.asyncio.Redis or a URL, not builtins.object"),
        ("http://user:hunter2@there", {}, ValueError, "client takes a URL such as"),
        ("redis://there", {"sample": 0}, ValueError, "sample takes"),
        ("redis://there", {"timeout": 0}, ValueError, "timeout takes"),
        ("redis://there", {"prefixes": "mine:"}, TypeError, "prefixes takes several"),
        ("redis://there", {"prefixes": ["", "x"]}, ValueError, "prefixes takes texts"),
    ],
)
def test_misuse_is_named(client, options, error, text):
    with pytest.raises(error, match=text) as caught:
        look(client, **options)
    assert "hunter2" not in str(caught.value)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(MissingExtra, match=r"guarded-runners\[redis\]"):
        look("redis://there")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://user:hunter2@cache:6380/2", "redis-cli -h cache -p 6380 -n 2"),
        ("redis://localhost", "redis-cli"),
        ("rediss://cache", "redis-cli -h cache --tls"),
        ("unix:///a folder/redis.sock", "redis-cli -s '/a folder/redis.sock'"),
    ],
)
def test_mends_reach_the_same_server(url, text):
    import redis.asyncio as asyncio_redis

    assert command_line(asyncio_redis.Redis.from_url(url)) == text


# The judgement, in numbers

FINE = Numbers(
    "7.2", "master", 40 * MIB, 50 * MIB, 100 * MIB, "allkeys-lru", 44 * MIB, 8192 * MIB, 0, 0, False, True, 0
)


def levels(numbers=FINE, keys=None, **changes):
    report = judge(replace(numbers, **changes), keys or Keys(10, 10), ("guardrails:",))
    return {finding.check: finding.level for finding in report.findings if finding.level != "ok"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, {}),
        ({"limit": None}, {"memory": "failure"}),
        ({"policy": "noeviction"}, {"policy": "warning"}),
        ({"policy": "noeviction", "used": 85 * MIB}, {"memory": "warning", "policy": "failure"}),
        ({"policy": "volatile-lru", "used": 96 * MIB}, {"memory": "failure"}),
        ({"used": 99 * MIB}, {}),  # a full cache that evicts is as it should be
        ({"resident": 200 * MIB}, {"fragmentation": "warning"}),
        ({"resident": 70 * MIB}, {}),  # little is lost, whatever the ratio
        ({"used": 99 * MIB, "resident": 20 * MIB}, {"fragmentation": "warning"}),  # swapped out
        ({"resident": 0}, {}),
        ({"saved": False}, {"persistence": "failure"}),
        ({"persistent": True, "system": 150 * MIB}, {"persistence": "warning"}),
        ({"persistent": True}, {}),
        ({"role": "slave"}, {}),
    ],
)
def test_what_the_numbers_say(changes, told):
    assert levels(**changes) == told


@pytest.mark.parametrize(
    ("keys", "policy", "told"),
    [
        (Keys(10, 10, unlimited=3), "volatile-lru", {"ttl": "warning"}),
        (Keys(10, 10, unlimited=3), "allkeys-lru", {}),
        (Keys(10, 10, own=2, own_unlimited=1), "allkeys-lru", {"own_ttl": "failure"}),
        (Keys(10, 10, fixed=4), "volatile-lru", {}),
        (Keys(10, 10, biggest=(BigKey("#1", 20 * MIB, None),)), "allkeys-lru", {"biggest": "warning"}),
        (Keys(10, 10, biggest=(BigKey("#1", 3 * MIB, None),)), "allkeys-lru", {}),
    ],
)
def test_what_the_keys_say(keys, policy, told):
    assert levels(keys=keys, policy=policy) == told


numbers = st.builds(
    Numbers,
    version=st.just("7"),
    role=st.sampled_from(["master", "slave"]),
    used=st.integers(0, 1 << 40),
    peak=st.integers(0, 1 << 40),
    limit=st.none() | st.integers(1, 1 << 40),
    policy=st.sampled_from(["noeviction", "allkeys-lru", "allkeys-lfu", "volatile-lru", "volatile-ttl"]),
    resident=st.integers(0, 1 << 40),
    system=st.integers(0, 1 << 40),
    evicted=st.integers(0, 1 << 40),
    expired=st.integers(0, 1 << 40),
    persistent=st.none() | st.booleans(),
    saved=st.booleans(),
    replicas=st.integers(0, 9),
)
keys = st.builds(
    Keys,
    total=st.integers(0, 10**9),
    looked=st.integers(0, 10**6),
    unlimited=st.integers(0, 10**6),
    own=st.integers(0, 10**6),
    own_unlimited=st.integers(0, 10**6),
    fixed=st.integers(0, 100),
    complete=st.booleans(),
    biggest=st.lists(st.builds(BigKey, st.just("#1"), st.integers(1, 1 << 40), st.none()), max_size=3).map(tuple),
)


@given(numbers, keys)
def test_whatever_the_numbers_each_check_has_one_line_and_what_is_wrong_a_mend(numbers, keys):
    report = judge(numbers, keys, ("guardrails:", "LIMITS:"))
    checks = [finding.check for finding in report.findings]
    assert len(checks) == len(set(checks))
    for finding in report.findings:
        assert finding.why
        assert (finding.mend is None) == (finding.level == "ok")
    assert report.level == max((finding.level for finding in report.findings), key=["ok", "warning", "failure"].index)


@given(numbers.filter(lambda each: each.limit is not None))
def test_the_mend_for_memory_leaves_room(numbers):
    (memory,) = [finding for finding in judge(numbers, Keys(0), ()).findings if finding.check == "memory"]
    if memory.mend is not None:
        wanted = int(memory.mend.rpartition(" ")[2])
        after = replace(numbers, limit=wanted)
        assert [each.level for each in judge(after, Keys(0), ()).findings if each.check == "memory"] == ["ok"]


@given(st.binary(min_size=1, max_size=8))
def test_a_prefix_is_taken_literally(prefix):
    escaped = _literally(prefix)
    plain = bytearray()
    position = 0
    while position < len(escaped):
        position += escaped[position : position + 1] == b"\\"
        plain += escaped[position : position + 1]
        position += 1
    assert bytes(plain) == prefix


def test_keys_without_a_ttl_are_evicted_only_where_there_is_a_limit():
    assert levels(keys=Keys(10, 10, unlimited=3), limit=None) == {"memory": "failure", "ttl": "warning"}


# Watching


@pytest.fixture
def heard():
    found = []
    unsubscribe = events.subscribe(found.append)
    yield found
    unsubscribe()


def test_the_alert_is_raised_once_and_cleared(heard, clock):
    watch = RedisWatch("redis://there", high=0.8, low=0.7, name="cache", clock=clock)
    for used in (50, 79, 80, 90, 75, 81, 96, 97, 71):
        watch.note(replace(FINE, used=used * MIB))
        clock.advance(10)
    assert [(event.severity, event.values["used"] // MIB) for event in heard] == [("warning", 80), ("critical", 96)]
    assert watch.alerting
    assert all(event.source == "cache" and event.alert == "redis_memory" for event in heard)
    watch.note(replace(FINE, used=69 * MIB))
    assert heard[-1] == AlertCleared("cache", "redis_memory", 70)
    assert not watch.alerting
    watch.note(replace(FINE, used=80 * MIB))
    assert isinstance(heard[-1], AlertRaised)


def test_without_maxmemory_its_machine_counts(heard, clock):
    watch = RedisWatch("redis://there", clock=clock)
    watch.note(replace(FINE, limit=None, used=7000 * MIB))
    assert "the kernel kills it" in heard[0].message
    watch.note(replace(FINE, limit=None, system=0, used=7000 * MIB))
    assert isinstance(heard[1], AlertCleared), "nobody knows any more"


@pytest.mark.parametrize(
    ("options", "text"), [({"interval": 0}, "interval"), ({"high": 0.5, "low": 0.6}, "low and high")]
)
def test_watching_takes_what_makes_sense(options, text):
    with pytest.raises(ValueError, match=text):
        RedisWatch("redis://there", **options)


def test_a_real_redis_that_fills_is_told_and_one_that_goes_away_is_logged(url, redis, heard, caplog):
    async def run():
        async with RedisWatch(url, interval=0.01, name="cache") as watch:
            await until(lambda: watch._task is not None)
            redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] * 1.1))
            await until(lambda: watch.alerting)
            redis.config_set("maxmemory", 500 * MIB)
            await until(lambda: not watch.alerting)
            with caplog.at_level(logging.WARNING, "guardrails.redis"):
                redis.execute_command("ACL", "SETUSER", "default", "-info")
                redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await until(lambda: "cannot be watched" in caplog.text)
                redis.execute_command("ACL", "SETUSER", "default", "+info")
                await until(lambda: "is watched again" in caplog.text)

    asyncio.run(run())
    assert [type(event) for event in heard] == [AlertRaised, AlertCleared]
    assert caplog.text.count("cannot be watched") == 1


def test_the_public_names():
    assert all(hasattr(module, name) for name in module.__all__)
    assert isinstance(judge(FINE, Keys(0), ()), RedisReport)
    assert isinstance(judge(FINE, Keys(0), ()).findings[0], RedisFinding)
