"""``runners.toml``: the example is read, names are the constructors', and what is wrong is said with its place."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails import admit, breaker, limiter, retry, timeout
from runners import EmbeddingRunner, FunctionRunner, LlamaRunner
from runners.config import (
    EXAMPLE,
    BreakerSection,
    Config,
    ConfigError,
    EmbeddingSection,
    EndpointSection,
    FleetSection,
    FunctionSection,
    LimiterSection,
    LlamaSection,
    RestartSection,
    RetrySection,
    ServiceSection,
    TimeoutSection,
    load,
    parse,
)
from runners.config.reading import _NAMED, _SINGLE
from runners.fleet import Fleet
from runners.supervision.autoscale import Autoscale
from runners.supervision.restart import RestartPolicy

ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20


def problems(text):
    with pytest.raises(ConfigError) as caught:
        parse(text, "runners.toml")
    assert str(caught.value) == "\n".join(f"runners.toml: {problem}" for problem in caught.value.problems)
    return caught.value.problems


# The example


def test_the_example_is_read():
    config = load(EXAMPLE)
    assert set(config.runners) == {"minilm", "smollm", "thumbnail"}
    assert config.runners["minilm"].memory == 300 * MIB
    assert config.runners["smollm"].size == Autoscale(1, 2, queue_delay=0.5, down_after=120)
    assert config.endpoints["chat"].tiers == ["free", "pro"]
    assert config.file("models/minilm") == EXAMPLE.parent / "models/minilm"


def test_the_example_has_every_table_and_the_page_shows_it():
    text = EXAMPLE.read_text()
    tables = set(re.findall(r"^(?:# )?\[(\w+)", text, re.MULTILINE))
    assert tables == {*_NAMED, *_SINGLE}
    parse(re.sub(r"^# (\[fleet\].*|\w+ = .*)$", r"\1", text, flags=re.MULTILINE))  # what is commented out, too
    page = (ROOT / "docs" / "config.md").read_text()
    assert f"```toml\n{text}```" in page


def test_the_engines_take_what_the_file_gives(tmp_path):
    text = """
        [runners.a]
        engine = "function"
        function = "json:dumps"
        memory = "64MiB"
        workers = [0, 2]
        restart = { intensity = 9 }
        resources = { nice = 3 }
        environment = { A = "b" }
        [runners.b]
        engine = "embedding"
        path = "x.onnx"
        providers = ["CPUExecutionProvider"]
    """
    config = parse(text)
    runner = FunctionRunner(**config.runners["a"].keywords(), name="a")
    assert runner._spec.resources.nice == 3
    assert runner._supervisor.pool.size == Autoscale(0, 2)
    assert config.runners["a"].hard == 96 * MIB
    assert EmbeddingRunner(**config.runners["b"].keywords()).timeout == 300


PATHS = """
[runners.e]
engine = "embedding"
path = "models/minilm"
tokenizer = "models/tokenizer.json"
[runners.l]
engine = "llama"
path = "/srv/smollm.gguf"
[runners.f]
engine = "function"
function = "json:dumps"
[load_test]
report = "load-test.json"
"""


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "etc").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "etc" / "runners.toml").write_text(PATHS)
    monkeypatch.chdir(tmp_path)
    config = load("etc/runners.toml")
    monkeypatch.chdir(tmp_path / "elsewhere")
    e, l, f = (config.runners[name].keywords() for name in "elf")  # noqa: E741
    assert e["path"] == str(tmp_path / "etc/models/minilm")
    assert e["tokenizer"] == str(tmp_path / "etc/models/tokenizer.json")
    assert (l["path"], f["function"]) == ("/srv/smollm.gguf", "json:dumps")
    assert EmbeddingRunner(**e)._spec.options["path"] == str(tmp_path / "etc/models/minilm")
    assert config.file(config.load_test.report) == tmp_path / "etc/load-test.json"


def test_without_a_file_paths_are_as_they_are_written():
    config = parse(PATHS)
    assert config.runners["e"].keywords()["path"] == "models/minilm"


# The names


@pytest.mark.parametrize(
    ("section", "constructor", "renamed"),
    [
        (EmbeddingSection, EmbeddingRunner, {}),
        (LlamaSection, LlamaRunner, {}),
        (FunctionSection, FunctionRunner, {}),
        (FleetSection, Fleet, {}),
        (LimiterSection, limiter, {}),
        (BreakerSection, breaker, {}),
        (RetrySection, retry, {}),
        (TimeoutSection, timeout, {}),
        (RestartSection, RestartPolicy, {}),
        (EndpointSection, admit, {"runner", "service", "limiter", "tiers", "timeout"}),
        (ServiceSection, admit, {"url", "breaker", "limiter", "timeout", "retry"}),
    ],
)
def test_keys_are_the_constructors_keywords_with_their_defaults(section, constructor, renamed):
    parameters = inspect.signature(constructor).parameters
    for field in msgspec.structs.fields(section):
        if field.name in renamed:
            continue
        default = parameters[field.name].default
        if field.required:
            assert default is inspect.Parameter.empty, field.name
        elif field.default_factory is msgspec.NODEFAULT:
            assert field.default == default, field.name


@pytest.mark.parametrize(
    ("section", "constructor"),
    [(EmbeddingSection, EmbeddingRunner), (LlamaSection, LlamaRunner), (FunctionSection, FunctionRunner)],
)
def test_every_keyword_of_a_runner_can_be_said(section, constructor):
    keywords = inspect.signature(constructor).parameters.keys()
    known = {field.name for field in msgspec.structs.fields(section)}
    assert keywords - known == {"name", "faults", "python"}


# What is wrong

RUNNER = '[runners.e]\nengine = "embedding"\npath = "x"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[runner.x]", "runner: there is no such table; did you mean 'runners'?"),
        ("[zzzzzz]", "zzzzzz: there is no such table; there are runners, endpoints,"),
        ("runners = 1", "runners: is a table, written as [runners.NAME]"),
        ("[runners]\nx = 1", "runners: is a table, written as [runners.NAME]"),
        ("machine = 1", "machine: is a table, written as [machine]"),
        (RUNNER + 'memmory = "1MiB"', "runners.e.memmory: there is no such key here; did you mean 'memory'?"),
        (RUNNER + "slots = 4", "runners.e.slots: there is no such key here"),
        (RUNNER + 'memory = "1XiB"', "runners.e.memory: '1XiB' is not a size"),
        (RUNNER + "memory = 0", "runners.e.memory: 0 must be at least one byte"),
        (RUNNER + "memory = []", "runners.e.memory: a size takes a size such as '300MiB'"),
        (RUNNER + "queue = -1", "runners.e: queue takes a whole number of at least 0, not -1"),
        (RUNNER + "queue = 0\nlazy = true", "runners.e: queue = 0 does not go with lazy"),
        (RUNNER + "queue = 0\nworkers = [0, 1]", "runners.e: queue = 0 does not go with lazy"),
        (
            RUNNER + 'queue = 0\nmemory = "1MiB"\n[fleet]\nbudget = "1GiB"',
            "runners.e.queue: 0 does not go with a fleet",
        ),
        (RUNNER + 'queue = "many"', "runners.e.queue: takes a whole number, not text"),
        (RUNNER + "queue = 1.5", "runners.e.queue: takes a whole number, not a number"),
        (RUNNER + "queue = true", "runners.e.queue: takes a whole number, not true or false"),
        (RUNNER + "timeout = 0", "runners.e: timeout takes a number of seconds above 0"),
        (RUNNER + "timeout = inf", "runners.e: timeout takes a number of seconds above 0"),
        (RUNNER + "grace = nan", "runners.e: grace takes a number of seconds of at least 0"),
        (RUNNER + "workers = [3, 1]", "runners.e: workers: the maximum, 1,"),
        (RUNNER + "workers = 0", "runners.e: workers takes a whole number of at least 1"),
        (RUNNER + "workers = { minimum = 1, maxmum = 2 }", "runners.e.workers.maxmum: there is no such key here; did"),
        (RUNNER + "resources = { nice = 100 }", "runners.e.resources: nice takes a whole number from 0 to 19"),
        (RUNNER + 'memory = "2MiB"\nmemory_hard = "1MiB"', "runners.e: memory_hard must be above memory"),
        ('[runners.e]\nengine = "embeding"', "runners.e.engine: takes one of 'embedding', 'llama', 'function', not"),
        ('[runners.e]\npath = "x"', "runners.e.engine: takes one of 'embedding', 'llama', 'function'"),
        ('[runners.e]\nengine = "embedding"', "runners.e: needs 'path'"),
        ('[runners."a b"]\nengine = "llama"\npath = 1', "runners.a b.path: takes text, not a whole number"),
        ('[services.x]\nurl = "http://h"\nbreaker = { min_calls = 0 }', "services.x.breaker: min_calls takes"),
        ('[services.x]\nurl = "ftp://h"', "services.x: url takes a URL that begins with http:// or https://"),
        ('[services.x]\nurl = "http://h"\ntimeout = -1', "services.x: total takes a number of seconds above 0"),
        ('[services.x]\nurl = "http://h"\ntimeout = { first = 0 }', "services.x.timeout: first takes"),
        ('[services.x]\nurl = "http://h"\nretry = { attempts = 0 }', "services.x.retry: attempts takes"),
        ('[services.x]\nurl = "http://h"\nlimiter = {}', "services.x.limiter: limiter takes a limit"),
        ('[services.x]\nurl = "http://h"\nconcurrency = 0', "services.x: concurrency takes a whole number"),
        ("[endpoints.a]", "endpoints.a: takes runner or service"),
        ('[endpoints.a]\nrunner = "e"\nservice = "s"', "endpoints.a: takes runner or service"),
        (RUNNER + '[endpoints.a]\nrunner = "f"', "endpoints.a.runner: there is no [runners.f]; there are e"),
        ('[endpoints.a]\nservice = "s"', "endpoints.a.service: there is no [services.s]"),
        (RUNNER + '[endpoints.a]\nrunner = "e"\nlimiter = { requests = -1 }', "endpoints.a.limiter: requests takes"),
        (
            RUNNER + '[endpoints.a]\nrunner = "e"\ntiers = ["fre"]\n[tiers.free]\nrequests = 1',
            "endpoints.a.tiers: there",
        ),
        ("[tiers.free]", "tiers.free: limiter takes a limit"),
        (
            RUNNER + '[endpoints.a]\nrunner = "e"\ntiers = ["x", "y"]\n'
            "[tiers.x]\nrequests = 1\nper = 1\n[tiers.y]\nrequests = 1\nper = 2",
            "endpoints.a.tiers: x, y must have the same per",
        ),
        (
            RUNNER + '[endpoints.a]\nrunner = "e"\ntiers = ["x", "y"]\n[tiers.x]\nrequests = 1\n[tiers.y]\ntokens = 1',
            "endpoints.a.tiers: tiers takes the same dimensions",
        ),
        (RUNNER + '[fleet]\nbudget = "1GiB"', "runners.e: needs 'memory' in a fleet"),
        (RUNNER + 'memory = "2GiB"\n[fleet]\nbudget = "1GiB"', "runners.e: can never be loaded: it needs 2 GiB"),
        (RUNNER + '[fleet]\nbudget = "1GiB"\nrunners = ["x"]', "fleet.runners: there is no [runners.x]"),
        ("[alerts]\nmemory_high = 80", "alerts: memory_high takes a share"),
        ("[alerts]\nmemory_growth = 1", "alerts.memory_growth: takes true or false, not a whole number"),
        ('[load_test]\nreport = "x"\nerror_rate = 1', "load_test: error_rate takes a share"),
        ('[telemetry]\nprometheus = "9464"', "telemetry: prometheus takes an address such as"),
        ('[redis]\nprefix = ""', "redis: prefix takes a text"),
        ("x = [", "is not TOML"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text, said):
    (problem,) = problems(text)
    assert problem.startswith(said)


def test_everything_that_is_wrong_is_said_at_once():
    assert len(problems(RUNNER + "queue = -1\n[machine]\nmemmory = 1\nreserv = 2\n[zzz]")) == 4


@pytest.mark.parametrize(
    "text",
    [
        '[redis]\nurl = "hunter2"',
        '[services.x]\nurl = "hunter2"',
        '[telemetry]\nsentry_dsn = "hunter2"\notel = "hunter2"',
        '[redis]\nurl = "redis://u:hunter2@h"\nsample = 0',
    ],
)
def test_no_secret_is_repeated(text):
    assert "hunter2" not in "".join(problems(text))


def test_no_secret_is_shown():
    text = """
        [redis]
        url = "redis://u:hunter2@h"
        [telemetry]
        sentry_dsn = "https://hunter2@h/1"
        [runners.e]
        engine = "function"
        function = "a:b"
        environment = { KEY = "hunter2" }
        [services.x]
        url = "https://hunter2@h"
    """
    assert "hunter2" not in repr(parse(text))


def test_files_that_cannot_be_read_are_named(tmp_path):
    for content, said in (
        (None, "No such file"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"#" * 2**21, "larger than 1 MiB"),
    ):
        file = tmp_path / "runners.toml"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigError, match=said) as caught:
            load(file)
        assert caught.value.file == str(file)


# Whatever is in the file

values = st.recursive(
    st.booleans() | st.integers(-3, 3000) | st.floats() | st.sampled_from(["", "1MiB", "embedding", "x", "http://h"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["total", "requests", "x"]), inner),
    max_leaves=4,
)
NAMES = sorted(
    {field.name for kind in (*_NAMED.values(), *_SINGLE.values()) for field in msgspec.structs.fields(kind)}
    | {"engine", "path", "function"}
)
tables = st.dictionaries(st.sampled_from(NAMES), values, max_size=5)
files = st.fixed_dictionaries(
    {},
    optional={name: st.dictionaries(st.sampled_from(["a", "b"]), tables | values, max_size=2) for name in _NAMED}
    | dict.fromkeys(_SINGLE, tables | values),
)


@settings(max_examples=60)
@given(data=files)
def test_whatever_is_in_it_it_is_read_or_refused(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tomllib, "loads", lambda _: data)
        try:
            found = parse("")
        except ConfigError as error:
            found = error.problems
    assert isinstance(found, Config) or found
