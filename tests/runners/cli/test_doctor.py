"""`runners doctor`: a bad and a good configuration, in a real memory cgroup, with a real Redis and real sockets.

What the doctor looks at is a process of the test's own: in a cgroup of its own where the machine lets one be made, with
variables and limits of its own. Every mend is applied as it is printed: lines go into the file, variables into the
process' environment, commands into a shell.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from guardrails.memory.cgroup import delegated_group, own_cgroups
from runners.cli import doctor as command
from runners.cli.main import main
from runners.config import EXAMPLE, load
from runners.doctor import CHECKS, examine, gather
from tests.support import Terminal, redis_binary, redis_server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the machine's checks read Linux' files")

MIB = 1 << 20
GIB = 1 << 30
K6 = {
    "metrics": {
        "http_req_duration": {"avg": 90.1, "min": 8, "med": 80.5, "max": 420, "p(90)": 180, "p(95)": 210.5},
        "http_req_failed": {"passes": 2, "fails": 998, "thresholds": {}, "value": 0.002},
        "http_reqs": {"count": 1000, "rate": 20.0},
    },
    "root_group": {"name": "", "path": "", "id": "d41d8cd98f00b204e9800998ecf8427e", "groups": {}, "checks": {}},
}

BAD = """\
[machine]
memory = "900TiB"

[runners.embedder]
engine = "embedding"
path = "models/minilm"
queue = 50_000
threads = 4096

[runners.giant]
engine = "function"
function = "myapp:work"
memory = "800TiB"
queue = 4_000

[services.openai]
url = "https://api.openai.com/v1"

[services.other]
url = "https://api.example.com"
breaker = {}
timeout = { idle = 5 }
concurrency = 5
queue = 20_000

[endpoints.embed]
runner = "embedder"

[endpoints.chat]
service = "openai"
limiter = { requests = 5, queue = 30_000 }

[tiers.free]
requests = 5

[redis]
url = "unix://SOCKET"

[telemetry]
sentry_dsn = "https://127.0.0.1/1"
otel = "http://127.0.0.1:CLOSED"

[alerts]
memory_high = 0.99
memory_growth = false
ai_timeouts = false
memory_crash = false
slow_at_low_load = false

[load_test]
report = "load-test.json"
"""
BAD_REPORT = {
    "started": "2020-01-01T00:00:00Z", "duration": 60, "stages": [[60, 10]],
    "requests": 1000, "errors": 100, "p50_ms": 400, "p95_ms": 4000, "p99_ms": 9000,
}  # fmt: skip
#: What is not ok, and how bad it is.
LINES = {
    ("memory_limit", "cgroup"): "failure",
    ("memory_limit", "machine.memory"): "failure",
    ("budgets", "runners.embedder"): "failure",
    ("budgets", "together"): "failure",
    ("models", "runners.embedder"): "failure",
    ("queues", "runners.embedder"): "failure",
    ("queues", "runners.giant"): "warning",
    ("queues", "services.openai.concurrency"): "failure",
    ("queues", "services.other"): "failure",
    ("queues", "endpoints.chat.limiter"): "failure",
    ("rate_limits", "endpoints.embed"): "failure",
    ("tiers", "tiers.free"): "warning",
    ("breakers", "services.openai"): "failure",
    ("timeouts", "services.openai"): "failure",
    ("timeouts", "services.other"): "warning",
    ("sinks", "sentry"): "failure",
    ("sinks", "otel"): "failure",
    ("alerts", "memory_high"): "warning",
    ("alerts", "memory_growth"): "warning",
    ("alerts", "ai_timeouts"): "warning",
    ("alerts", "memory_crash"): "warning",
    ("alerts", "slow_at_low_load"): "warning",
    ("load_test", "age"): "warning",
    ("load_test", "p95"): "failure",
    ("load_test", "error_rate"): "failure",
    ("redis", "memory"): "failure",
    ("redis", "policy"): "warning",
    ("redis", "own_ttl"): "failure",
    ("redis", "ttl"): "warning",
    ("allocator", "environment"): "warning",
    ("threads", "environment"): "warning",
    ("threads", "runners.embedder"): "warning",
    ("open_files", "limit"): "failure",
    ("processes", "limit"): "failure",
}
#: Other files that are bad in some way, on the same machine: what is not ok in them, beside what the machine brings.
NOTHING = """\
[runners.x]
engine = "function"
function = "a:b"
memory = "64MiB"
"""
HARD = """\
[machine]
memory = "1GiB"
[runners."the x"]
engine = "function"
function = "a:b"
memory = "700MiB"
resources = { nice = 3, threads = 4096 }
[endpoints.y]
runner = "the x"
[tiers.z]
requests = 1
description = "Z"
[telemetry]
logs = true
[alerts]
[load_test]
report = "broken.json"
"""
RESERVE = """\
[machine]
memory = "1GiB"
reserve = "2GiB"
[runners.x]
engine = "function"
function = "a:b"
memory = "64MiB"
[endpoints.y]
runner = "x"
limiter = { requests = 1 }
[tiers.z]
requests = 1
description = "Z"
[telemetry]
logs = true
[alerts]
[load_test]
report = "good.json"
[redis]
[services.s]
url = "http://h"
breaker = {}
timeout = 3600
concurrency = 1
"""
UNREACHABLE = """\
[redis]
url = "redis://127.0.0.1:CLOSED"
[telemetry]
sentry_dsn_env = "MY_DSN"
logs = true
[alerts]
[load_test]
report = "good.json"
"""
OTHERS = {
    "nothing": (
        NOTHING,
        {
            ("autoscaling", "runners.x"): "warning",
            ("rate_limits", "endpoints"): "failure",
            ("tiers", "tiers"): "warning",
            ("sinks", "telemetry"): "failure",
            ("alerts", "alerts"): "failure",
            ("load_test", "report"): "failure",
        },
    ),
    "hard": (
        HARD,
        {
            ("budgets", "together"): "warning",
            ("rate_limits", "endpoints.y"): "failure",
            ("load_test", "report"): "failure",
            ("threads", 'runners."the x"'): "warning",
        },
    ),
    "reserve": (
        RESERVE,
        {
            ("budgets", "together"): "failure",
            ("redis", "address"): "failure",
            ("timeouts", "services.s"): "warning",
        },
    ),
    "unreachable": (UNREACHABLE, {("redis", "address"): "failure", ("sinks", "sentry"): "failure"}),
}
OF_THE_MACHINE = {key for key in LINES if key[1] in ("cgroup", "environment", "limit")}


# The world that is looked at


@pytest.fixture(scope="module")
def redis_socket(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as socket:
        yield socket


@pytest.fixture(scope="module")
def listening():
    """The port of a socket that accepts connections, and of one that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as open_, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield open_.getsockname()[1], bound.getsockname()[1]


