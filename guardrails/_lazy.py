"""Names of a module that are loaded when they are first asked for: importing the package then costs next to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def lazy(module: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """A `__getattr__` for `module`.

    Args:
        module: its ``__name__``.
        homes: for each name, the module within `guardrails` that has it.
    """

    def find(name: str) -> object:
        home = homes.get(name)
        if home is None:
            msg = f"module {module!r} has no attribute {name!r}"
            raise AttributeError(msg)
        found: object = getattr(import_module(f"guardrails.{home}"), name)
        setattr(sys.modules[module], name, found)  # asked for once
        return found

    return find
