"""Every Python block of the README and the docs runs, as it stands, against the real model."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import sys
import textwrap
from pathlib import Path
from types import CodeType

import pytest

from runners.cli.models import find_minilm, find_smollm2

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    text = page.read_text()
    return [(text[: match.start()].count("\n") + 1, match[1]) for match in BLOCK.finditer(text)]


EXAMPLES = [
    pytest.param(source, id=f"{page.relative_to(ROOT)}:{line}") for page in PAGES for line, source in blocks(page)
]


@pytest.fixture
def reader_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory that the examples speak of."""
    models = find_minilm()
    minilm = tmp_path / "models" / "minilm"
    minilm.mkdir(parents=True)
    (minilm / "model.onnx").symlink_to(models.model)
    (minilm / "tokenizer.json").symlink_to(models.tokenizer)
    (tmp_path / "models" / "smollm2.gguf").symlink_to(find_smollm2())
    (tmp_path / "myapp").mkdir()
    (tmp_path / "myapp" / "images.py").write_text(
        textwrap.dedent("""\
            def thumbnail(image, width):
                return image[:width]

            def frames(film, width):
                for start in range(0, len(film), width):
                    yield film[start : start + width]
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(os.fspath(tmp_path))
    monkeypatch.delitem(sys.modules, "myapp", raising=False)
    return tmp_path


def test_the_readme_has_examples() -> None:
    assert len([example for example in EXAMPLES if str(example.id).startswith("README")]) >= 3


@pytest.mark.usefixtures("reader_folder")
@pytest.mark.parametrize("source", EXAMPLES)
def test_example_runs(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "LlamaRunner" in source:
        pytest.importorskip("llama_cpp")
    code = compile(source, "example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    async def run(example: CodeType, namespace: dict[str, object]) -> None:
        result = eval(example, namespace)
        if inspect.isawaitable(result):
            await result

    asyncio.run(run(code, {"__name__": "example"}))
    printed = capsys.readouterr().out.splitlines()
    for said in re.findall(r"print\(.*\) +# (.+)$", source, re.MULTILINE):
        assert said in printed