class MemoryCgroup:
    """A memory cgroup of the test's own below this process' own: v2 where a part of that is handed over, else v1."""

    def __init__(self):
        self.path = None
        self.why_not = "this machine hands over no cgroup with the memory controller"
        parents = [delegated_group(), *(group.path for group in own_cgroups()[:1] if group.version == 1)]
        for parent in filter(None, parents):
            path = parent / f"doctor-test-{os.getpid()}-{time.monotonic_ns()}"
            try:
                path.mkdir()
            except OSError as error:
                self.why_not = f"no cgroup can be made: {error}"
            else:
                self.path = path
                return

    def remove(self):
        if self.path is None:
            return
        for _ in range(200):  # the kernel needs a moment to see that a killed process has left
            with contextlib.suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.01)
        pytest.fail(f"{self.path} cannot be removed")


class World:
    """A file, a process, and what it is looked at in."""

    def __init__(self, folder, text, *, redis_socket, ports):
        self.folder = folder
        self.file = folder / "runners.toml"
        self.open, self.closed = ports
        self.redis = redis_socket
        self.file.write_text(text.replace("SOCKET", redis_socket).replace("CLOSED", str(self.closed)))
        (folder / "load-test.json").write_text(json.dumps(BAD_REPORT))
        good = {**BAD_REPORT, "started": time.time(), "errors": 0, "p95_ms": 100}
        (folder / "good.json").write_text(json.dumps(good))
        (folder / "broken.json").write_text('{"requests": 1}')
        tools = folder / "tools"
        tools.mkdir()
        (tools / "k6").write_text(f"#!/bin/sh\ncat > \"$3\" <<'END'\n{json.dumps(K6)}\nEND\n")
        (tools / "k6").chmod(0o755)
        (tools / "redis-cli").symlink_to(redis_binary("redis-cli"))
        self.path = f"{tools}{os.pathsep}{os.environ['PATH']}"
        self.variables = {"OMP_NUM_THREADS": "4096", "MY_DSN": "nonsense"}
        self.shell = ["ulimit -S -n 64", "ulimit -S -u 32"]
        self.cgroup = MemoryCgroup()
        self._process = None
        self._fill_redis()

    def _fill_redis(self):
        import redis

        with redis.Redis(unix_socket_path=self.redis) as client:
            client.flushall()
            client.config_set("maxmemory", 0)
            client.config_set("maxmemory-policy", "noeviction")
            client.set("guardrails:quota", "x")
            client.set("page", "x")

    @property
    def pid(self):
        """Of a process with the variables, the limits, and in the cgroup."""
        if self._process is None:
            lines = [*self.shell, "echo; read"]  # it becomes no other program: its variables are there all the time
            if self.cgroup.path is not None:
                lines.insert(0, f"echo $$ > {self.cgroup.path}/cgroup.procs")
            self._process = subprocess.Popen(
                ["bash", "-c", "\n".join(lines)],
                env={"PATH": self.path, **self.variables}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            self._process.stdout.readline()
        return self._process.pid

    def _end(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None

    def close(self):
        self._end()
        self.cgroup.remove()

    # Looking

    def lines(self, *only):
        """What is found, by what it is about."""
        config = load(self.file)
        found = examine(config, gather(config, pid=self.pid, ask=only or ("redis", "sinks")), only=only)
        assert len({line.key for line in found}) == len(found)
        return {line.key: line for line in found}

    def wrong(self):
        """What is not ok, and how bad it is; without what this machine may bring that no test may change."""
        return {
            key: line.level
            for key, line in self.lines().items()
            if line.level != "ok" and key[0] not in ("huge_pages", "swap", "overcommit", "shared_memory")
            and key != ("processes", "kernel") and key != ("processes", "cgroup")
        }  # fmt: skip

    # Mending

    def apply(self, mend):
        """Do what it says. Words in capitals are what only the user knows."""
        known = {
            "https://PUBLIC_KEY@HOST/PROJECT": f"http://abc@127.0.0.1:{self.open}/1",
            "http://HOST:4318": f"http://127.0.0.1:{self.open}",
            "redis://HOST:6379/0": f"unix://{self.redis}",
            "WHOM IT IS FOR": "Everybody.",
            '"PATH"': '"model.onnx"',
        }
        text = mend.text
        for word, value in known.items():
            text = text.replace(word, value)
        if "model.onnx" in text:
            (self.folder / "model.onnx").touch()
        if mend.kind == "config":
            self.file.write_text(edit(self.file.read_text(), text))
        elif mend.kind == "environment":
            name, _, value = text.partition("=")
            self.variables[name] = value
            self._end()
        elif text.startswith("ulimit"):
            option = text.split()[1]
            self.shell = [*(line for line in self.shell if option not in line.split()), text]
            self._end()
        else:
            assert "/sys/" not in text or str(self.cgroup.path) in text, "no other cgroup may be touched"
            command = ["sh", "-c", text]
            variables = {**os.environ, "PATH": self.path}
            subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, check=False)


def edit(text, lines):
    """Put lines into a file as a person would: each under its header, in place of the key that is there."""
    section, out = None, text.rstrip("\n").split("\n")
    for line in lines.split("\n"):
        if line.startswith("["):
            section = line
            if section not in out:
                out += ["", section]
            continue
        key = line.partition(" = ")[0]
        start = out.index(section) + 1
        end = next((place for place in range(start, len(out)) if out[place].startswith("[")), len(out))
        there = [place for place in range(start, end) if out[place].partition(" = ")[0] == key]
        if there:
            out[there[0]] = line
        else:
            out.insert(start, line)
    return "\n".join(out) + "\n"


@pytest.fixture
def make(tmp_path, redis_socket, listening):
    worlds = []

    def build(text):
        worlds.append(World(tmp_path, text, redis_socket=redis_socket, ports=listening))
        return worlds[-1]

    yield build
    for world in worlds:
        world.close()


# A bad configuration, and each of its mends


def expected(world, lines):
    """The lines, less what this machine cannot show."""
    if world.cgroup.path is None:
        lines = {key: level for key, level in lines.items() if key != ("memory_limit", "cgroup")}
    return lines


def test_a_bad_configuration(make):
    world = make(BAD)
    assert world.wrong() == expected(world, LINES)


def mended(world, key, level):
    before = world.lines(key[0])[key]
    assert before.level == level
    assert before.mends
    for mend in before.mends:
        world.apply(mend)
    after = world.lines(key[0])[key]
    assert (after.level, after.mends) == ("ok", ()), f"{before}\n{after}"


@pytest.mark.parametrize("key", LINES, ids=" ".join)
def test_each_mend_turns_its_line_to_ok(make, key):
    world = make(BAD)
    if key == ("memory_limit", "cgroup") and world.cgroup.path is None:
        pytest.skip(world.cgroup.why_not)
    if any(mend.note.startswith("as root") for mend in world.lines(key[0])[key].mends) and os.geteuid() != 0:
        pytest.skip("the mend is for root")
    mended(world, key, LINES[key])


@pytest.mark.parametrize(
    ("name", "key"), [pytest.param(name, key, id=" ".join((name, *key))) for name in OTHERS for key in OTHERS[name][1]]
)
def test_each_mend_of_other_files_turns_its_line_to_ok(make, name, key):
    text, lines = OTHERS[name]
    world = make(text)
    mended(world, key, lines[key])


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_else_is_wrong_with_other_files(make, name):
    text, lines = OTHERS[name]
    wrong = make(text).wrong()
    assert {key: level for key, level in wrong.items() if key not in OF_THE_MACHINE} == lines


@pytest.mark.parametrize("text", [BAD, *(text for text, _ in OTHERS.values())], ids=["bad", *OTHERS])
def test_all_mends_together_leave_nothing_wrong(make, text):
    world = make(text)
    for _ in range(5):  # a mend may bring up what could not be judged before
        lines, wrong = world.lines(), world.wrong()
        if not wrong:
            return
        for key in wrong:
            for mend in lines[key].mends:
                world.apply(mend)
    pytest.fail(f"still wrong: {wrong}")


def test_the_kernel_holds_the_limit_that_the_mend_sets(make):
    world = make('[machine]\nmemory = "64MiB"\nreserve = "1MiB"\n')
    if world.cgroup.path is None:
        pytest.skip(world.cgroup.why_not)
    (mend,) = world.lines()["memory_limit", "cgroup"].mends
    world.apply(mend)
    line = world.lines()["memory_limit", "cgroup"]
    assert "the kernel holds 64 MiB" in line.why
    script = f"echo $$ > {world.cgroup.path}/cgroup.procs; exec {shlex.quote(sys.executable)} -c 'b\"x\" * (256 << 20)'"
    killed = subprocess.run(["sh", "-c", script], capture_output=True, check=False)
    assert killed.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)


