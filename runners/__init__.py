"""Models in supervised subprocesses: restarted when they pass a memory budget, without losing a request.

    from runners import EmbeddingRunner

    async with EmbeddingRunner("path/to/minilm", memory="512MiB") as embedder:
        vectors = await embedder.embed(["hola", "mundo"])      # float32, shape (2, 384)

Names are loaded when first used: the worker process imports parts of this package and must not load the parent's side.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runners.embedding import EmbeddingRunner as EmbeddingRunner
    from runners.fleet import Fleet as Fleet
    from runners.function import FunctionRunner as FunctionRunner
    from runners.llama import LlamaRunner as LlamaRunner
    from runners.signals import drain_on_signals as drain_on_signals
    from runners.spec import Faults as Faults
    from runners.spec import Resources as Resources
    from runners.supervision.autoscale import Autoscale as Autoscale

__all__ = [
    "Autoscale",
    "EmbeddingRunner",
    "Faults",
    "Fleet",
    "FunctionRunner",
    "LlamaRunner",
    "Resources",
    "drain_on_signals",
]

_HOMES = {
    "Autoscale": "supervision.autoscale",
    "EmbeddingRunner": "embedding",
    "Faults": "spec",
    "Fleet": "fleet",
    "FunctionRunner": "function",
    "LlamaRunner": "llama",
    "Resources": "spec",
    "drain_on_signals": "signals",
}

if not TYPE_CHECKING:  # else every name would be one, for type checkers

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        if home != "spec":  # which needs nothing of guardrails
            _refuse_foreign_guardrails()
        return getattr(import_module(f"{__name__}.{home}"), name)


def _refuse_foreign_guardrails() -> None:
    """Say so if the `guardrails` that would be imported is that of guardrails-ai (see `guardrails._collision`)."""
    import importlib.util  # noqa: PLC0415
    import runpy  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    found = importlib.util.find_spec("guardrails")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        check = Path(folder) / "_collision.py"
        if check.is_file():
            runpy.run_path(str(check))["refuse_foreign_package"]()  # by path: their __init__ may be in the same folder
            return
    where = found.origin if found is not None else "nowhere"
    msg = (
        f"the package 'guardrails' that is found ({where}) is not the one of guarded-runners; if guardrails-ai is "
        "installed, use separate environments: both provide that name"
    )
    raise ImportError(msg, name="guardrails")
