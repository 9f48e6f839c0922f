from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

import guardrails
import guardrails.errors
from guardrails._collision import refuse_foreign_package


def python(script, *, path=(), options=(), check=True, **variables):
    left_out = {"PYTHONDEVMODE", "PYTHONWARNINGS", "PYTHONDONTWRITEBYTECODE"}
    env = {name: value for name, value in os.environ.items() if name not in left_out} | variables
    env["PYTHONPATH"] = os.pathsep.join([*map(str, path), *sys.path])
    return subprocess.run(
        [sys.executable, *options, "-c", script], check=check, capture_output=True, text=True, timeout=60, env=env
    )


def test_what_is_listed_is_the_namespace():
    script = "from guardrails import *; print(*sorted(name for name in dir() if not name.startswith('_')))"
    assert python(script).stdout.split() == sorted(guardrails.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = guardrails.nothing


def test_the_names_that_callers_rely_on():
    assert set(guardrails.__all__) >= {"admit", "breaker", "guard", "subscribe", "timeout"}
    assert set(guardrails.errors.__all__) >= {"CircuitOpen", "QueueFull", "Rejected", "TimedOut", "WaitTimeout"}


FORBIDDEN = ("redis", "tornado", "sentry_sdk", "numpy", "onnxruntime", "trio", "pybreaker", "psutil", "uvloop", "httpx")


def test_the_import_loads_no_extra():
    loaded = python(
        "from guardrails import *; import guardrails.errors, guardrails.testing, sys; print(*sys.modules)"
    ).stdout.split()
    assert "guardrails.gates.breaker" in loaded
    assert [name for name in FORBIDDEN if name in loaded] == []


def test_the_import_is_quick(tmp_path):
    # Compiled code comes from files, as it does for users. Processor time, and the least of several: what else the
    # machine is busy with only ever adds. Against what every asyncio program loads: machines differ.
    script = (
        "from time import process_time as now; a = now()\n"
        "import asyncio, dataclasses, inspect, logging, pathlib; b = now()\n"
        "from guardrails import *; print((now() - b) / (b - a))"
    )
    ratios = [float(python(script, PYTHONPYCACHEPREFIX=str(tmp_path)).stdout) for _ in range(20)]
    assert min(ratios) < 1.4, ratios


def test_the_import_is_free_of_warnings():
    python("import guardrails, guardrails.errors, guardrails.testing", options=["-X", "dev", "-W", "error"])


@pytest.mark.parametrize(
    "name", ["guardrails_ai-0.5.dist-info", "guardrails_ai-0.5-py3.11.egg-info", "Guardrails_AI-1.dist-info"]
)
def test_the_other_guardrails_is_named_at_import(tmp_path, name):
    (tmp_path / name).mkdir()
    done = python("import guardrails", path=[tmp_path], check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    for part in ("guardrails-ai", "guarded-runners", str(tmp_path), "pip uninstall guardrails-ai"):
        assert part in last


@pytest.mark.parametrize(
    "name", ["guardrails_ai", "guardrails_ai_extra-1.dist-info", "guardrails-1.dist-info", "guardrails_ai-1.txt"]
)
def test_other_names_are_no_collision(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "nowhere"), ""])
    refuse_foreign_package()


def test_looking_for_the_other_package_is_quick():
    started = time.perf_counter()
    refuse_foreign_package()
    assert time.perf_counter() - started < 0.1
