"""The demo, in two acts: a model that embeds, and one that chats. Each loses workers, and no request.

Llama-cpp-python is built from source. `make demo` does that while the first act plays, and the second one waits for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Collection
from pathlib import Path

from runners.cli import demo_build, demo_embed
from runners.cli.models import ModelsMissing, find_smollm2


def run(acts: Collection[int], *, texts: int, callers: int, kills: int, tokens: int, build: Path | None = None) -> int:
    """Play the acts; 0 if nothing was lost in them. An act that needs what is not installed is left out, and says so.

    Args:
        acts: 1, 2 or both.
        texts: of the first act.
        callers: at once, in the first act.
        kills: in the first act.
        tokens: of each answer in the second act, at most.
        build: the log of a build of llama-cpp-python that is going on, if there is one.
    """
    logging.getLogger("runners").setLevel(logging.ERROR)  # the tables tell it better
    status = 0
    if 1 in acts:
        _title("Act 1: embeddings for 32 callers, from a worker that leaks and is killed")
        status = demo_embed.play(texts=texts, callers=callers, kills=kills)
    if 2 in acts:
        _title("Act 2: 16 chats at once, on two workers, one of which is killed")
        missing = _missing(build)
        if missing is not None:
            print(f"  not played: {missing}")
            return status or (0 if 1 in acts else 2)
        from runners.cli import demo_chats

        status = status or demo_chats.play(find_smollm2(), tokens)
    return status


def _missing(build: Path | None) -> str | None:
    """Why the second act cannot play; None if it can."""
    why = None if build is None else demo_build.wait(build)
    importlib.invalidate_caches()
    if any(importlib.util.find_spec(module) is None for module in ("llama_cpp", "jinja2")):
        return why or (
            "it needs llama-cpp-python: pip install 'guarded-runners[llama]' (built from source, with a C and a C++ "
            "compiler: 4 minutes on two cores)"
        )
    try:
        find_smollm2()
    except ModelsMissing as missing:
        return str(missing)
    return None


def _title(text: str) -> None:
    sys.stdout.write(f"\n{text}\n\n")
    sys.stdout.flush()
