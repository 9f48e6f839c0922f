"""The metrics of runners, and what a span of a request says. Importing this module registers them.

Generation and embeddings are also counted under the names that OpenTelemetry has for generative AI, with its bucket
boundaries, so that dashboards made for those work.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from guardrails.telemetry import operations
from guardrails.telemetry.instruments import (
    Instrument,
    Point,
    counter,
    histogram,
    one_of,
    register,
    sampled,
)

if TYPE_CHECKING:
    from runners.supervision.events import RequestFinished, RunnerSampled

_EVENTS = "runners.supervision.events"
_FINISHED = f"{_EVENTS}:RequestFinished"
_SAMPLED = f"{_EVENTS}:RunnerSampled"

RUNNER_STATES = ("starting", "ready", "idle", "draining", "failed", "stopped")
WORKER_STATES = ("starting", "ready", "draining", "exited")

#: Operations that the conventions for generative AI have a name for; those of functions are none of them.
GENERATIVE = frozenset({"chat", "text_completion", "embeddings"})
#: ``gen_ai.provider.name``: who answers. The models are our own processes.
PROVIDER = "guarded_runners"

# The boundaries that the conventions ask for.
OPERATION_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
OUTPUT_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(4**power for power in range(14))

_GEN_AI = "gen_ai.operation.name gen_ai.provider.name gen_ai.request.model"


def _gen_ai(event: RequestFinished, *more: str) -> tuple[str, ...]:
    return (event.operation, PROVIDER, event.model, *more)


def _operation(event: RequestFinished) -> Point | None:
    if event.operation not in GENERATIVE:
        return None
    return _gen_ai(event, event.error or ""), event.seconds


def _input_tokens(event: RequestFinished) -> Point | None:
    if event.operation not in GENERATIVE or event.input_tokens is None:
        return None
    return _gen_ai(event, "input"), event.input_tokens


def _output_tokens(event: RequestFinished) -> Point | None:
    if event.operation not in GENERATIVE or event.output_tokens is None:
        return None
    return _gen_ai(event, "output"), event.output_tokens


def _first_token(event: RequestFinished) -> Point | None:
    if event.operation not in GENERATIVE or event.first is None:
        return None
    return _gen_ai(event), event.first


def _output_token(event: RequestFinished) -> Point | None:
    """The pace after the first token; only of answers that came to their end."""
    tokens = event.output_tokens or 0
    if event.operation not in GENERATIVE or event.outcome != "answered" or event.first is None or tokens < 2:
        return None
    return _gen_ai(event), max(0.0, event.seconds - event.first) / (tokens - 1)


def _state(event: RunnerSampled) -> list[Point]:
    return list(one_of(event.source, RUNNER_STATES, event.stats.state))


def _workers(event: RunnerSampled) -> list[Point]:
    found = Counter(worker.state for worker in event.stats.workers)
    return [((event.source, state), found[state]) for state in dict.fromkeys((*WORKER_STATES, *found))]


def _in_flight(event: RunnerSampled) -> list[Point]:
    return [((event.source,), sum(worker.in_flight for worker in event.stats.workers))]


def _private(event: RunnerSampled) -> list[Point]:
    # By its place, not its process number: a worker that is replaced goes on with the series of the one before.
    return [((event.source, f"{place}"), worker.private) for place, worker in enumerate(event.stats.workers)]


def _growth(event: RunnerSampled) -> list[Point]:
    return [((event.source, f"{place}"), worker.growth) for place, worker in enumerate(event.stats.workers)]


def _time_left(event: RunnerSampled) -> list[Point]:
    soonest = min(
        (each.soft_budget_in for each in event.stats.workers if each.soft_budget_in is not None), default=None
    )
    return [] if soonest is None else [((event.source,), soonest)]


TABLE: tuple[Instrument, ...] = (
    # Requests
    histogram(
        "runners.request.duration",
        "s",
        "Time that requests took, from the call to its end.",
        "runner operation outcome",
        [(_FINISHED, lambda e: ((e.source, e.operation, e.outcome), e.seconds))],
    ),
    histogram(
        "runners.request.queued",
        "s",
        "Time that requests waited for a worker.",
        "runner",
        [(_FINISHED, lambda e: ((e.source,), e.queued))],
    ),
    histogram(
        "runners.request.time_to_first_item",
        "s",
        "Time until the first item or token of streams.",
        "runner operation",
        [(_FINISHED, lambda e: None if e.first is None else ((e.source, e.operation), e.first))],
    ),
    Instrument(
        "runners.tokens",
        "counter",
        "{token}",
        "Tokens that models read (input) and wrote (output).",
        ("runner", "type"),
        (
            (_FINISHED, lambda e: None if e.input_tokens is None else ((e.source, "input"), e.input_tokens)),
            (_FINISHED, lambda e: None if e.output_tokens is None else ((e.source, "output"), e.output_tokens)),
        ),
    ),
    counter(
        "runners.requests.redelivered",
        "{request}",
        "Requests of dead workers that went to another one.",
        "runner",
        {f"{_EVENTS}:RequestsRedelivered": lambda e: ((e.source,), e.count)},
    ),
    # The names of the conventions for generative AI
    histogram(
        "gen_ai.client.operation.duration",
        "s",
        "GenAI operation duration.",
        f"{_GEN_AI} error.type",
        [(_FINISHED, _operation)],
        buckets=OPERATION_SECONDS,
    ),
    histogram(
        "gen_ai.client.token.usage",
        "{token}",
        "Number of input and output tokens used.",
        f"{_GEN_AI} gen_ai.token.type",
        [(_FINISHED, _input_tokens), (_FINISHED, _output_tokens)],
        buckets=TOKENS,
    ),
    histogram(
        "gen_ai.server.time_to_first_token",
        "s",
        "Time to generate first token for successful responses.",
        _GEN_AI,
        [(_FINISHED, _first_token)],
        buckets=FIRST_TOKEN_SECONDS,
    ),
    histogram(
        "gen_ai.server.time_per_output_token",
        "s",
        "Time per output token generated after the first token for successful responses.",
        _GEN_AI,
        [(_FINISHED, _output_token)],
        buckets=OUTPUT_TOKEN_SECONDS,
    ),
    # The runner as a whole, once a second
    sampled(
        "runners.state",
        "",
        "1 for the state that a runner is in, 0 for the others.",
        "runner state",
        {_SAMPLED: _state},
    ),
    sampled("runners.workers", "{worker}", "Workers of a runner, by state.", "runner state", {_SAMPLED: _workers}),
    sampled(
        "runners.queue.length",
        "{request}",
        "Requests that wait for a worker.",
        "runner",
        {_SAMPLED: lambda e: [((e.source,), e.stats.queued)]},
    ),
    sampled("runners.requests.active", "{request}", "Requests that workers have.", "runner", {_SAMPLED: _in_flight}),
    sampled("runners.worker.private", "By", "Private bytes of a worker.", "runner worker", {_SAMPLED: _private}),
    sampled("runners.worker.growth", "By/s", "Bytes by which a worker grows.", "runner worker", {_SAMPLED: _growth}),
    sampled(
        "runners.budget.time_left",
        "s",
        "Time until a worker reaches its soft budget, at its growth; of the soonest, and nothing while none grows.",
        "runner",
        {_SAMPLED: _time_left},
    ),
    # What happened to workers
    histogram(
        "runners.worker.start.duration",
        "s",
        "Time until a worker was loaded and warm.",
        "runner",
        [(f"{_EVENTS}:WorkerReady", lambda e: ((e.source,), e.seconds))],
    ),
    counter(
        "runners.worker.exits",
        "{worker}",
        "Workers that ended.",
        "runner reason",
        {f"{_EVENTS}:WorkerExited": lambda e: ((e.source, e.reason), 1)},
    ),
    counter(
        "runners.worker.replacements",
        "{worker}",
        "Workers that were replaced while they were in service.",
        "runner reason",
        {f"{_EVENTS}:WorkerReplaced": lambda e: ((e.source, e.reason), 1)},
    ),
    counter(
        "runners.scalings",
        "{change}",
        "Changes of the number of workers because of load.",
        "runner direction",
        {f"{_EVENTS}:RunnerScaled": lambda e: ((e.source, "up" if e.new > e.old else "down"), 1)},
    ),
    counter(
        "runners.scale_ups_held",
        "{change}",
        "Workers that were needed and did not fit into memory.",
        "runner",
        {f"{_EVENTS}:ScaleUpHeld": lambda e: ((e.source,), 1)},
    ),
    counter(
        "runners.unloads",
        "{change}",
        "Times that a runner without work gave its memory back.",
        "runner reason",
        {f"{_EVENTS}:RunnerUnloaded": lambda e: ((e.source, e.reason), 1)},
    ),
    counter(
        "runners.model_changes",
        "{time}",
        "Times that a file of a model was found not to be the one that its workers have loaded.",
        "runner",
        {f"{_EVENTS}:ModelFileChanged": lambda e: ((e.source,), 1)},
    ),
    counter(
        "runners.fleet.over_budget",
        "{time}",
        "Times that busy runners held more than their fleet's budget, by what was done.",
        "runner action",
        {f"{_EVENTS}:FleetOverBudget": lambda e: ((e.source, e.action), 1)},
    ),
    counter(
        "runners.supervision_failures",
        "{failure}",
        "Failures of a task of the supervision, which is tried again.",
        "runner task",
        {f"{_EVENTS}:SupervisionFailed": lambda e: ((e.source, e.task), 1)},
    ),
)


def _operation_of(event: RequestFinished) -> operations.Operation:
    generative = event.operation in GENERATIVE
    said: dict[str, operations.Attribute | None] = {
        "runners.runner": event.source,
        "runners.outcome": event.outcome,
        "runners.queued": event.queued,
        "gen_ai.operation.name" if generative else "runners.operation": event.operation,
        "gen_ai.request.model" if generative else "runners.function": event.model,
        "gen_ai.provider.name": PROVIDER if generative else None,
        "gen_ai.request.stream": True if generative and event.first is not None else None,
        "gen_ai.response.time_to_first_chunk" if generative else "runners.time_to_first_item": event.first,
        "gen_ai.usage.input_tokens": event.input_tokens,
        "gen_ai.usage.output_tokens": event.output_tokens,
    }
    return operations.Operation(
        name=f"{event.operation} {event.model}",
        seconds=event.seconds,
        attributes={name: value for name, value in said.items() if value is not None},
        error=event.error,
    )


register(*TABLE)
operations.register(_FINISHED, _operation_of)

__all__ = ["GENERATIVE", "PROVIDER", "TABLE"]
