"""The doctor's checks on machines that are only described, and what it reads: the kernel's files, reports, DSNs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.config import parse
from runners.doctor import Facts, examine, gather
from runners.doctor.facts import Counted, Group, LoadTest, Machine, Reach
from runners.doctor.finding import config as config_mend
from runners.doctor.finding import size_text, table, toml
from runners.doctor.load_report import parse as parse_report
from runners.doctor.load_report import read as read_report
from runners.doctor.memory import fewer_workers, largest_that_fit
from runners.doctor.reach import Address, proxy_for, reach
from runners.doctor.watching import dsn_address

MIB = 1 << 20
GIB = 1 << 30
K6 = {
    "metrics": {
        "http_req_duration": {"avg": 90.1, "min": 8, "med": 80.5, "max": 420, "p(90)": 180, "p(95)": 210.5},
        "http_req_failed": {"passes": 2, "fails": 998, "value": 0.002},
        "http_reqs": {"count": 1000, "rate": 20.0},
    },
    "root_group": {"name": ""},
}

# Facts of any machine: its checks, and their mends

LINUX = Machine(
    memory=16 * GIB,
    groups=(Group(Path("/cg/app"), 2, 2 * GIB, GIB, swaps=False),),
    cores=8,
    open_files=(65_536, 65_536),
    processes=(60_000, 60_000),
    pid_max=4_194_304,
    huge_pages="madvise",
    overcommit=0,
    shared=GIB,
    shared_free=GIB,
    allocator="glibc",
)
VARIABLES = {"MALLOC_ARENA_MAX": "2"}
LOCAL_REDIS = parse('[redis]\nurl = "redis://localhost"')


def of_machine(config=None, variables=VARIABLES, **changes):
    facts = Facts(machine=dataclasses.replace(LINUX, **changes), environment=variables)
    return {line.key: line for line in examine(config, facts) if line.level != "ok"}


def test_a_machine_that_is_set_up_has_nothing_wrong():
    assert of_machine() == {}


UNLIMITED = (Group(Path("/cg/app"), 2, None, GIB, writable=True),)
SWAPPED = [(Group(Path("/cg/app"), version, GIB, 0),) for version in (1, 2)]
LIMIT = ("memory_limit", "cgroup")
SHM = ("shared_memory", "/dev/shm")
PAGES = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"


@pytest.mark.parametrize(
    ("changes", "key", "level", "text"),
    [
        ({"huge_pages": "always"}, ("huge_pages", "kernel"), "warning", PAGES),
        ({"overcommit": 2}, ("overcommit", "kernel"), "warning", "sysctl -w vm.overcommit_memory=0"),
        ({"shared": None}, SHM, "warning", "mkdir -p /dev/shm && mount"),
        ({"shared": 64 * MIB}, SHM, "warning", "mount -o remount,size=268435456 /dev/shm"),
        ({"shared": 64 * MIB, "manager": "docker"}, SHM, "warning", "docker run --shm-size"),
        ({"shared_free": MIB}, SHM, "warning", "find /dev/shm -type f -mmin +60 -delete"),
        ({"quota": 1.5}, ("threads", "environment"), "warning", "OMP_NUM_THREADS=1"),
        ({"pid_max": 100}, ("processes", "kernel"), "warning", "sysctl -w kernel.pid_max=65536"),
        ({"tasks": Counted(40, 20, Path("/cg/pids.max"))}, ("processes", "cgroup"), "failure", "echo 148 > /cg/pids"),
        ({"processes": (10, 10)}, ("processes", "limit"), "failure", "ulimit -u 4096"),
        ({"open_files": (1024, 4096)}, ("open_files", "limit"), "warning", "ulimit -n 4096"),
        ({"open_files": (128, 128), "manager": "docker"}, ("open_files", "limit"), "failure", "docker run --ulimit"),
        (
            {"open_files": (128, 128), "manager": "docker", "may_raise": True},
            ("open_files", "limit"),
            "failure",
            "ulimit",
        ),
        ({"groups": UNLIMITED}, LIMIT, "failure", "echo 13743685632 > /cg/app/memory.max"),
        ({"groups": UNLIMITED, "manager": "kubernetes"}, LIMIT, "failure", "kubectl set resources"),
        ({"groups": UNLIMITED, "manager": "x.service"}, LIMIT, "failure", "systemctl set-property x"),
        ({"groups": (), "manager": "podman"}, LIMIT, "failure", "podman update --memory 13107m NAME"),
        ({"groups": ()}, LIMIT, "failure", "systemd-run --scope -p MemoryMax=13743685632 PROGRAM"),
        ({"swap": GIB, "groups": SWAPPED[0]}, ("swap", "kernel"), "warning", "echo 0 > /cg/app/memory.swappiness"),
        ({"swap": GIB, "groups": SWAPPED[1]}, ("swap", "kernel"), "warning", "echo 0 > /cg/app/memory.swap.max"),
    ],
)
def test_what_is_wrong_with_a_machine(changes, key, level, text):
    found = of_machine(**changes)
    assert found.keys() == {key}
    assert found[key].level == level
    assert found[key].mends[0].text.startswith(text)


def test_a_redis_beside_it_needs_forks():
    found = of_machine(LOCAL_REDIS)
    assert found["overcommit", "kernel"].mends[0].text == "sysctl -w vm.overcommit_memory=1"
    assert ("overcommit", "kernel") not in of_machine(LOCAL_REDIS, overcommit=1)
    assert ("overcommit", "kernel") not in of_machine(parse('[redis]\nurl = "redis://elsewhere"'))


@pytest.mark.parametrize(
    ("variables", "wrong"),
    [
        ({}, True),
        ({"MALLOC_ARENA_MAX": "2"}, False),
        ({"MALLOC_ARENA_MAX": "64"}, True),
        ({"MALLOC_ARENA_MAX": "0"}, True),
        ({"MALLOC_ARENA_MAX": "two"}, True),
    ],
)
def test_the_allocator(variables, wrong):
    assert (("allocator", "environment") in of_machine(variables=variables)) is wrong
    assert ("allocator", "environment") not in of_machine(variables=variables, allocator="jemalloc")


def test_elsewhere_than_on_linux_only_what_is_there_is_checked():
    mac = Machine(system="darwin", memory=16 * GIB, cores=8, open_files=(256, None))
    found = examine(None, Facts(machine=mac))
    assert {line.key: line.level for line in found if line.level != "ok"} == {("open_files", "limit"): "warning"}
    assert found[0].key == ("memory_limit", "cgroup")


def test_a_fleets_budget_is_what_its_runners_take():
    text = """
        [fleet]
        budget = "1GiB"
        [runners.a]
        engine = "function"
        function = "a:b"
        memory = "900MiB"
        [runners.b]
        engine = "function"
        function = "a:b"
        memory = "900MiB"
    """
    config = parse(text)
    found = {line.key: line for line in examine(config, Facts(machine=LINUX), only=["budgets", "autoscaling"])}
    assert found["budgets", "together"].level == "ok"
    assert all(line.level == "ok" for line in found.values())
    small = Machine(memory=GIB)
    found = {line.key: line for line in examine(config, Facts(machine=small), only=["budgets"])}
    (mend,) = found["budgets", "together"].mends
    sizes = {"memory": "768MiB", "memory_hard": "960MiB"}
    assert tomllib.loads(mend.text) == {"fleet": {"budget": "768MiB"}, "runners": {"a": sizes, "b": sizes}}
    smaller = parse(text.replace('"1GiB"', '"768MiB"').replace('"900MiB"', '"768MiB"'))
    assert all(line.level == "ok" for line in examine(smaller, Facts(machine=small), only=["budgets"]))


WORKERS = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 1 << 30), st.integers(1, 64)), min_size=1)


@given(WORKERS, st.integers(-5, 1 << 36))
def test_workers_give_way_until_all_fit_and_no_further(sizes, room):
    counts = fewer_workers(sizes, room)
    assert all(1 <= counts[name] <= number for name, (_, number) in sizes.items())
    total = sum(sizes[name][0] * number for name, number in counts.items())
    assert total <= room or set(counts.values()) == {1}
    given_way = [name for name, number in counts.items() if number < sizes[name][1]]
    if given_way:
        assert total + max(sizes[name][0] for name in given_way) > room


@given(
    st.lists(st.tuples(st.integers(1, 1 << 40), st.integers(1, 64)), min_size=1, max_size=6), st.integers(1, 1 << 42)
)
def test_the_largest_are_cut_until_all_fit(sizes, room):
    most = largest_that_fit(sizes, room)
    assert sum(min(size, most) * times for size, times in sizes) <= room or sum(n for _, n in sizes) > room
    if most < max(size for size, _ in sizes):  # and no further than they must
        assert sum(min(size, most + 1) * times for size, times in sizes) > room


def test_autoscaling_is_suggested_as_far_as_it_fits():
    config = parse(
        '[machine]\nreserve = "0.2GiB"\n[runners.a]\nengine = "function"\nfunction = "a:b"\nmemory = "256MiB"'
    )
    (line,) = examine(config, Facts(machine=LINUX), only=["autoscaling"])
    assert line.mends[0].text == "[runners.a]\nworkers = [1, 4]"
    (line,) = examine(config, Facts(machine=Machine(memory=700 * MIB)), only=["autoscaling"])
    assert (line.level, line.mends) == ("ok", ())


# A machine that is made of files


def test_the_kernels_files_are_read(tmp_path):
    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    cg = tmp_path / "cg"
    write("proc/meminfo", "MemTotal:       16384 kB\nSwapTotal:       1024 kB\nHugePages_Total:       0\n")
    write("proc/7/cgroup", "0::/system.slice/app.service\n")
    write("proc/7/mountinfo", f"30 24 0:26 / {cg} rw shared:4 - cgroup2 cgroup2 rw\n")
    write("proc/7/status", "Name:\tsleep\nCapEff:\t0000000001000000\nCpus_allowed_list:\t0-3,6\n")
    write("proc/7/limits", "Limit   Soft  Hard  Units\nMax processes   100   unlimited  processes\n"
          "Max open files            1024                 4096                 files\n")  # fmt: skip
    write("proc/7/environ", "MALLOC_ARENA_MAX=2\0LD_PRELOAD=/usr/lib/libjemalloc.so\0broken\0")
    for name, text in {"memory.max": "max", "memory.current": "4096", "memory.stat": "", "memory.swap.max": "0",
                       "cpu.max": "150000 100000", "pids.max": "max", "pids.current": "3"}.items():  # fmt: skip
        write(f"cg/system.slice/app.service/{name}", f"{text}\n")
    for name, text in {"memory.max": "8192", "memory.current": "4096", "memory.stat": "", "cpu.max": "300000 100000",
                       "pids.max": "50", "pids.current": "9"}.items():  # fmt: skip
        write(f"cg/system.slice/{name}", f"{text}\n")
    write("cg/memory.current", "1")  # of the root: it has no limit file
    write("proc/sys/kernel/pid_max", "32768\n")
    write("proc/sys/vm/overcommit_memory", "2\n")
    write("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never\n")
    (tmp_path / "dev/shm").mkdir(parents=True)
    facts = gather(None, pid=7, root=tmp_path)
    machine = facts.machine
    assert (machine.memory, machine.swap) == (16 * MIB, MIB)
    assert [(group.path.name, group.limit, group.swaps) for group in machine.groups] == [
        ("app.service", None, False), ("system.slice", 8192, True),
    ]  # fmt: skip
    assert machine.kernel_limit == 8192
    assert (machine.manager, machine.cores, machine.quota, machine.cpus) == ("app.service", 5, 1.5, 1.5)
    assert (machine.open_files, machine.processes, machine.may_raise) == ((1024, 4096), (100, None), True)
    assert machine.tasks == Counted(50, 9, cg / "system.slice/pids.max")
    assert (machine.pid_max, machine.overcommit, machine.huge_pages) == (32768, 2, "always")
    assert machine.shared > 0
    assert machine.allocator == "jemalloc"
    assert facts.environment == {"MALLOC_ARENA_MAX": "2", "LD_PRELOAD": "/usr/lib/libjemalloc.so"}
    with pytest.raises(ProcessLookupError):
        gather(None, pid=8, root=tmp_path)


def test_without_the_extra_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    config = parse('[redis]\nurl = "redis://localhost:1"')
    (line,) = examine(config, gather(config), only=["redis"])
    assert line.level == "failure"
    assert "guarded-runners[redis]" in line.why


# The report of a load test


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            {"started": "2026-11-24T10:00:00Z", "duration": 60, "requests": 100, "errors": 1, "p95_ms": 250},
            ("load test", 1795514400.0, 60, 100, 1, 0.25),
        ),
        ({"started": 5, "duration": 60, "requests": 100, "errors": 1}, ("load test", 5, 60, 100, 1, None)),
        (K6, ("k6", 950, 50, 1000, 2, 0.2105)),
        (
            {
                "state": {"testRunDurationMs": 30_000},
                "metrics": {
                    "http_req_duration": {"type": "trend", "values": {"p(95)": 100}},
                    "http_req_failed": {"values": {"rate": 0.5, "passes": 5, "fails": 5}},
                    "http_reqs": {"values": {"count": 10, "rate": 0.3}},
                },
            },
            ("k6", 970, 30, 10, 5, 0.1),
        ),
    ],
)
def test_reports_are_read(data, expected):
    found = parse_report(data, written=1000.0)
    assert (found.source, found.started, found.duration, found.requests, found.errors, found.p95) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "it is not there"),
        ("{", "it is not JSON"),
        ("[]", "neither this project's format nor k6's summary: it is no object"),
        ("{}", "neither this project's format nor k6's summary: there is no 'started'"),
        ('{"metrics": {}}', "there is no 'http_req_duration'"),
        ('{"started": "soon", "duration": 1, "requests": 1, "errors": 0}', "neither this project's"),
        ('{"started": 1, "duration": -1, "requests": 1, "errors": 0}', "a number of at least 0 is missing"),
        ('{"started": 1, "duration": NaN, "requests": 1, "errors": 0}', "a number of at least 0 is missing"),
    ],
)
def test_reports_that_cannot_be_read_say_why(tmp_path, content, said):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert said in read_report(tmp_path / "report.json")


def test_a_report_of_nothing_is_no_test():
    config = parse('[load_test]\nreport = "x"')
    report = LoadTest("k6", 0.0, None, 0, 0, None, None, None)
    (line,) = examine(config, Facts(load_test=report), only=["load_test"])
    assert line.level == "failure"
    report = LoadTest("k6", 0.0, None, 5, 0, None, None, None)
    found = {line.subject: line.level for line in examine(config, Facts(load_test=report), only=["load_test"])}
    assert found["p95"] == "warning"


# Addresses


@pytest.mark.parametrize(
    ("dsn", "address"),
    [
        ("https://abc@o1.ingest.sentry.io/42", Address("o1.ingest.sentry.io", 443, tls=True)),
        ("http://abc:def@localhost:9000/a/path/42", Address("localhost", 9000, tls=False)),
        ("https://abc@[::1]/42", Address("::1", 443, tls=True)),
        ("secret", "does not begin with https:// or http://"),
        ("https://host/42", "has no public key before the @"),
        ("https://secret@/42", "names no host"),
        ("https://secret@host/", "does not end with a project's number"),
        ("https://secret@host:port/42", "is no URL"),
    ],
)
def test_dsns(dsn, address):
    assert dsn_address(dsn) == address


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, Address("proxy", 3128, tls=False)),
        ({"https_proxy": "proxy"}, Address("proxy", 80, tls=False)),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "sentry.example"}, None),
        ({"HTTP_PROXY": "http://proxy:3128"}, None),
        ({"HTTPS_PROXY": "http://proxy:x"}, None),
        ({"HTTPS_PROXY": "http://:3128"}, None),
    ],
)
def test_proxies(variables, proxy):
    assert proxy_for(Address("sentry.example", 443, tls=True), variables) == proxy


@pytest.fixture
def listening():
    """The port of a socket that accepts connections, and of one that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as open_, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield open_.getsockname()[1], bound.getsockname()[1]


