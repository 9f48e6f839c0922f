"""What is sent to Sentry: a record in the form of one of its events. Pure.

Everything in it is made here, of what our own events say: numbers, words, names of files and of functions. What can
hold text that a call was made with, such as the message of a worker's exception, is put in only with `text`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from guardrails.telemetry.sentry.frames import Frame, Raised

if TYPE_CHECKING:
    from guardrails.memory.monitor.sample import Sample
    from guardrails.telemetry.records import Record

#: Processes in an event, at most: those that hold the most.
MAX_PROCESSES = 20
_MAX_TEXT = 16_384


@dataclass(frozen=True, slots=True)
class Crash:
    """How a worker ended.

    Attributes:
        reason: in one word: ``sigsegv``, ``hard_budget``, ``start_failed`` ...
        raised: the exception, and what it came from, the first one first; empty where the stack is not known.
        stderr: its last lines.
    """

    reason: str
    raised: Sequence[Raised]
    stderr: str = ""

    @property
    def type(self) -> str:
        """What to call it: the exception's class, or the reason."""
        return (self.raised[-1].type if self.raised else None) or self.reason


def event_of(
    record: Record,
    *,
    at: float,
    crash: Crash | None = None,
    sample: Sample | None = None,
    breadcrumbs: Iterable[Mapping[str, Any]] = (),
    text: bool = False,
) -> dict[str, Any]:
    """An event for Sentry.

    Args:
        record: what happened.
        at: when, in seconds since the epoch.
        crash: of a worker: how it ended.
        sample: the last look at memory.
        breadcrumbs: what happened before, as `breadcrumb_of` makes them.
        text: whether to put in what may hold anything.
    """
    about: dict[str, Any] = {"event": record.name, "source": record.source, **record.fields}
    if record.hint:
        about["hint"] = record.hint
    event: dict[str, Any] = {
        "timestamp": datetime.fromtimestamp(at, UTC),
        "level": record.severity,
        "logger": "guardrails",
        "message": str(record),
        "fingerprint": fingerprint(record, crash),
        "tags": {"guardrails.event": record.name, "guardrails.source": record.source},
        "contexts": {"guardrails": about},
        "breadcrumbs": {"values": [dict(crumb) for crumb in breadcrumbs]},
        # Given, though empty: with `attach_stacktrace` the SDK would else put in the stack of the moment, and with it
        # the local variables of whatever call is under way.
        "threads": {"values": []},
    }
    for name in ("alert", "reason"):
        if name in record.fields:
            event["tags"][f"guardrails.{name}"] = str(record.fields[name])
    if sample is not None:
        event["contexts"]["memory"] = memory_of(sample)
    if crash is not None:
        event["exception"] = {"values": _exceptions(record, crash, text=text)}
        if text and crash.stderr:
            event["contexts"]["worker"] = {"stderr": crash.stderr[-_MAX_TEXT:]}
    return event


def fingerprint(record: Record, crash: Crash | None = None) -> list[str]:
    """What makes two events one issue: what happened, to whom, and which alert or which way to die."""
    told_apart = [str(record.fields[name]) for name in ("alert", "reason") if name in record.fields]
    if crash is not None and crash.type not in told_apart:
        told_apart.append(crash.type)
    return ["guardrails", record.name, record.source, *told_apart]


def breadcrumb_of(record: Record, *, at: float, held_back: int = 0) -> dict[str, Any]:
    """A step on the way to something else."""
    data = dict(record.fields)
    if held_back:
        data["held_back"] = held_back
    return {
        "timestamp": datetime.fromtimestamp(at, UTC),
        "type": "default",
        "category": f"guardrails.{record.name}",
        "level": record.severity,
        "message": str(record),
        "data": data,
    }


def memory_of(sample: Sample) -> dict[str, Any]:
    """The last look at memory, in bytes: each limit, and each process, those first that hold the most."""
    largest = sorted(sample.processes, key=lambda process: process.private, reverse=True)
    found: dict[str, Any] = {
        "at": datetime.fromtimestamp(sample.at, UTC).isoformat(timespec="seconds"),
        "private": sum(process.private for process in largest),
    }
    for process in largest[:MAX_PROCESSES]:
        # Some names come from a command line. The first word of it is the program.
        name = (process.name.split(maxsplit=1) or ["?"])[0][:64]
        held: dict[str, Any] = {"role": process.role, "private": process.private, "rss": process.rss}
        if process.pss is not None:
            held["pss"] = process.pss
        found[f"{name} ({process.pid})"] = held
    if len(largest) > MAX_PROCESSES:
        rest = largest[MAX_PROCESSES:]
        found[f"{len(rest)} more"] = {"private": sum(process.private for process in rest)}
    for scope in sample.scopes:
        found[f"limit {scope.name}"] = {"used": scope.used, "limit": scope.limit}
    return found


def _exceptions(record: Record, crash: Crash, *, text: bool) -> list[dict[str, Any]]:
    raised = crash.raised or [Raised(None, ())]
    values = []
    for number, one in enumerate(raised, 1):
        last = number == len(raised)
        said = [str(record)] if last else []
        if text and one.message:
            said.append(one.message)
        value: dict[str, Any] = {
            "type": (crash.type if last else one.type) or "Exception",
            "value": ": ".join(said),
            "mechanism": {"type": "guardrails", "handled": False},
        }
        if one.frames:
            value["stacktrace"] = {"frames": [_frame(frame) for frame in one.frames]}
        values.append(value)
    return values


def _frame(frame: Frame) -> dict[str, Any]:
    path = PurePath(frame.file)
    found: dict[str, Any] = {
        # Two folders are enough to know it by; the whole path is beside it.
        "filename": "/".join(path.parts[-3:]) if path.is_absolute() else frame.file,
        "abs_path": frame.file,
        "lineno": frame.line,
    }
    if frame.function is not None:
        found["function"] = frame.function
    if frame.file.startswith("<") or "/runners/worker/" in frame.file:
        found["in_app"] = False  # how a worker begins: every stack has it
    return found