# A good configuration


@pytest.fixture
def good(make, tmp_path):
    world = make(EXAMPLE.read_text())
    (tmp_path / "models" / "minilm").mkdir(parents=True)
    (tmp_path / "models" / "smollm2.gguf").touch()
    world.file.write_text(edit(world.file.read_text(), f'[telemetry]\notel = "http://127.0.0.1:{world.open}"'))
    (tmp_path / "load-test.json").write_text(json.dumps(K6))
    world.variables = {
        "MALLOC_ARENA_MAX": "2",
        "OMP_NUM_THREADS": "1",
        "REDIS_URL": f"unix://{world.redis}",
        "SENTRY_DSN": f"http://abc@127.0.0.1:{world.open}/1",
    }
    world.shell = ["ulimit -n 8192"]
    if world.cgroup.path is not None:
        name = "memory.max" if (world.cgroup.path / "memory.max").exists() else "memory.limit_in_bytes"
        (world.cgroup.path / name).write_text(str(3 * GIB))
    import redis

    with redis.Redis(unix_socket_path=world.redis) as client:
        client.flushall()
        client.set("guardrails:quota", "x", ex=60)
        client.config_set("maxmemory", 100 * MIB)
        client.config_set("maxmemory-policy", "allkeys-lru")
    return world


def test_a_good_configuration(good):
    lines = good.lines()
    assert good.wrong() == {}
    assert {key[0] for key in lines} == {check.name for check in CHECKS}
    assert all(line.mends == () for line in lines.values() if line.level == "ok")
    assert "1,000 requests in 50 s, by k6" in lines["load_test", "report"].why
    assert "answers" in lines["sinks", "sentry"].why
    if good.cgroup.path is not None:
        assert str(good.cgroup.path) in lines["memory_limit", "cgroup"].why


