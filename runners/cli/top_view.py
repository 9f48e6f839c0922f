"""What `runners top` shows. Pure: statuses in, a renderable of rich's out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from guardrails.core.sizes import format_size
from runners.supervision.status import RunnerStatus, WorkerStatus

_BAR = 16
_SPARKS = "▁▂▃▄▅▆▇█"
_KEPT = 30
#: Seconds after which a status that is not renewed is called old: its process is stopped, or its event loop is blocked.
_OLD = 3.0
_STATES = {"ready": "green", "idle": "dim", "starting": "yellow", "draining": "yellow", "failed": "bold red"}

#: Process, number of the runner in it, and worker; 0 for all workers together.
Key = tuple[int, int, int]


@dataclass
class Rates:
    """Answers a second, from the last two statuses of each runner."""

    last: dict[Key, tuple[float, int]] = field(default_factory=dict)
    now: dict[Key, float] = field(default_factory=dict)
    history: dict[Key, deque[float]] = field(default_factory=dict)

    def update(self, statuses: Sequence[RunnerStatus]) -> None:
        """Take note of new statuses. One that has not changed since the last time changes nothing."""
        seen = set()
        for status in statuses:
            counts = {(status.pid, status.number, 0): status.answered}
            counts.update({(status.pid, status.number, worker.pid): worker.answered for worker in status.workers})
            for key, answered in counts.items():
                seen.add(key)
                self._note(key, status.at, answered)
        for key in self.last.keys() - seen:
            del self.last[key]
            self.now.pop(key, None)
            self.history.pop(key, None)

    def _note(self, key: Key, at: float, answered: int) -> None:
        then, before = self.last.get(key, (at, answered))
        if at > then:
            self.now[key] = max(0, answered - before) / (at - then)
            self.history.setdefault(key, deque(maxlen=_KEPT)).append(self.now[key])
        if at > then or key not in self.last:
            self.last[key] = (at, answered)


def view(statuses: Sequence[RunnerStatus], rates: Rates, now: float) -> RenderableType:
    """Everything, at `now` in seconds since the epoch."""
    return Group(*(_runner(status, rates, now) for status in statuses))


def _runner(status: RunnerStatus, rates: Rates, now: float) -> RenderableType:
    title = Text.assemble(
        (_plain(status.name), "bold"),
        "  ",
        (_plain(status.state), _STATES.get(status.state, "")),
        f"  pid {status.pid}",
    )
    if now - status.at > _OLD:
        title.append(f"  not heard of for {now - status.at:.0f} s", "bold yellow")
    return Panel(
        Group(_summary(status, rates), _workers(status, rates)), title=title, title_align="left", border_style="dim"
    )


def _summary(status: RunnerStatus, rates: Rates) -> Text:
    key = (status.pid, status.number, 0)
    parts = [f"answered {status.answered:,}", rate(rates.now.get(key)), f"queue {status.queued:,}"]
    counts = {name: getattr(status, name) for name in ("failed", "expired", "cancelled", "redelivered")}
    parts += [f"{name} {count:,}" for name, count in counts.items() if count]
    reasons = sorted(status.restarts.items(), key=lambda item: (-item[1], item[0]))
    text = Text("   ".join(parts))
    if sparks := sparkline(rates.history.get(key, ())):
        text.append(f"   {sparks}", "cyan")
    told = ", ".join(f"{count:,} x {_plain(reason)}" for reason, count in reasons)
    text.append(f"\nrestarts {told}" if told else "\nrestarts none", "" if told else "dim")
    return text


def _workers(status: RunnerStatus, rates: Rates) -> RenderableType:
    if not status.workers:
        return Text("no worker", "dim")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("worker", "state", "private memory"):
        table.add_column(column, no_wrap=True)
    for column in ("pss", "in flight", "answered", "rate", "age"):
        table.add_column(column, justify="right", no_wrap=True)
    for worker in status.workers:
        table.add_row(
            str(worker.pid),
            Text(_plain(worker.state), _STATES.get(worker.state, "")),
            _memory(worker, status),
            "" if worker.pss is None else format_size(worker.pss),
            f"{worker.in_flight:,}",
            f"{worker.answered:,}",
            rate(rates.now.get((status.pid, status.number, worker.pid))),
            age(worker.age),
        )
    return table


def _memory(worker: WorkerStatus, status: RunnerStatus) -> Text:
    budget = status.soft or status.hard
    if budget is None:
        return Text(format_size(worker.private))
    share = worker.private / budget
    colour = "green" if share < 0.75 else "yellow" if share < 1 else "red"
    size = f" {format_size(worker.private)} of {format_size(budget)}"
    return Text.assemble((bar(share), colour), size)


def bar(share: float, width: int = _BAR) -> str:
    """A bar that is full from 1.0 on."""
    filled = round(width * min(1.0, max(0.0, share)))
    return "█" * filled + "░" * (width - filled)


def sparkline(values: Sequence[float] | deque[float]) -> str:
    """One character a value, the highest as the highest block; nothing for fewer than two."""
    if len(values) < 2:
        return ""
    top = max(values) or 1.0
    return "".join(_SPARKS[min(len(_SPARKS) - 1, int(value / top * len(_SPARKS)))] for value in values)


def rate(value: float | None) -> str:
    """Per second; a dash while it is not known."""
    if value is None:
        return "-/s"
    return f"{value:,.0f}/s" if value >= 10 or value == 0 else f"{value:.1f}/s"


def age(seconds: float) -> str:
    """As ``12 s``, ``3 min``, ``5 h`` or ``2 d``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _plain(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)