@pytest.fixture
def plain():
    """The port of a server that answers every connection with a line of HTTP, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_what_does_not_answer_says_why(listening, plain):
    open_, closed = listening

    def ask(port, *, tls=False, **variables):
        return asyncio.run(reach(Address("127.0.0.1", port, tls=tls), variables, seconds=0.5))

    assert ask(open_) == Reach(reached=True, detail=f"127.0.0.1:{open_} answers")
    assert ask(closed).detail == f"127.0.0.1:{closed} cannot be reached: connection refused"
    assert ask(open_, tls=True).detail == f"127.0.0.1:{open_} does not answer within 0.5 s"
    assert "speaks no TLS" in ask(plain, tls=True).detail
    assert ask(closed, http_proxy=f"http://127.0.0.1:{open_}").detail == f"127.0.0.1:{open_} (the proxy) answers"


@pytest.fixture
def secure(tmp_path):
    """The port of a server that speaks TLS, and the file of its certificate, which it has signed itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    options = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=doctor", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run([openssl, "req", *options, *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
                    tls.recv(1)

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1], certificate
        server.shutdown(socket.SHUT_RDWR)


def test_a_certificate_is_looked_at(secure, monkeypatch):
    port, certificate = secure
    address = Address("127.0.0.1", port, tls=True)
    found = asyncio.run(reach(address, {}, seconds=5))
    assert not found.reached
    assert found.detail.startswith(f"the certificate of 127.0.0.1:{port} is not valid: self")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert asyncio.run(reach(address, {}, seconds=5)) == Reach(reached=True, detail=f"127.0.0.1:{port} answers")