# The command


def doctor(*arguments, cwd, **variables):
    command = [sys.executable, "-m", "runners", "doctor", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120", "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, env=environment, check=False)


SYSTEM = "huge_pages,swap,overcommit,shared_memory,processes"


def test_the_command_on_a_bad_configuration(make):
    world = make(BAD)
    done = doctor("--pid", world.pid, "--skip", SYSTEM, cwd=world.folder)  # ./runners.toml is found
    assert done.returncode == 1, done.stderr
    lines = {key: level for key, level in expected(world, LINES).items() if key[0] not in SYSTEM}
    counts = [sum(each == level for each in lines.values()) for level in ("failure", "warning")]
    assert f"{counts[0]} failures, {counts[1]} warnings, " in done.stdout
    assert "budgets  memory budgets are set, and fit together\n" in done.stdout
    assert (
        "  ✗ runners.embedder: no memory budget: a leak in a worker is held by nothing but the machine's end\n"
        "      in runners.toml:\n"
        "        [runners.embedder]\n"
        '        memory = "256MiB"\n'
    ) in done.stdout
    assert "  ! environment: MALLOC_ARENA_MAX is not set" in done.stdout
    assert "        MALLOC_ARENA_MAX=2\n" in done.stdout
    assert f"        redis-cli -s {world.redis} CONFIG SET maxmemory-policy allkeys-lru\n" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_command_on_a_good_configuration(good, capsys):
    done = doctor("runners.toml", "--pid", good.pid, "--skip", SYSTEM, "--strict", cwd=good.folder)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^0 failures, 0 warnings, \d\d ok$", done.stdout, re.MULTILINE)
    assert main(["doctor", str(good.file), "--pid", str(good.pid), "--skip", SYSTEM, "--json"]) == 0
    as_json = capsys.readouterr().out
    answer = json.loads(as_json)
    assert answer["ok"] is True
    assert answer["counts"]["failure"] == 0
    first = answer["findings"][0]
    assert first.keys() == {"check", "subject", "level", "why", "mends"}
    assert "abc@" not in as_json + done.stdout


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """The command in this process and in an empty folder: `here(*arguments)` gives the status and what was said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run(*arguments):
        try:
            status = main(["doctor", *arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def test_warnings_count_when_they_are_asked_to(here):
    Path("runners.toml").write_text(NOTHING)
    arguments = ("runners.toml", "--only", "tiers", "--offline")
    assert here(*arguments)[0] == 0
    status, out, _ = here(*arguments, "--strict", "--json")
    assert status == 1
    assert [each["level"] for each in json.loads(out)["findings"]] == ["warning"]


def test_without_a_file_the_machine_is_looked_at_and_told_how_to_begin(here):
    _, out, _ = here()
    assert "runners doctor --example > runners.toml" in out
    shown = set(re.findall(r"^(\w+)  ", out, re.MULTILINE))
    assert shown <= {check.name for check in CHECKS if check.without_file}
    assert {"memory_limit", "allocator"} <= shown
    assert here("--quiet", "--only", "allocator")[1].startswith("0 failures, 0 warnings, 1 ok\n")


def test_the_example_is_printed(here):
    assert here("--example") == (0, EXAMPLE.read_text(), "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.toml"], "runners doctor: nowhere.toml: cannot be read: No such file or directory\n"),
        (["bad.toml"], "runners doctor: bad.toml: runers: there is no such table; did you mean 'runners'?\n"),
        (["--only", "redi"], "runners doctor: there is no check 'redi'; did you mean 'redis'?\n"),
        (["--pid", str(2**22 + 1)], f"runners doctor: there is no process {2**22 + 1}\n"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_what_cannot_be_run_is_status_2(here, arguments, said):
    Path("bad.toml").write_text("[runers.x]\n")
    status, out, err = here(*arguments)
    assert (status, out) == (2, "")
    assert said in err


def test_the_help_teaches(here):
    status, text, _ = here("--help")
    assert status == 0
    assert all(check.name in text and check.title in text for check in CHECKS)
    assert "exit status" in text


def test_on_a_terminal_there_are_colours_unless_they_are_unwanted(tmp_path):
    variables = {"PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_ARENA_MAX": "2", "NO_COLOR": ""}
    with Terminal("runners", "doctor", "--only", "allocator", cwd=tmp_path, env=variables) as terminal:
        assert terminal.end() == 0
        assert "\x1b[32m✓\x1b[0m environment: MALLOC_ARENA_MAX=2" in terminal.all


class OnTerminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({}, "\x1b[32mok\x1b[0m"),
        ({"NO_COLOR": "1"}, "ok"),
        ({"NO_COLOR": ""}, "\x1b[32mok\x1b[0m"),
        ({"TERM": "dumb"}, "ok"),
    ],
)
def test_colours_follow_the_environment(monkeypatch, variables, text):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert command._painter(OnTerminal())("ok", "32") == text
    assert command._painter(io.StringIO())("ok", "32") == "ok"


def test_what_is_waited_for_is_said_and_taken_away():
    stream = OnTerminal()
    progress = command._Progress(stream)
    progress.say("asking redis")
    progress.end()
    assert stream.getvalue() == "\r\x1b[2Kasking redis ...\r\x1b[2K"
