"""One event of each class that a package has, with something in every field."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

from guardrails.core.events import Event
from runners.supervision.stats import RunnerStats, WorkerStats

_ROOMS = ("signals", "events", "connection", "hedge", "fallback", "strategy", "switch")


@dataclasses.dataclass(frozen=True)
class Process:
    private: int = 1 << 20


@dataclasses.dataclass(frozen=True)
class Sample:
    processes: tuple[Process, ...] = (Process(), Process())


WORKER = WorkerStats(11, "ready", 4 << 20, 2 << 20, 3, 9)
STATS = RunnerStats("r", "ready", 9, 8, 1, 0, 0, 0, 2, {}, (WORKER, WORKER))


def every_event(package: ModuleType) -> list[type[Event]]:
    """All classes of events of the package, wherever they are."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name.rpartition(".")[2] in _ROOMS:
            importlib.import_module(module.name)
    found, todo = set(), [Event]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        room = sys.modules.get(kind.__module__)  # an example of the documentation has none
        # A dataclass with slots is made twice, and the first of the two is no longer used.
        if kind.__module__.startswith(f"{package.__name__}.") and getattr(room, kind.__name__, None) is kind:
            found.add(kind)
    return sorted(found - {Event}, key=lambda kind: kind.__qualname__)


def an(kind: type[Event]) -> Any:
    """An event of the class, with something of the right type in each field."""
    plain: dict[str, Any] = {"float": 1.5, "int": 7, "str": "word", "bool": True}
    given: dict[str, Any] = {"stats": STATS, "sample": Sample(), "values": {"used": 5}, "severity": "warning"}
    names = {each.name: str(each.type).partition(" | ")[0] for each in dataclasses.fields(kind)}
    return kind(**{name: given[name] if name in given else plain[word] for name, word in names.items()})