# How mends are written


def test_values_are_written_as_the_file_has_them():
    assert [toml(each) for each in (True, 'a"b', 5, 200_000, 0.5, [1, 2], {"a b": 1})] == [
        "true", '"a\\"b"', "5", "200_000", "0.5", "[1, 2]", '{ "a b" = 1 }',
    ]  # fmt: skip
    assert (table("runners", "a-b"), table("runners", "a b")) == ("runners.a-b", 'runners."a b"')
    assert [size_text(each) for each in (2 * GIB, 1.5 * GIB, 100.9 * MIB)] == ["2GiB", "1536MiB", "100MiB"]


# Whatever the file and the machine

NAMES = st.sampled_from(["a", "b c", "d.e"])
SIZES = st.sampled_from(["1MiB", "64MiB", "500MiB", "3GiB", "2TiB"])
LIMITERS = st.fixed_dictionaries(
    {"requests": st.integers(1, 100)}, optional={"queue": st.sampled_from([0, 5000, 50_000]), "per": st.just(1)}
)
GUARDED = {"concurrency": st.integers(1, 50), "queue": st.sampled_from([0, 10, 5000, 50_000]), "limiter": LIMITERS}
TIMEOUTS = st.sampled_from([30, 3600, {"first": 5}, {"total": 700, "idle": 5}, {"total": 5}])
TABLES = st.fixed_dictionaries(
    {},
    optional={
        "machine": st.fixed_dictionaries({}, optional={"memory": SIZES, "reserve": SIZES}),
        "alerts": st.fixed_dictionaries(
            {}, optional={"memory_high": st.sampled_from([0.5, 0.99]), "memory_growth": st.booleans()}
        ),
        "tiers": st.dictionaries(
            NAMES,
            st.fixed_dictionaries(
                {"requests": st.integers(1, 9)},
                optional={"tokens": st.just(5), "per": st.just(1), "description": st.sampled_from(["", "x"])},
            ),
            max_size=2,
        ),
        "runners": st.dictionaries(
            NAMES,
            st.fixed_dictionaries(
                {"engine": st.just("function"), "function": st.just("a:b")},
                optional={
                    "memory": SIZES,
                    "workers": st.sampled_from([1, 3, 64, [1, 2], [0, 1], [2, 200]]),
                    "queue": st.sampled_from([0, 10, 5000, 50_000]),
                    "resources": st.sampled_from([{"threads": 64}, {"nice": 3}]),
                },
            ).filter(lambda runner: (runner.get("queue"), runner.get("workers")) != (0, [0, 1])),  # refused
            max_size=3,
        ),
        "services": st.dictionaries(
            NAMES,
            st.fixed_dictionaries(
                {"url": st.just("http://h")},
                optional={"breaker": st.sampled_from([{}, {"open_for": 5}]), "timeout": TIMEOUTS, **GUARDED},
            ),
            max_size=2,
        ),
    },
)
MACHINES = st.builds(
    Machine,
    memory=st.sampled_from([GIB, 16 * GIB, 1024 * GIB]),
    groups=st.sampled_from([(), LINUX.groups, UNLIMITED]),
    cores=st.sampled_from([1, 2, 64]),
    quota=st.sampled_from([None, 0.5, 3.0]),
    open_files=st.sampled_from([(None, None), (64, 64), (10_000, 20_000)]),
    manager=st.sampled_from(["", "docker", "kubernetes", "x.service"]),
)


