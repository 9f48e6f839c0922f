"""What to run: the engine and its options, as plain data that crosses the process boundary.

Parent and child both read this module, so it imports neither side, nor `guardrails`.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """Faults that a worker commits on purpose, for game days, tests and the demo. All zero: none.

    Attributes:
        leak: bytes that stay behind, written to, after each request.
    """

    leak: int = 0


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of worker.

    Attributes:
        name: how the runner calls itself in logs, events and errors.
        engine: ``"function"`` or ``"onnx"``.
        options: what the engine takes; see its module under `runners.worker.engines`.
        sys_path: where the child finds the caller's modules.
        environment: variables that the child gets on top of the parent's.
        faults: see `Faults`.
    """

    name: str
    engine: str
    options: dict[str, Any]
    sys_path: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    faults: Faults = Faults()
