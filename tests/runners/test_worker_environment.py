"""Which variables of this process reach a worker and its guard, for each kind of engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from runners import EmbeddingRunner, FunctionRunner, LlamaRunner
from runners.config import ConfigError, parse
from runners.errors import FunctionNotFound
from runners.spec import WorkerSpec
from runners.supervision.environment import INHERITED, THREADS, as_inherited, environment

from .engines import tiny_gguf

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PLANTED = {
    "DATABASE_URL": "postgres://u:hunter2@h",
    "OPENAI_API_KEY": "hunter2",
    "AWS_SECRET_ACCESS_KEY": "hunter2",
    # of families of which other variables are inherited
    "HF_TOKEN": "hunter2",
    "NVIDIA_API_KEY": "hunter2",
    "OTEL_EXPORTER_OTLP_HEADERS": "key=hunter2",
    "HTTPS_PROXY": "http://u:hunter2@proxy",
    "https_proxy": "http://u:hunter2@proxy",
}
NEEDED = {"LC_PLANTED": "C", "OMP_PLANTED": "1", "HF_HUB_OFFLINE": "1", "COVERAGE_PLANTED": "1", "TZ": "UTC"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    for name, value in {**PLANTED, **NEEDED}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)


@pytest.fixture(params=["function", "onnx", "llama"])
def start(request, tmp_path):
    """Makes a runner of each kind."""
    if request.param == "function":
        return lambda **how: FunctionRunner("os:getenv", **how)
    if request.param == "onnx":
        model, tokenizer = request.getfixturevalue("minilm")
        return lambda **how: EmbeddingRunner(model, tokenizer=tokenizer, threads=1, **how)
    path = tiny_gguf.write(tmp_path / "tiny.gguf")
    return lambda **how: LlamaRunner(path, threads=1, **how)


def variables(pid):
    """What a process was started with."""
    entries = (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
    return dict(entry.decode("utf-8", "surrogateescape").split("=", 1) for entry in entries if b"=" in entry)


def guards_of(worker):
    mark = variables(worker)["RUNNERS_WORKER"]
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) != worker and variables(folder.name).get("RUNNERS_WORKER") == mark:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@linux
@pytest.mark.anyio
async def test_no_secret_reaches_a_worker_or_its_guard(start):
    async with start() as runner:
        (worker,) = runner.stats().workers
        (guard,) = guards_of(worker.pid)
        for pid in (worker.pid, guard):
            has = variables(pid)
            assert PLANTED.keys() & has.keys() == set()
            assert "hunter2" not in "".join(has.values())
            assert {name: has.get(name) for name in NEEDED} == NEEDED
            assert has["PATH"] == os.environ["PATH"]


@linux
@pytest.mark.anyio
async def test_what_is_named_reaches_it(start):
    async with start(inherit_environment=("DATABASE_URL", "AWS_*"), environment={"EXTRA": "1"}) as runner:
        has = variables(runner.stats().workers[0].pid)
    assert PLANTED.keys() & has.keys() == {"DATABASE_URL", "AWS_SECRET_ACCESS_KEY"}
    assert has["EXTRA"] == "1"


@pytest.mark.anyio
async def test_the_function_sees_what_is_inherited():
    async with FunctionRunner("os:getenv", inherit_environment=["OPENAI_API_KEY"]) as getenv:
        assert await getenv("DATABASE_URL") is None
        assert await getenv("OPENAI_API_KEY") == "hunter2"
        assert await getenv("OMP_PLANTED") == "1"
    async with FunctionRunner("os:getenv", inherit_environment=True, environment={"HF_TOKEN": "other"}) as getenv:
        assert await getenv("DATABASE_URL") == PLANTED["DATABASE_URL"]
        assert await getenv("HF_TOKEN") == "other"  # `environment` is on top


@pytest.mark.anyio
async def test_a_module_that_misses_a_variable_of_this_process_says_how_to_inherit_it(tmp_path, monkeypatch):
    (tmp_path / "reads_url.py").write_text("import os\nURL = os.environ['DATABASE_URL']\ndef url(): return URL\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FunctionNotFound) as caught:
        await FunctionRunner("reads_url:url").start()
    assert "KeyError: 'DATABASE_URL'" in str(caught.value)
    assert "pass inherit_environment=('DATABASE_URL',)" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    monkeypatch.delenv("DATABASE_URL")
    with pytest.raises(FunctionNotFound) as caught:
        await FunctionRunner("reads_url:url").start()
    assert "inherit_environment" not in str(caught.value)  # it is missing here too


@pytest.mark.anyio
async def test_coverage_of_subprocesses_reaches_a_worker(monkeypatch):
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
        monkeypatch.setenv(name, "")  # empty: nothing is measured
    async with FunctionRunner("os:getenv") as getenv:
        assert await getenv("COVERAGE_PROCESS_START") == ""
        assert await getenv("COVERAGE_PROCESS_CONFIG") == ""


def spec(*names, **environment):
    return WorkerSpec(name="x", engine="function", options={}, inherit_environment=names, environment=environment)


def test_names_are_whole_or_beginnings():
    own = {"AB": "1", "ABC": "2", "B_X": "3", "B_": "4", "B": "5", "PATHS": "6"}
    assert environment(spec("AB", "B_*"), own) == {"AB": "1", "B_X": "3", "B_": "4"}
    assert environment(spec(*as_inherited(True)), own) == own
    assert environment(spec(AB="9"), own) == {"AB": "9"}


def test_threads_that_are_set_here_are_inherited():
    own = dict.fromkeys(THREADS, "3")
    assert environment(spec(), own) == own


def test_no_default_name_has_a_star_before_its_end():
    assert as_inherited(INHERITED) == INHERITED


@pytest.mark.parametrize("names", ["AWS_*", b"A", 3, None, False, {"A": "b"}, [1], [b"A"]])
def test_what_is_no_list_of_names_is_refused(names):
    with pytest.raises(TypeError, match="inherit_environment takes names of variables"):
        FunctionRunner("os:getenv", inherit_environment=names)


@pytest.mark.parametrize("name", ["", "*_PROXY", "A*B", "A**", "A=B", "A\0"])
def test_names_that_match_nothing_are_refused(name):
    with pytest.raises(ValueError, match="inherit_environment takes names of variables, with a \\* only at the end"):
        FunctionRunner("os:getenv", inherit_environment=[name])


@pytest.mark.parametrize(
    ("line", "names"), [("['A', 'B_*']", ("A", "B_*")), ("true", ("*",)), ("[]", ())], ids=["names", "all", "none"]
)
def test_the_file_has_it_too(line, names):
    text = f"[runners.x]\nengine = 'function'\nfunction = 'os:getenv'\ninherit_environment = {line}"
    runner = FunctionRunner(**parse(text).runners["x"].keywords())
    assert runner._spec.inherit_environment == names


@pytest.mark.parametrize("line", ["false", "'A'", "['*A']", "[1]"])
def test_what_the_file_may_not_say(line):
    text = f"[runners.x]\nengine = 'function'\nfunction = 'os:getenv'\ninherit_environment = {line}"
    with pytest.raises(ConfigError, match="inherit_environment"):
        parse(text)