def write(tables):
    """The text of a file."""
    named = ("runners", "services", "endpoints", "tiers")
    flat = {name: values for name, values in tables.items() if name not in named}
    flat |= {table(kind, name): values for kind in named for name, values in tables.get(kind, {}).items()}
    return config_mend(flat).text


def merged(tables, changes):
    """The tables with the keys of `changes` set in them."""
    both = {**tables}
    for kind, values in changes.items():
        before = both.get(kind, {})
        if kind in ("runners", "services", "endpoints", "tiers"):
            both[kind] = {**before, **{name: {**before.get(name, {}), **each} for name, each in values.items()}}
        else:
            both[kind] = {**before, **values}
    return both


@settings(max_examples=50)
@given(TABLES, MACHINES, st.data())
def test_whatever_is_wrong_has_a_mend_that_mends_it(tables, machine, data):
    kinds = (("runner", "runners"), ("service", "services"))
    names = [(word, name) for word, kind in kinds for name in tables.get(kind, {})]
    if names:
        limits = [{}, {"limiter": {"requests": 5}}]
        endpoint = st.builds(lambda by, limit: {by[0]: by[1], **limit}, st.sampled_from(names), st.sampled_from(limits))
        tables = {**tables, "endpoints": data.draw(st.dictionaries(NAMES, endpoint, max_size=2))}
    config = parse(write(tables))
    facts = Facts(machine=machine)
    lines = examine(config, facts)
    assert len({found.key for found in lines}) == len(lines)
    for found in lines:
        assert found.why
        assert (found.mends == ()) == (found.level == "ok")
        changes = {}
        for mend in found.mends:
            if mend.kind == "config":
                changes = merged(changes, tomllib.loads(mend.text))
        if changes and all(mend.kind == "config" for mend in found.mends) and found.check != "sinks":
            after = parse(write(merged(tables, changes)))
            lines = {line.key: line.level for line in examine(after, facts)}
            assert lines[found.key] == "ok", (found, write(tables), write(merged(tables, changes)))
