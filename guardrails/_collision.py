"""Finds the other distribution that installs a package named `guardrails`, and says so.

guardrails-ai and guarded-runners both own the import name `guardrails`. Installed together, each overwrites files of
the other, and what is left fails in ways that nobody can read. There is no mend but to have them in separate
environments.
"""

from __future__ import annotations

import os
import sys

OTHER = "guardrails_ai"


def refuse_foreign_package() -> None:
    """Raise an ImportError if guardrails-ai is installed where this interpreter looks for packages.

    Lists the folders of `sys.path` and reads nothing: `importlib.metadata` would cost five times the rest of the
    import.
    """
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")  # noqa: PTH208 - pathlib would double the cost of this check
        except OSError:  # a zip file, or no such folder: nothing is installed there
            continue
        for name in names:
            if name.lower().startswith(OTHER + "-") and name.endswith((".dist-info", ".egg-info")):
                msg = (
                    f"guardrails-ai is installed in {folder or '.'!r}; it and guarded-runners both provide the "
                    "package 'guardrails' and overwrite each other's files. Use separate environments, or remove one: "
                    "pip uninstall guardrails-ai, then pip install --force-reinstall guarded-runners"
                )
                raise ImportError(msg, name="guardrails")
